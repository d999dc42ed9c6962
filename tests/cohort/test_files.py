"""Which files make a case, and what its mask is called."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bright import bright_model, infer, scan_file

from meshnet.cohort.files import case_name, check_order, find_scans, plan_masks, stem
from meshnet.cohort.said import MOST_LINES, report_all
from meshnet.errors import UserError
from meshnet.scans.ours import carries_our_name, signed

TWO = ["FLAIR", "T2w"]


def made(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(*names, channels=TWO):
    cases, _ = find_scans([str(name) for name in names], lambda: channels)
    return [[str(path) for path in case] for case in cases]


@pytest.mark.parametrize("given", [
    ["FLAIR=f.nii.gz", "T2w=t.nii.gz"], ["T2w=t.nii.gz", "FLAIR=f.nii.gz"], ["t2=t.nii.gz,flair=f.nii.gz"]])
def test_channels_by_name_come_in_the_models_order(given):
    assert found(*given) == [["f.nii.gz", "t.nii.gz"]]


def test_a_name_that_comes_again_begins_the_next_case():
    assert found("FLAIR=a", "T2w=b", "T2w=c", "FLAIR=d", "e,f") == [["a", "b"], ["d", "c"], ["e", "f"]]
    assert found("FLAIR=a", channels=["T1w, T2w, FLAIR or DWI"]) == [["a"]]


@pytest.mark.parametrize("given, words", [
    (["FLAIR=a"], "FLAIR=a: found no channel T2w, expected FLAIR, T2w"),
    (["FLAIR=a", "T2w=b", "DWI=c"], "DWI=c: found the channel DWI, expected FLAIR, T2w"),
    (["s_T2w.nii,s_FLAIR.nii"], "s_T2w.nii: given as channel FLAIR, but its name says T2w")])
def test_channels_that_do_not_fit_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        found(*given)
    check_order([Path("a.nii"), Path("b.nii")], TWO)  # names that say nothing are taken in their order


def test_an_argument_with_an_equals_sign_may_be_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(made(tmp_path, "T2w=a.nii.gz"))
    assert found("T2w=a.nii.gz", channels=["T2w"]) == [["T2w=a.nii.gz"]]


def test_a_folder_is_grouped_by_the_channel_in_the_names(tmp_path, capsys):
    made(tmp_path, "sub-1/FLAIR.nii.gz", "sub-1/T2w.nii.gz", "sub-1/lesion_mask.nii.gz", "b/x_T2w.nii", "b/x_FLAIR.nii",
         "b/y_FLAIR.nii", "b/notes.nii", "b/x_FLAIR_lesion.nii.gz")
    cases = found(tmp_path)
    assert [[path.removeprefix(f"{tmp_path}/") for path in case] for case in cases] == [
        ["b/x_FLAIR.nii", "b/x_T2w.nii"], ["sub-1/FLAIR.nii.gz", "sub-1/T2w.nii.gz"]]
    said = capsys.readouterr().err
    assert "passed over as masks by their names: lesion_mask.nii.gz" in said
    assert "left out, as none or not all of the channels FLAIR, T2w: notes.nii, y_FLAIR.nii" in said
    with pytest.raises(UserError, match=r"found no case with the channels T1w, DWI .*sub-1_T1w.nii.gz"):
        found(tmp_path, channels=["T1w", "DWI"])
    assert len(found(tmp_path, channels=["T2w"])) == 6  # of one channel: every scan, but no mask


@pytest.mark.parametrize("names, expected", [
    (["s/FLAIR.nii.gz", "s/T2w.nii.gz"], "s"), (["a_1_T1w.nii", "a_1_T2w.nii"], "a_1"), (["p.nii", "q.nii"], "p"),
    (["sub-1_FLAIR.nii"], "sub-1_FLAIR")])
def test_a_mask_is_named_after_the_case(names, expected, tmp_path):
    assert case_name([tmp_path / name for name in names]) == expected


def test_patients_with_the_same_file_names_get_masks_of_their_own(tmp_path):
    made(tmp_path, "sub-1/FLAIR.nii", "sub-2/FLAIR.nii")
    cases = [[tmp_path / f"sub-{k}/FLAIR.nii"] for k in (1, 2)]
    masks = [plan["mask"] for plan in plan_masks(cases, {}, str(tmp_path / "out"))]
    assert [stem(path) for path in masks] == ["sub-1_FLAIR_lesion", "sub-2_FLAIR_lesion"]
    with pytest.raises(UserError, match="is the mask of both"):
        plan_masks([cases[0], cases[0]], {}, str(tmp_path / "out"))


def test_a_scan_given_twice_is_said_to_be(tmp_path, monkeypatch):
    """By another spelling, and in a folder that is given besides; two scans of one name are not one."""
    monkeypatch.chdir(made(tmp_path, "a/x.nii", "y.nii", "y.nii.gz"))
    for given in (["y.nii", "./y.nii"], ["a/x.nii", "a"], ["a", tmp_path / "a"], ["T2w=y.nii", "T2w=y.nii"]):
        cases, below = find_scans([str(name) for name in given], lambda: ["T2w"])
        with pytest.raises(UserError, match=r"is the mask of both .* one scan that is given twice; leave one of them"):
            plan_masks(cases, below, None)
    with pytest.raises(UserError, match=r"both y.nii and y.nii.gz; segment them in two commands with different -o"):
        plan_masks([[Path("y.nii")], [Path("y.nii.gz")]], {}, None)


def test_a_mask_in_a_list_is_passed_over_by_its_name_where_a_scan_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(made(tmp_path, "FLAIR.nii", "T1.nii", "lesion_mask.nii"))
    assert found("FLAIR.nii", "T1.nii", "lesion_mask.nii", channels=["T2w"]) == [["FLAIR.nii"], ["T1.nii"]]
    assert "the files given: passed over as masks by their names: lesion_mask.nii; give" in capsys.readouterr().err
    assert found("lesion_mask.nii", channels=["T2w"]) == [["lesion_mask.nii"]] and not capsys.readouterr().err


def test_a_list_is_grouped_as_a_folder_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(made(tmp_path, "b/FLAIR.nii", "b/T2w.nii", "x_T2w.nii", "x_FLAIR.nii", "x_DWI.nii", "m.nii",
                           "n.nii", "x_roi.nii"))
    assert found("x_DWI.nii", "b/T2w.nii", "x_T2w.nii", "b/FLAIR.nii", "x_FLAIR.nii", "x_roi.nii", "f,t") == [
        ["f", "t"], ["b/FLAIR.nii", "b/T2w.nii"], ["x_FLAIR.nii", "x_T2w.nii"], ["x_DWI.nii"]]
    assert "left out" not in capsys.readouterr().err
    assert found("m.nii", "n.nii") == [["m.nii"], ["n.nii"]]  # of four dimensions, perhaps
    with pytest.raises(UserError, match=r"cases\.csv: found a table or a list, expected scans; give the files"):
        found("cases.csv")


def test_a_file_of_a_list_that_is_of_no_case_is_one_of_all_channels_or_fails(tmp_path):
    model = bright_model(tmp_path / "model", channels=2)
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace("channel0", "T2w").replace("channel1", "FLAIR"))
    names = ("s1_T2w", "s1_FLAIR", "s3_T2w")  # the last one lacks a channel
    scans = [scan_file(tmp_path / f"{name}.nii.gz") for name in names]
    image = nib.load(scans[0])
    data = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.stack([data, data], -1), image.affine), tmp_path / "s2.nii.gz")
    found = infer(*scans, tmp_path / "s2.nii.gz", "-o", tmp_path / "out", "--model", model, "--no-picture", check=False)
    assert found.returncode == 1 and "s3_T2w.nii.gz: found 1 channel(s), expected 2 (T2w, FLAIR); give" in found.stderr
    rows = list(csv.DictReader((tmp_path / "out" / "lesions.csv").open()))
    assert [(Path(row["mask"]).name, bool(row["error"])) for row in rows] == [
        ("s1_lesion.nii.gz", False), ("s2_lesion.nii.gz", False), ("", True)]


def test_masks_of_bids_are_passed_over(tmp_path, capsys):
    made(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz", "sub-1/anat/sub-1_label-lesion_roi.nii.gz",
         "sub-1/anat/sub-1_label-L_desc-T1lesion_T2w.nii.gz", "sub-1/anat/sub-1_lesionmask.nii.gz",
         "sub-1/anat/sub-1_desc-x_ROI.nii.gz", "sub-1/anat/sub-1_acq-label_T2w.nii.gz")
    scans = sorted(str(path) for path in tmp_path.rglob("*_T2w.nii.gz") if "label-" not in path.name)
    assert len(scans) == 2 and [case[0] for case in found(tmp_path, channels=["T2w"])] == scans
    listed = [str(path) for path in sorted(tmp_path.rglob("*.nii.gz"))]
    assert [case[0] for case in found(*listed, channels=["T2w"])] == scans
    assert capsys.readouterr().err.count("passed over as masks by their names: sub-1_desc-x_ROI.nii.gz, ") == 2


def test_infer_says_which_file_is_which_channel(tmp_path):
    model = bright_model(tmp_path / "model", channels=2)
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(text.replace("channel0", "T2w").replace("channel1", "FLAIR"))
    scan_file(tmp_path / "a_FLAIR.nii.gz", bright=(slice(30, 34),) * 3)
    scan_file(tmp_path / "a_T2w.nii.gz")
    done = infer(f"FLAIR={tmp_path}/a_FLAIR.nii.gz", f"T2w={tmp_path}/a_T2w.nii.gz", "--model", model, "--no-picture")
    assert f"T2w = {tmp_path}/a_T2w.nii.gz, FLAIR = {tmp_path}/a_FLAIR.nii.gz" in done.stderr
    mask = np.asarray(nib.load(tmp_path / "a_lesion.nii.gz").dataobj)
    bright = np.asarray(nib.load(tmp_path / "a_T2w.nii.gz").dataobj) == 1000  # the network's first channel
    assert 2 * (mask * bright).sum() / (mask.sum() + bright.sum()) > 0.75


def test_scans_whose_names_end_as_masks_do_are_said(tmp_path, capsys):
    """``x_lesion`` beside ``x`` is a mask of x; alone it may be a scan that somebody called so."""
    made(tmp_path, "x.nii.gz", "x_lesion.nii.gz", "pat1_lesion.nii.gz")
    (tmp_path.parent / "elsewhere").mkdir()
    made(tmp_path.parent / "elsewhere", "z.nii")
    (tmp_path / "far").symlink_to(tmp_path.parent / "elsewhere")
    assert found(tmp_path, channels=["T2w"]) == [[f"{tmp_path}/far/z.nii"], [f"{tmp_path}/x.nii.gz"]]
    assert "passed over as masks by their names: pat1_lesion.nii.gz; give a file by itself" in capsys.readouterr().err


def test_a_channel_named_twice_in_one_case_is_refused():
    with pytest.raises(UserError, match="FLAIR=a,FLAIR=b: names FLAIR twice, expected each channel once"):
        found("FLAIR=a,FLAIR=b")


def test_workers_share_the_scans_and_say_things_once(tmp_path, capfd):
    """Both processes of one command; a bad scan costs the others nothing, and a mistake is one line."""
    model, scans = bright_model(tmp_path / "model"), tmp_path / "scans"
    scans.mkdir()
    for name in "abc":
        scan_file(scans / f"{name}.nii.gz")
    (scans / "b.nii.gz").write_bytes(b"nothing")
    (scans / "a_mask.nii.gz").touch()
    done = infer(scans, "-o", tmp_path / "out", "--model", model, "--no-picture", "--workers", 2, check=False)
    said = done.stderr + done.stdout + "".join(capfd.readouterr())  # of the first process, and of those it started
    assert done.returncode == 1, said
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a_lesion.nii.gz", "c_lesion.nii.gz"]
    for once in ("passed over as masks", "b.nii.gz: found no NIfTI", "2 scans, 1 failed"):
        assert said.count(once) == 1, said
    lines = done.stdout.splitlines()  # of a short list all that one process says, whichever process did a scan
    head = f"{model}: marks lesion (disease not stated) on T2w scans; from probability 0.5; all sizes are kept"
    assert head in lines, said
    for name in "ac":
        mask = tmp_path / f"out/{name}_lesion.nii.gz"
        assert [line for line in lines if line.startswith(f"{mask}: ") and " mL in 1 lesion" in line], said
    assert done.stderr.splitlines()[-1] == (
        f"Next: python infer.py {scans} -o {tmp_path}/out --model {model} --no-picture --workers 2 --report")
    found = infer(scans, "--model", model, "--workers", 2, check=False)
    assert found.returncode == 2 and "of a command with --workers, such as -o masks" in found.stderr
    assert found.returncode == 2 and found.stderr.count("-o: expected a folder for the masks") == 1


def test_of_a_short_list_the_last_job_says_each_scan(capsys):
    known = {"scan": ["a.nii"], "mask": "a_lesion.nii", "volume_ml": 2.0, "lesions": 1, "seconds": 1.5, "remarks": [],
             "warnings": ["do not use the mask"], "expect": "Dice 0.6", "contrast": "T1w", "command": "now"}
    cases = [known, known | {"command": "before"}, {"mask": "b_lesion.nii", "volume_ml": 1.0}]
    report_all("the model", cases, 1, "now", "lesion")
    out, errors = capsys.readouterr()
    assert out.splitlines() == [
        "the model", "a_lesion.nii: 2.00 mL in 1 lesion; looks like T1w (1.5 s)",
        *(f"{name}_lesion.nii: exists, skipped; --overwrite replaces it" for name in "ab")]
    assert errors.splitlines() == ["warning: a.nii: do not use the mask", "T1w: Dice 0.6"]
    report_all("the model", [known] * MOST_LINES, 1, "now", "lesion")
    assert capsys.readouterr() == ("", "")


def test_its_own_masks_are_no_scans_in_a_folder_and_in_a_list(tmp_path, capsys):
    """As ``infer.py folder/*.nii.gz`` is typed a second time; whatever the masks are called, corrected or not."""
    scan, outline = scan_file(tmp_path / "x.nii.gz"), scan_file(tmp_path / "x_mask.nii.gz")
    mask = signed(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)))
    corrected = nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4), mask.header)
    (tmp_path / "masks").mkdir()
    for path, image in (("x_lesion.nii.gz", mask), ("masks/mine.nii", mask), ("corrected.nii", corrected)):
        nib.save(image, tmp_path / path)
    every = sorted(str(path) for path in tmp_path.rglob("*.nii*"))
    for given, where in (([str(tmp_path)], tmp_path), (every, "the files given")):
        assert find_scans(given, lambda: ["T2w"])[0] == [[scan]]
        said = capsys.readouterr().err
        assert f"note: {where}: left out, as 3 files that this program wrote: corrected.nii, mine.nii, x_les" in said
        assert f"note: {where}: passed over as masks by their names: x_mask.nii.gz; give a file by itself" in said
    assert found(outline, channels=["T2w"]) == [[str(outline)]]
    other, model = scan_file(tmp_path / "y.nii.gz"), bright_model(tmp_path / "model")
    told = infer(*every, other, "--model", model, "--no-picture")
    assert told.stderr.splitlines()[-1] == (
        f"Next: python infer.py {scan} {other} --model {model} --no-picture -o masks --report")
    other.unlink()
    for given in (tmp_path / "corrected.nii", tmp_path / "masks/mine.nii"):
        with pytest.raises(UserError, match=f"{given}: found a mask or .* that this program wrote, expected a scan"):
            found(given, channels=["T2w"])
    with pytest.raises(UserError, match=r"found no \.nii or \.nii\.gz file but 1 mask in this folder"):
        found(tmp_path / "masks", channels=["T2w"])


@pytest.mark.parametrize("form", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_mask_of_this_program_is_known_by_either_header(form, order, ending, tmp_path):
    image = form(np.ones((4, 4, 4), np.uint8), np.eye(4), form.header_class(endianness=order))
    nib.save(image, tmp_path / f"scan{ending}")
    nib.save(signed(image), tmp_path / f"mask{ending}")
    assert carries_our_name(tmp_path / f"mask{ending}") and not carries_our_name(tmp_path / f"scan{ending}")
