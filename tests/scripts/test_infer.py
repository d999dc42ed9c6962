"""infer.py as a user runs it: the scan's own grid, ensembles, thresholds, and one line for bad input."""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from bright import bright_model, infer, scan_file

from meshnet.cohort.kept import check_output
from meshnet.cohort.lines import class_volumes, header, result_line
from meshnet.errors import ELASTIC, UserError
from meshnet.networks.card import Card
from meshnet.numbers import plain


def test_a_mask_on_exactly_the_scan_grid_with_a_picture(model, tmp_path):
    path = scan_file(tmp_path / "a.nii.gz")
    found = infer(path, "--model", model, "--json", "--probability")
    scan, mask = nib.load(path), nib.load(tmp_path / "a_lesion.nii.gz")
    assert mask.shape == scan.shape and np.array_equal(mask.affine, scan.affine)
    assert mask.get_data_dtype() == np.uint8
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (2, 1)
    assert np.allclose(mask.header.get_zooms(), scan.header.get_zooms())
    truth = np.asarray(scan.dataobj) == 1000
    labels = np.asarray(mask.dataobj)
    assert 2 * (labels & truth).sum() / (labels.sum() + truth.sum()) > 0.75  # on an 8 mm grid and back
    result = json.loads(found.stdout)
    assert result["volume_ml"] == pytest.approx(labels.sum() * 64 / 1000, abs=1e-3) and result["lesions"] == 1
    probability = np.asarray(nib.load(result["probability"]).dataobj)
    assert np.array_equal(probability >= 0.5, labels > 0)
    assert (tmp_path / "a_lesion.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.nii.gz", "a_lesion.nii.gz", "a_lesion.png", "a_lesion_probability.nii.gz"]
    script = importlib.import_module("infer")
    case = script.plan_masks([[path]], {}, None)[0]
    case["mask"].unlink()
    check_output(case, overwrite=False, probability=True, picture=True)  # a killed process left the others
    scan_file(case["probability"])
    with pytest.raises(UserError, match=r"_probability.nii.gz: exists and was not written"):
        check_output(case, overwrite=False, probability=True, picture=True)


def test_a_real_head_keeps_its_header(model, shared_data, tmp_path):
    path = shared_data / "t2_stroke" / "M2265_T2w.nii.gz"
    infer(path, "-o", tmp_path / "m.nii.gz", "--model", model)
    scan, mask = nib.load(path), nib.load(tmp_path / "m.nii.gz")
    assert mask.shape == scan.shape and np.array_equal(mask.affine, scan.affine)
    for field in ("sform_code", "qform_code", "xyzt_units", "pixdim"):
        assert np.array_equal(mask.header[field], scan.header[field]), field


def test_thresholds_cleaning_and_ensembles(model, tmp_path):
    path = scan_file(tmp_path / "a.nii.gz")
    other = bright_model(tmp_path / "other", level=2.0)  # finds nothing: probability near 0

    def volume(*flags):
        return json.loads(infer(path, "--json", "--no-picture", *flags).stdout)["volume_ml"]

    alone = volume("--model", model)
    assert volume("--model", model, "--threshold", 0.99) < alone < volume("--model", model, "--threshold", 0.01)
    assert volume("--model", model, "--min_lesion_mm3", 1e9) == 0
    # The average of about 1 and about 0 lies just below a half; at the block's blurred edge it is less.
    assert 0.6 * alone < volume("--model", model, other, "--threshold", 0.4) < alone
    assert volume("--model", model, other, "--threshold", 0.6) == 0


def test_it_says_what_it_does_and_why_a_mask_is_empty(model, tmp_path):
    """The line on the model once, before the first scan, and not with --json."""
    for name in "ab":
        scan_file(tmp_path / f"{name}.nii.gz")
    found = infer(tmp_path, "--model", model, "--no-picture")
    said = f"{model}: marks lesion (disease not stated) on T2w scans; from probability 0.5; all sizes are kept"
    assert found.stderr.splitlines().count(said) == 1
    assert all(line.split(": ")[1].split(" (")[0].endswith(" mL in 1 lesion") for line in found.stdout.splitlines())
    settings = ("--model", model, "--no-picture", "--min_lesion_mm3", 5e5, "--threshold", 0.4)
    found = infer(tmp_path / "a.nii.gz", *settings)
    assert "; from probability 0.4; what is below 500 mL is dropped\n" in found.stderr
    assert re.search(r": 0\.00 mL; \d+\.\d\d mL found below the 500 mL from which it is kept \(", found.stdout)
    assert "marks" not in infer(tmp_path / "a.nii.gz", "--json", *settings).stderr
    about = {"disease": "stroke", "contrasts": "T2w or DWI"}
    faint = bright_model(tmp_path / "faint", level=2.0, others={"about": about})
    found = infer(tmp_path / "a.nii.gz", "--model", faint, model, "--threshold", 0.9, "--no-picture")
    assert f"mean of 2 models ({faint}, {model}): marks lesion of stroke on T2w or DWI scans" in found.stderr
    assert ": 0.00 mL; nothing marked (" in found.stdout


def test_the_caption_of_a_picture_has_every_warning_whole(root, monkeypatch):
    monkeypatch.syspath_prepend(root)
    said = ["its name says T1w, " + "but the model is for T2w scans " * 10, "the last one"]
    caption = importlib.import_module("infer").picture_caption(
        {"scan": ["/data/a_T1w.nii.gz"], "volume_ml": 0.004, "warnings": said}, argparse.Namespace(model=["m"]))
    assert caption == f"a_T1w.nii.gz, less than 0.01 mL, m; {said[0]}; {said[1]}"


def test_classes_are_told_by_name_with_their_own_volumes():
    card = Card(["T1w"], ["background", "grey matter", "white matter"])
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[0], mask[1, :2] = 1, 2
    volumes = class_volumes(card, mask, 125.0)
    assert volumes == {"grey matter": 2.0, "white matter": 1.0}
    result = {"mask": "m.nii.gz", "volume_ml": 3.0, "lesions": 1, "remarks": [], "seconds": 1.0}
    assert result_line(result, volumes) == "m.nii.gz: 3.00 mL: grey matter 2.00, white matter 1.00 (1.0 s)"
    assert result_line(result | {"lesions": 2}, {"lesion": 3.0}) == "m.nii.gz: 3.00 mL in 2 lesions (1.0 s)"
    assert result_line(result, {"tumour": 3.0}) == "m.nii.gz: 3.00 mL in 1 part (tumour) (1.0 s)"
    result["volume_ml"], little = 0.004, "m.nii.gz: less than 0.01 mL"
    assert result_line(result, {"lesion": 0.004}) == f"{little} in 1 lesion (1.0 s)"
    assert result_line(result, {"a": 0.004, "b": 0.0}) == f"{little}: a less than 0.01, b 0.00 (1.0 s)"
    assert "the most probable class" in header(["m"], [card], None, None)


@pytest.mark.parametrize("about, words", [
    ({}, "lesion (disease not stated) on"),
    ({"classes": ["background", "grey matter"]}, "grey matter on"),
    ({"channels": ["image"]}, "lesion (disease not stated) on scans (contrast not stated);"),
    ({"training_data": {"source": {"format": "synthetic", "seed": 0}}}, "lesion of stroke (synthetic cases) on"),
    ({"training_data": {"source": "synthetic (preset demo)"}}, "lesion of stroke (synthetic cases) on"),  # of a push
    ({"training_data": {"source": {"format": "bids"}}, "others": {"about": {"disease": "multiple sclerosis"}}},
     "lesion of multiple sclerosis on")])
def test_a_model_says_of_which_disease_its_lesions_are(about, words):
    card = Card(**{"channels": ["T2w"], "classes": ["background", "lesion"]} | about)
    said = header(["m"], [card], None, None)
    assert said.startswith(f"m: marks {words}" + " T2w scans;" * words.endswith("on")) and "probability 0.5; " in said


def test_numbers_that_people_give_are_shown_as_they_give_them():
    card = Card(["T2w"], ["background", "lesion"])
    said = header(["m"], [card], 1e-5, 1e8)
    assert "from probability 0.00001; what is below 100000 mL is dropped" in said
    assert [plain(value) for value in (1e5, 123456789.0, 1e-5, 2.5, 0, 1e18, float("inf"), 0.999999)] == [
        "100000", "123456789", "0.00001", "2.5", "0", "1e18", "inf", "0.999999"]
    assert [plain(value, 3) for value in (1234.5, 0.19512, 999.96, 1e6)] == ["1234", "0.195", "1000", "1000000"]


def test_a_scan_takes_no_import_of_pydicom_along(model, root, tmp_path):
    """nibabel imports it, and with it a client of the web, where it is installed."""
    path = scan_file(tmp_path / "a.nii.gz")
    found = subprocess.run([sys.executable, "-X", "importtime", "infer.py", path, "--model", model], cwd=root,
                           capture_output=True, text=True, check=True)
    assert re.search(r"\| +nibabel\n", found.stderr) and not re.search(r"\| +pydicom\.", found.stderr)


def test_averaged_weights_are_used_on_request(tmp_path):
    folder = bright_model(tmp_path / "model")
    other = bright_model(tmp_path / "other", level=2.0)  # finds nothing anywhere
    (other / "model.safetensors").rename(folder / "model_ema.safetensors")
    path = scan_file(tmp_path / "a.nii.gz")
    volumes = [json.loads(infer(path, "--model", folder, "--json", "-o", tmp_path / f"{len(flags)}.nii.gz",
                                *flags).stdout)["volume_ml"] for flags in ([], ["--ema"])]
    assert volumes[0] > 0 and volumes[1] == 0


def test_without_a_scan_a_terminal_shows_the_common_commands(root):
    """Elsewhere it is one line, as every mistake."""
    import pty

    main, terminal = pty.openpty()
    found = subprocess.run([sys.executable, "infer.py"], cwd=root, stdin=terminal, stdout=terminal, stderr=terminal,
                           check=False)
    os.close(terminal)
    shown = os.read(main, 10_000).decode()
    os.close(main)
    assert found.returncode == 2 and shown.count("    python infer.py") == 3 and "--help" in shown, shown
    found = subprocess.run([sys.executable, "infer.py"], cwd=root, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "error: no scan given; try: python infer.py scan.nii.gz\n"


def test_masks_beside_the_scans_of_a_bids_data_set_are_remarked_on(model, tmp_path):
    scan_file(tmp_path / "a.nii.gz")
    (tmp_path / "dataset_description.json").write_text("{}")
    found = infer(tmp_path, "--model", model, "--no-picture")
    assert f"note: {tmp_path}: is a BIDS data set, and the masks go beside its scans; --format bids" in found.stderr


def test_a_scan_behind_the_model_is_a_scan(model, tmp_path):
    scan_file(tmp_path / "a.nii.gz")
    infer("--model", model, tmp_path / "a.nii.gz", "-o", tmp_path / "mask.nii.gz", "--no-picture")
    assert (tmp_path / "mask.nii.gz").is_file()


def test_many_scans_skip_what_is_done_and_go_on_after_a_bad_one(model, tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b", "c"):
        scan_file(folder / f"{name}.nii.gz")
    (folder / "b.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:2000])  # cut off
    word = tmp_path / "error.json"  # torchrun ends with it
    found = infer(folder, "-o", out, "--model", model, "--no-picture", check=False, env={ELASTIC: str(word)})
    assert found.returncode == 1 and "b.nii.gz" in found.stderr and "1 of 3" in found.stderr
    assert json.loads(word.read_text())["message"]["message"].startswith("1 of 3 scans could not be segmented; ")
    masks = {name: out / f"{name}_lesion.nii.gz" for name in "abc"}
    assert masks["a"].is_file() and masks["c"].is_file() and not masks["b"].exists()
    stamp = masks["a"].stat().st_mtime_ns
    (folder / "b.nii.gz").unlink()
    again = infer(folder, "-o", out, "--model", model, "--no-picture")
    assert masks["a"].stat().st_mtime_ns == stamp and "exists, skipped" in again.stderr
    (folder / "d.nii.gz").write_bytes(b"nothing")
    found = infer(folder, "-o", out, "--model", model, "--no-picture", check=False)
    assert "1 of 3 scans could not be segmented (2 skipped)" in found.stderr
    (folder / "d.nii.gz").unlink()
    shares = [infer(folder, "-o", tmp_path / "shared", "--model", model, "--no-picture",
                    env={"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in (1, 0)]
    # The first process finds nobody at the other's part and does it as well; the second has nothing left to do.
    assert [[line.split(":")[0][-15:] for line in share.stdout.splitlines()] for share in shares] == [
        ["c_lesion.nii.gz", "a_lesion.nii.gz"], []]


@pytest.mark.parametrize(("make", "words"), [
    (lambda p, m: [p / "no.nii.gz", "--model", m], ["no.nii.gz", "no such file"]),
    (lambda p, m: ["--model", m], ["no scan given"]),
    (lambda p, m: [p / "a.nii.gz", "--model", p / "nothing"], ["nothing"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "--threshold", 2], ["--threshold", "2", "0 to 1"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "-o", p / "a.nii.gz"], ["is the scan itself"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "-o", p / ".." / p.name / "a.nii.gz"], ["is the scan itself"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "--threads", 0], ["--threads", "0"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "--threads", 10**6], ["--threads", "1 to 1024"]),
    (lambda p, m: [p / "a.nii.gz", p / "a.nii.gz", "--model", m], ["a_lesion.nii.gz", "both"]),
    (lambda p, m: [p / "a.nii.gz", p / "b.nii.gz", "--model", m, "-o", p / "one.nii.gz"], ["names one mask"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "--max_memory", "lots"], ["--max_memory", "lots", "2GB"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "--device", "warp9"], ["--device", "warp9"]),
    (lambda p, m: [p / "a.nii.gz", "--device", "warp9"], ["--device", "warp9"]),  # the built-in network
    (lambda p, m: [p / "typo" / "no.nii.gz", "--model", m], ["no.nii.gz", "no such file"]),  # and no folder is made
    (lambda p, m: [",".join([str(p / "no.nii.gz")] * 300), "--model", m], ["no.nii.gz", "no such file"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "-o", "/proc/nothing/x"], ["/proc/nothing", "-o"]),
])
def test_a_mistake_is_one_line(model, tmp_path, make, words):
    scan_file(tmp_path / "a.nii.gz")
    found = infer(*make(tmp_path, model), check=False)
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert all(word in found.stderr for word in words), found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_a_folder_with_the_name_of_the_mask_is_not_found_out_after_the_computing(model, tmp_path):
    scan_file(tmp_path / "a.nii.gz")
    (tmp_path / "m.nii.gz").mkdir()
    found = infer(tmp_path / "a.nii.gz", "--model", model, "-o", tmp_path / "m.nii.gz", check=False)
    assert found.returncode == 2 and "is a folder" in found.stderr and found.stderr.count("\n") == 1


def test_a_reader_that_leaves_ends_it_without_a_traceback(root):
    reading, writing = os.pipe()
    os.close(reading)
    found = subprocess.run([sys.executable, "infer.py", "--list_models"], cwd=root, stdout=writing,
                           stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (found.returncode, found.stderr) == (141, "")


def test_a_terminal_shows_how_far_a_folder_is(root, model, tmp_path):
    """In a line that is gone once a scan is done; a log file has the lines of the scans alone."""
    for name in "abc":
        scan_file(tmp_path / f"{name}.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes(b"nothing")
    given = [sys.executable, "infer.py", tmp_path, "--model", model, "--no-picture", "--overwrite"]
    main, end = os.openpty()
    found = subprocess.run(given, cwd=root, stdout=subprocess.PIPE, stderr=end, text=True, check=False,
                           env={**os.environ, "TERM": "xterm", "NO_COLOR": ""})
    os.close(end)
    shown = os.read(main, 10_000).decode()
    os.close(main)
    for line in ("0 of 3 scans done; at ", "2 of 3 scans done, about 1 min left; at "):
        assert line in shown, shown
    assert "\r\x1b[K\x1b[31merror:\x1b[0m " in shown and len(found.stdout.splitlines()) == 2
    assert "scans done" not in infer(*given[2:], check=False).stderr


def test_the_line_of_a_scan_does_not_praise_its_mask():
    """A quality that is computed from the model's own probabilities is high where these are wrong: it is in --json
    and the table alone."""
    result = {"mask": "m.nii", "volume_ml": 2.0, "lesions": 1, "seconds": 1.5, "remarks": [], "quality": 0.714}
    assert result_line(result, {"lesion": 2.0}) == "m.nii: 2.00 mL in 1 lesion (1.5 s)"
    assert result_line(result | {"lesions": 0, "volume_ml": 0.0}, {"lesion": 0.0}) == (
        "m.nii: 0.00 mL; nothing marked (1.5 s)")


def test_any_spelling_of_the_ending_is_a_scan(tmp_path):
    model = bright_model(tmp_path / "model")
    (tmp_path / "in").mkdir()
    scan_file(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "a.nii.gz").rename(tmp_path / "in" / "A.NII.GZ")
    infer(tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--no-picture")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["A_lesion.nii.gz"]


def test_subfolders_are_searched_and_kept(model, tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    for name in ("sub-1", "sub-2/ses-a", ".trash"):
        (scans / name).mkdir(parents=True)
        scan_file(scans / name / "T2w.nii.gz")
    (scans / "sub-1/T2w_lesion.nii.gz").write_bytes((scans / "sub-1/T2w.nii.gz").read_bytes())  # passed over
    infer(scans, "-o", out, "--model", model, "--no-picture")
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.nii.gz") if ".meshnet" not in path.parts) == [
        "sub-1/T2w_lesion.nii.gz", "sub-2/ses-a/T2w_lesion.nii.gz"]


def test_it_says_what_comes_next(model, tmp_path):
    """On standard error, so that standard output has a line for each scan."""
    (tmp_path / "scans").mkdir()
    for name in ("scans/a", "scans/b", "c"):
        scan_file(tmp_path / f"{name}.nii.gz")
    one = infer(tmp_path / "c.nii.gz", "--model", model)
    assert one.stderr.splitlines()[-1] == (
        f"Next: look at {tmp_path}/c_lesion.png; a lower --threshold marks more, a higher one less")
    other = infer((tmp_path / "c.nii.gz").rename(tmp_path / "c_FLAIR.nii.gz"), "--model", model, "--no-picture")
    assert other.stderr.splitlines()[-1] == "Next: another model: python infer.py --list_models"
    (tmp_path / "c_FLAIR.nii.gz").rename(tmp_path / "c.nii.gz")
    two = infer(tmp_path / "scans", "--model", model, "--no-picture")
    assert two.stderr.splitlines()[-1] == (
        f"Next: python infer.py {tmp_path}/scans --model {model} --no-picture -o masks --report")
    assert len(two.stdout.splitlines()) == 2
    assert "Next" not in infer(tmp_path / "c.nii.gz", "--model", model, "--json", "--overwrite").stderr
