"""prepare.py from its command line: what it writes, what it redoes, and how it ends on bad input."""

import csv
import errno
import gzip
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from cascades import write_cascade
from stand_in import wait_for

import prepare
from meshnet.config import Config
from meshnet.data import row, schema
from meshnet.data.splits import fold_subjects, load_splits
from meshnet.errors import run_script
from meshnet.scans.grid import Grid, conform, conform_mask, to_native
from meshnet.scans.head import head_box
from meshnet.scans.nifti import read_image
from meshnet.training.assemble import model_card

SYNTHETIC = ["--format", "synthetic", "--cases", "6", "--voxel_mm", "8", "--outer", "2", "--inner", "2"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Call prepare.py's main with arguments, in this process: (exit code, stdout, lines of stderr)."""

    def call(*arguments, workers=1):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, arguments), "--workers", str(workers)])
        with pytest.raises(SystemExit) as ended:
            run_script(prepare.main)
        captured = capsys.readouterr()
        # The progress bar draws with carriage returns; messages are lines.
        lines = [line for line in captured.err.splitlines() if line and "case/s" not in line and "s/case" not in line]
        return ended.value.code, captured.out, lines

    return call


def save(path, data, affine=None, codes=1) -> None:
    image = nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1]) if affine is None else affine)
    image.set_sform(image.affine, codes)
    image.set_qform(image.affine, codes)
    nib.save(image, path)


def head(seed) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x, y, z = np.indices((24, 26, 22))
    inside = ((x - 12) / 9) ** 2 + ((y - 13) / 10) ** 2 + ((z - 11) / 8) ** 2 < 1
    return (inside * (50 + 20 * rng.random(inside.shape)) + rng.random(inside.shape)).astype(np.float32)


def lesion(seed) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros((24, 26, 22), np.uint8)
    x, y, z = rng.integers(6, 14, 3)
    mask[x : x + 3, y : y + 4, z : z + 2] = 1
    return mask


@pytest.fixture
def table(tmp_path):
    """A table of four good cases; ``add`` appends a line with its own image or mask."""

    class Table:
        path = tmp_path / "cases.csv"
        lines = []  # noqa: RUF012 (a fresh class each test)

        def add(self, name, image=None, mask=None, **save_options):
            seed = 100 + len(self.lines)  # a scan of its own: the same one twice would be said to be one patient
            image, mask = head(seed) if image is None else image, lesion(0) if mask is None else mask
            for kind, data in (("T2w", image), ("mask", mask)):
                target = tmp_path / f"{name}_{kind}.nii.gz"
                if isinstance(data, bytes):
                    target.write_bytes(data)
                else:
                    save(target, data, **(save_options if kind == "T2w" else {}))
            self.lines.append([name, f"{name}_T2w.nii.gz", f"{name}_mask.nii.gz", "AB"[len(self.lines) % 2]])
            with open(self.path, "w", newline="") as handle:
                csv.writer(handle).writerows([["subject", "image", "mask", "site"], *self.lines])

    made = Table()
    for i in range(4):
        made.add(f"good{i}", head(i), lesion(i))
    return made


def options(out, *more):
    return ["--format", "table", "--out", out, "--voxel_mm", "4", "--outer", "2", "--inner", "1", *more]


def shards(out) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (Path(out) / "shards").iterdir()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["prepare.py", *SYNTHETIC, "--out", str(out), "--workers", "1"])
        assert prepare.main() == 0
    return out


def test_what_is_said_of_folds_that_validate_on_the_training_cases(run, tmp_path):
    data, pages = SYNTHETIC[:-4], "--no-pictures"
    _, text, _ = run(*data, "--outer", 2, "--inner", 1, pages, "--out", tmp_path / "one")
    assert "fold 1: 3 to train on, 3 to validate (on the training cases: an upper bound), 3 to test\n" in text
    _, text, _ = run(*SYNTHETIC, pages, "--out", tmp_path / "two")
    assert "to validate, 3 to test" in text and "upper bound" not in text


def test_rows_hold_the_conformed_case_and_where_it_came_from(tiny):
    from meshnet.data.synthetic.case import make_case

    data, prepared = schema.load_dataset(tiny)
    assert len(data) == 6 and set(data.column_names) == set(schema.features([]))
    row = data[1]
    image, mask, _ = make_case(1, 8.0, "demo")
    conformed = np.asarray(conform(image, Grid(8.0), exact=False).dataobj)
    assert row["case"] == row["subject"] == "synthetic-000001"
    assert np.frombuffer(row["image"], row["image_dtype"]).reshape(row["image_shape"]).tolist() == [conformed.tolist()]
    assert row["mask"] == np.asarray(conform_mask(mask, Grid(8.0)).dataobj).tobytes()
    assert row["mask_native"] == np.asarray(mask.dataobj).tobytes() and row["native_shape"] == [32, 32, 32]
    assert row["lesion_voxels"] == np.asarray(mask.dataobj).sum()
    assert row["lesion_ml"] == pytest.approx(row["lesion_voxels"] * 0.512)
    np.testing.assert_allclose(np.reshape(row["native_affine"], (4, 4)), image.affine)
    assert prepared["channels"] == ["T2w"] and prepared["classes"] == ["background", "lesion"]
    assert prepared["shape"] == [32, 32, 32] and prepared["scaling"] == "conform_uint8"
    boxes = np.array(data["head_box"])
    assert prepared["box"] == [*np.stack([boxes[:, ::2].min(0), boxes[:, 1::2].max(0)], 1).ravel()]
    for i in range(6):
        box = np.reshape(data[i]["head_box"], (3, 2))
        smallest = np.array(head_box(schema.volume(data, i, "image")[0]))
        assert (box[:, 0] <= smallest[:, 0]).all() and (box[:, 1] >= smallest[:, 1]).all()
        mask = schema.volume(data, i, "mask")
        assert mask.sum() == mask[tuple(slice(*b) for b in box)].sum()


def test_volumes_are_views_on_the_mapped_file(tiny):
    data, _ = schema.load_dataset(tiny)
    picked, maps = data.select([4, 2]), Path("/proc/self/maps")
    for i, j in ((0, 4), (1, 2)):
        for column in schema.VOLUMES:
            view = schema.volume(picked, i, column)
            assert not view.flags.writeable and view.tobytes() == data[j][column]
            shard = Path(data.cache_files[j]["filename"]).name
            address = view.ctypes.data
            spans = [line.split()[0].split("-") for line in maps.read_text().splitlines() if shard in line]
            assert any(int(low, 16) <= address < int(high, 16) for low, high in spans)
    with pytest.raises(ValueError, match="none of"):
        schema.volume(data, 0, "case")


def test_splits_cover_the_subjects_of_the_dataset(tiny):
    data, _ = schema.load_dataset(tiny)
    splits = load_splits(tiny / "splits.json")
    parts = fold_subjects(splits, 1, 1)
    assert sorted(s for p in parts.values() for s in p) == sorted(data["subject"]) and splits["outer"] == 2


def test_the_same_command_again_does_nothing_and_other_settings_do(table, tmp_path, run):
    out = tmp_path / "out"
    assert run(table.path, *options(out))[0] == 0
    before, prepared = shards(out), json.loads((out / "prepared.json").read_text())
    code, text, _ = run(table.path, *options(out))
    assert code == 0 and "4 of 4 cases ready" in text and shards(out) == before
    assert json.loads((out / "prepared.json").read_text()) == prepared
    assert run(table.path, *options(out, "--scaling", "minmax"))[0] == 0
    assert not set(shards(out)) & set(before) and len(shards(out)) == 4
    data, changed = schema.load_dataset(out)
    assert changed["fingerprint"] != prepared["fingerprint"] and data[0]["image_dtype"] == "float32"


def test_only_the_case_that_changed_is_redone(table, tmp_path, run):
    out = tmp_path / "out"
    assert run(table.path, *options(out, "--group", "site"))[0] == 0
    before = shards(out)
    save(tmp_path / "good2_mask.nii.gz", lesion(9))
    assert run(table.path, *options(out, "--group", "site"))[0] == 0
    after = shards(out)
    assert len(set(before.items()) & set(after.items())) == 3 and len(after) == 4
    data, prepared = schema.load_dataset(out)
    assert data[2]["mask_native"] == lesion(9).tobytes()
    assert data["group_site"][:] == ["A", "B", "A", "B"] and prepared["groups"] == ["site"]


def test_two_real_modalities_become_two_channels(shared_data, tmp_path, run):
    lines = [["subject", "image_FLAIR", "image_T2w", "mask"]]
    folders = sorted((shared_data / "ms").iterdir())[:2]
    lines += [[f.name, f / "FLAIR.nii.gz", f / "T2w.nii.gz", f / "lesion_mask.nii.gz"] for f in folders]
    with open(tmp_path / "t.csv", "w", newline="") as handle:
        csv.writer(handle).writerows(lines)
    out = tmp_path / "out"
    code, _, errors = run(tmp_path / "t.csv", "--format", "table", "--out", out, "--voxel_mm", "2", "--outer", "1",
                          "--inner", "1")
    assert code == 0, errors
    data, prepared = schema.load_dataset(out)
    assert prepared["channels"] == ["FLAIR", "T2w"] and data[0]["image_shape"] == [2, 128, 128, 128]
    for i, folder in enumerate(folders):
        mask = read_image(folder / "lesion_mask.nii.gz", "mask")
        lesion_voxels = int((np.asarray(mask.dataobj) > 0).sum())
        assert data[i]["lesion_voxels"] == lesion_voxels and data[i]["lesion_ml"] == pytest.approx(lesion_voxels / 1000)
        affine = np.reshape(data[i]["conformed_affine"], (4, 4))
        back = to_native(schema.volume(data, i, "mask"), affine, mask)
        truth = schema.volume(data, i, "mask_native")
        assert 2 * (back & truth).sum() / (back.sum() + truth.sum()) > 0.5  # thin lesions on a coarser grid
        for channel, name in enumerate(("FLAIR", "T2w")):
            expected = conform(read_image(folder / f"{name}.nii.gz"), Grid(2.0), exact=False)
            assert (schema.volume(data, i, "image")[channel] == np.asarray(expected.dataobj)).all()


def test_averaged_voxels_and_the_card_of_a_model_trained_on_them(table, tmp_path, run):
    out = tmp_path / "out"
    for more, averaged in ((["--averaged"], True), ([], False)):
        code, _, errors = run(table.path, *options(out, *more))
        assert code == 0, errors
        data, prepared = schema.load_dataset(out)
        expected = conform(read_image(tmp_path / "good0_T2w.nii.gz"), Grid(4.0, averaged=averaged), exact=False)
        assert (schema.volume(data, 0, "image")[0] == np.asarray(expected.dataobj)).all()
        card = model_card(Config(), SimpleNamespace(info=prepared), None, {})
        assert card.grids()[0].averaged is averaged is prepared["averaged"]


def test_classes_by_labels(table, tmp_path, run):
    several = lesion(0) * 2
    several[12, 12, 12] = 7
    table.add("several", mask=several)
    code, _, errors = run(table.path, *options(tmp_path / "a"))
    assert code == 1 and "found the values 2, 7" in errors[0] and "--labels" in errors[0]
    code, _, _ = run(table.path, *options(tmp_path / "b"), "--labels", "1,2=1", "7=2", "--classes", "core", "rim")
    data, prepared = schema.load_dataset(tmp_path / "b")
    assert code == 0 and prepared["classes"] == ["background", "core", "rim"]
    classes = schema.volume(data, 4, "mask_native")
    assert (classes == np.where(several == 7, 2, several > 0)).all()
    assert set(np.unique(schema.volume(data, 4, "mask"))) <= {0, 1, 2}


def test_list_reads_no_volume(tmp_path, run):
    for name in ("sub-1/anat/sub-1_T2w.nii.gz", "derivatives/l/sub-1/sub-1_label-lesion_mask.nii.gz",
                 "sub-2/anat/sub-2_T2w.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    code, text, errors = run(tmp_path, "--format", "bids", "--suffix", "T2w", "--list")
    assert code == 0 and text.splitlines()[-1] == "1 pair(s), 1 left out, 0 failed"
    assert errors[-1].startswith("warning: nothing would be prepared: --outer 3: found 1 subject, expected at least 3")
    code, text, errors = run(tmp_path, "--format", "bids", "--suffix", "T2w", "--outer", 1, "--inner", 1, "--list")
    assert not errors and text.splitlines()[-1] == (
        f"Next: python prepare.py {tmp_path} --format bids --suffix T2w --outer 1 --inner 1 --workers 1 --out data/NAME"
    )
    assert text.startswith(f"sub-1\t{tmp_path}/sub-1/anat/sub-1_T2w.nii.gz\t")


def test_help_answers_at_once(root):
    """Nothing is imported that takes long."""
    code = ("import sys, runpy; sys.argv = ['prepare.py', '--help_all']\n"
            "try: runpy.run_path('prepare.py', run_name='__main__')\nexcept SystemExit: pass\n"
            "assert not {'torch', 'datasets', 'pyarrow', 'nibabel', 'numpy', 'scipy'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--split_seed" in done.stdout, done.stderr


def faults() -> dict:
    """What can be wrong with a case: image, mask, options for saving the image, and what the reason has to say."""
    packed = gzip.compress(nib.Nifti1Image(head(0), np.eye(4)).to_bytes())
    nan = head(0)
    nan[3, 3, 3] = np.nan
    inf = head(0)
    inf[3, 3, 3] = np.inf
    small = head(0) * 0
    small[3, 3, 3] = 1
    singular = nib.Nifti1Image(head(0), np.eye(4))
    singular.set_sform(np.eye(4), 1)
    singular.header["srow_y"] = 0
    singular = singular.header.binaryblock + b"\0" * 4 + head(0).tobytes("F")
    return {
        "truncated": (packed[:5000], None, {}, "truncated"),
        "text": (b"this is no scan", None, {}, "no NIfTI"),
        "volumes": (np.stack([head(0)] * 3, -1), None, {}, "found 4D data"),
        "nan": (nan, None, {}, "NaN"),
        "inf": (inf, None, {}, "NaN or infinite"),
        "small_mask": (small, None, {}, "holds no values but 0 and 1, and has the same value everywhere"),
        "zero": (head(0) * 0, None, {}, "every voxel is zero"),
        "no_affine": (None, None, {"codes": 0}, "no affine"),
        "singular": (gzip.compress(singular), None, {}, "singular affine"),
        "other_shape": (None, lesion(0)[:-1], {}, "another grid than its scan's"),
        "other_affine": (None, None, {"affine": np.diag([2.0, 2, 2.2, 1])}, "another grid than its scan's"),
        "empty_mask": (None, lesion(0) * 0, {}, "mask is empty"),
        "labels": (None, lesion(0) + 2 * lesion(3), {}, "--labels"),
    }


def test_bad_cases_are_listed_and_the_good_ones_kept(table, tmp_path, run):
    bad = faults()
    for name, (image, mask, save_options, _) in bad.items():
        table.add(name, image, mask, **save_options)
    code, text, errors = run(table.path, *options(tmp_path / "out"))
    warnings = [e for e in errors if e.startswith("warning")]  # of the good ones, which are smaller than a head
    assert len(warnings) == 4 and all("less than a head" in e for e in warnings)
    errors = [e for e in errors if e not in warnings]
    assert code == 1 and "4 cases" in text
    assert errors[-1] == f"{len(bad)} cases failed, listed above" and len(errors) == len(bad) + 1
    for name, (*_, reason) in bad.items():
        (line,) = [e for e in errors if f"{name}_" in e]
        assert re.search(reason, line) and line.startswith("failed\t"), line
    data, _ = schema.load_dataset(tmp_path / "out")
    assert data["case"][:] == [f"good{i}" for i in range(4)]
    assert len(shards(tmp_path / "out")) == 4


@pytest.mark.parametrize("name", sorted(faults().keys() - {"small_mask"}))  # that is one on a coarse grid alone
def test_a_lone_bad_case_is_one_error_and_no_dataset(table, tmp_path, run, name):
    image, mask, save_options, _ = faults()[name]
    table.lines.clear()
    table.add("lone", image, mask, **save_options)
    code, _, errors = run(table.path, "--format", "table", "--out", tmp_path / "out", "--outer", "1", "--inner", "1")
    assert code == 2 and len(errors) == 2 and errors[1].startswith("error: ")
    assert not list((tmp_path / "out").glob("*.json")) and not shards(tmp_path / "out")


def test_the_head_box_holds_a_lesion_at_its_edge(table, tmp_path, run):
    image, edge = (np.pad(volume, 20) for volume in (head(0), lesion(0)))
    edge[2, 60, 30] = 1  # in the air, where no head box reaches by itself
    table.add("zedge", image, edge)
    assert run(table.path, *options(tmp_path / "out", "--voxel_mm", "2"))[0] == 0
    data, _ = schema.load_dataset(tmp_path / "out")
    for i in range(5):
        box = np.reshape(data[i]["head_box"], (3, 2))
        mask = schema.volume(data, i, "mask")
        assert mask.sum() == mask[tuple(slice(*b) for b in box)].sum() > 0


def test_empty_masks_are_kept_on_request(table, tmp_path, run):
    table.add("healthy", mask=lesion(0) * 0)
    assert run(table.path, *options(tmp_path / "out", "--allow_empty"))[0] == 0
    data, _ = schema.load_dataset(tmp_path / "out")
    assert data[4]["lesion_voxels"] == 0 and data[4]["lesion_ml"] == 0


def test_a_mask_with_a_broken_slope_works(table, tmp_path, run):
    mask = nib.Nifti1Image(lesion(1), np.diag([2.0, 2, 2, 1]))
    mask.set_sform(mask.affine, 1)
    for field, value in (("scl_slope", 0.017), ("scl_inter", 0), ("vox_offset", 352)):
        mask.header[field] = value
    content = mask.header.binaryblock + b"\0" * 4 + lesion(1).tobytes("F")
    assert np.asanyarray(nib.Nifti1Image.from_bytes(content).dataobj).max() == pytest.approx(0.017)
    table.add("slope", mask=gzip.compress(content))
    assert run(table.path, *options(tmp_path / "out"))[0] == 0
    data, _ = schema.load_dataset(tmp_path / "out")
    assert data[4]["mask_native"] == lesion(1).tobytes()


def test_two_scans_for_one_mask_fail_alone(tmp_path, run):
    for i in (1, 2):
        folder = tmp_path / f"bids/sub-{i}/anat"
        folder.mkdir(parents=True)
        save(folder / f"sub-{i}_run-1_T2w.nii.gz", head(i))
        masks = tmp_path / f"bids/derivatives/lesion/sub-{i}"
        masks.mkdir(parents=True)
        save(masks / f"sub-{i}_label-lesion_mask.nii.gz", lesion(i))
    save(tmp_path / "bids/sub-2/anat/sub-2_run-2_T2w.nii.gz", head(3))
    command = [tmp_path / "bids", "--format", "bids", "--suffix", "T2w", "--voxel_mm", "4", "--outer", "1", "--inner",
               "1", "--out", tmp_path / "out"]
    code, _, errors = run(*command)
    assert code == 1 and "2 T2w scans match it" in errors[0]
    assert schema.load_dataset(tmp_path / "out")[0]["subject"][:] == ["1"]
    assert run(*command, "--exclude", "run=2")[0] == 0
    assert schema.load_dataset(tmp_path / "out")[0]["subject"][:] == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--format", "table", "--out", "o"], "found no PATH"),
        (["x", "--format", "synthetic", "--out", "o"], "found PATH x"),
        (["x", "--format", "bids", "--out", "o"], "--suffix: missing"),
        (["x", "--format", "table"], "--out: missing"),
        (["x", "--format", "table", "--out", "o"], "no such file or folder"),
        (["--format", "synthetic", "--out", "o", "--window", "80", "0"], "expected LOW < HIGH"),
        (["--format", "synthetic", "--out", "o", "--window", "0", "80", "--scaling", "minmax"], "leave one of them"),
        (["--format", "synthetic", "--out", "o", "--scaling", "window"], "--window LOW HIGH"),
        (["--format", "synthetic", "--out", "o", "--voxel_mm", "-1"], "voxel_mm"),
        (["--format", "synthetic", "--out", "o", "--orientation", "ABC"], "orientation"),
        (["--format", "synthetic", "--out", "o", "--cases", "0"], "--cases 0"),
        (["--format", "synthetic", "--out", "o", "--cases", "2"], "--outer 3: found 2 subject"),
        (["--format", "synthetic", "--out", "o", "--labels", "x"], "--labels"),
        (["--format", "synthetic", "--out", "o", "--exclude", "acq"], "expected ENTITY=VALUE"),
    ],
)
def test_wrong_flags_are_one_line_and_write_nothing(tmp_path, monkeypatch, run, arguments, fault):
    monkeypatch.chdir(tmp_path)
    code, _, errors = run(*arguments)
    assert code == 2 and len(errors) == 1 and fault in errors[0] and errors[0].startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_an_unknown_group_names_the_known_ones(table, tmp_path, run):
    code, _, errors = run(table.path, *options(tmp_path / "out", "--group", "scanner"))
    assert code == 2 and errors == ["error: --group: found 'scanner', expected one of site"]
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_used(table, tmp_path, run):
    file = tmp_path / "file"
    file.touch()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.doc").touch()
    for out, fault in ((file, "is a file"), (file / "below", "Not a directory"), (foreign, "found other files")):
        code, _, errors = run(table.path, *options(out))
        assert code == 2 and len(errors) == 1 and str(out) in errors[0] and fault in errors[0]
    if os.geteuid() != 0:  # root may write everywhere
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        code, _, errors = run(table.path, *options(locked / "out"))
        assert code == 2 and "Permission denied" in errors[0]


def test_a_disk_that_fills_is_one_line_and_leaves_no_half_file(table, tmp_path, run, monkeypatch):
    out = tmp_path / "out"
    calls, write = [], row._as_arrow

    def full(value, kind):
        if isinstance(value, np.ndarray):
            calls.append(1)
            if len(calls) > 7:  # in the middle of the third case
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(value, kind)

    monkeypatch.setattr(row, "_as_arrow", full)
    code, _, errors = run(table.path, *options(out))
    assert code == 2 and len(errors) == 1 and "No space left" in errors[0] and str(out) in errors[0]
    assert len(shards(out)) == 2 and not list(out.glob("*.json"))
    monkeypatch.setattr(row, "_as_arrow", write)  # room again
    code, text, _ = run(table.path, *options(out))
    assert code == 0 and "2 of 4 cases ready" in text


def test_a_real_write_that_fails_is_one_line_too(table, tmp_path, run):
    """The kernel refuses to let a file pass the limit: the error comes out of the write itself."""
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        code, _, errors = run(table.path, *options(out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2 and len(errors) == 1
    assert errors[0].startswith(f"error: {out}: cannot write (File too large)")
    assert not shards(out) and not list(out.glob("*.json"))


@pytest.mark.kills
def test_a_killed_run_goes_on_and_its_workers_end_with_it(table, tmp_path, root, run):
    for i in range(4, 30):
        table.add(f"more{i:02d}", head(i), lesion(i))
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "prepare.py", table.path, *options(out), "--workers", "2"]
    killed = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: list(out.glob("shards/[!.]*.arrow")) or killed.poll() is not None, 60, pause=0.002)
        children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    before = {n: t for n, t in shards(out).items() if not n.startswith(".")}
    assert 0 < len(before) < 30 and not (out / "prepared.json").exists() and children
    code, text, _ = run(table.path, *options(out))
    assert code == 0 and "ready from an earlier run" in text
    after = shards(out)
    assert before.items() <= after.items() and len(after) == 30
    assert run(table.path, *options(whole))[0] == 0
    for path in [p.relative_to(whole) for p in whole.rglob("*") if p.is_file()]:
        assert (out / path).read_bytes() == (whole / path).read_bytes(), path
    running = [Path(f"/proc/{c}/stat") for c in children]
    wait_for(lambda: not any(alive(p) for p in running))


def alive(stat: Path) -> bool:
    try:
        return stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_of_several_classes_one_is_the_lesion(tmp_path, run):
    """The preset with fluid keeps it as a class beside the lesion; volumes, and what is empty, are the lesion's."""
    flags = ["--format", "synthetic", "--cases", "6", "--synthetic_preset", "bright_fluid", "--voxel_mm", "8",
             "--outer", "1", "--inner", "1", "--out", tmp_path / "data"]
    code, _, lines = run(*flags)
    prepared = json.loads((tmp_path / "data" / "prepared.json").read_text())
    assert prepared["classes"] == ["background", "lesion", "fluid"] and prepared["marks"] == "lesion"
    table, _ = schema.load_dataset(tmp_path / "data")
    for number in range(len(table)):
        mask = schema.volume(table, number, "mask_native")
        assert table[number]["lesion_voxels"] == (mask == 1).sum() > 0 and (mask == 2).sum() > 0
    assert code == 1 and all("the mask is empty" in line for line in lines[:-1])  # the healthy ones of the six
    assert len(table) + len(lines) - 1 == 6

    code, _, lines = run(*flags[:-1], tmp_path / "other", "--marks", "csf")
    assert code == 2 and lines == ["error: --marks csf: found the class(es) lesion, fluid, expected one of them"]
    run(*flags[:-1], tmp_path / "other", "--allow_empty", "--marks", "fluid")
    table, info = schema.load_dataset(tmp_path / "other")
    assert info["marks"] == "fluid" and len(table) == 6
    assert all(row["lesion_voxels"] == (schema.volume(table, i, "mask_native") == 2).sum()
               for i, row in enumerate(table.select_columns(["lesion_voxels"])))


def time_points(root):
    """An nnU-Net folder of four patients with two time points; the first patient's are the same scan."""
    for i, name in enumerate(f"p{p}_t{t}" for p in range(4) for t in range(2)):
        for folder in ("imagesTr", "labelsTr"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        save(root / "imagesTr" / f"{name}_0000.nii.gz", head(max(i, 1)))
        save(root / "labelsTr" / f"{name}.nii.gz", lesion(i))
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T2w"}, "labels": {"background": 0}}))
    return [root, "--format", "nnunet", "--voxel_mm", "8", "--outer", "2", "--inner", "2"]


def test_time_points_of_a_patient_are_in_one_fold_and_it_is_said(tmp_path, run):
    flags = time_points(tmp_path / "raw")
    code, text, errors = run(*flags, "--list")
    assert code == 0 and "guessed for 2 cases (p0_t0, p0_t1): p0_t0, p0_t1 are of the same patient p0" in text
    assert sum("\t" in line for line in text.splitlines()) == 8
    assert [line.split("\t")[0] for line in errors] == ["note", "note"] and "hold the same scan" in errors[1]
    code, _, errors = run(*flags, "--out", tmp_path / "a")
    splits = load_splits(tmp_path / "a/splits.json")
    assert code == 0 and splits["together"] == [[f"p{p}_t0", f"p{p}_t1"] for p in range(4)]
    assert sum(line.startswith("note\t") for line in errors) == 2
    for fold in splits["folds"]:
        assert len({name[:2] for name in fold["test"]}) == len(fold["test"]) / 2
    code, _, errors = run(*flags, "--out", tmp_path / "b", "--apart")
    assert not [line for line in errors if line.startswith("note\t")]
    assert code == 0 and "together" not in load_splits(tmp_path / "b/splits.json")
    code, text, _ = run(*flags, "--out", tmp_path / "c", "--subject", r"(p\d)")
    assert code == 0 and "8 cases, 4 subjects" in text
    assert json.loads((tmp_path / "c/prepared.json").read_text())["source"]["subject"] == r"(p\d)"
    code, _, errors = run(*flags[:-4], "--outer", "5", "--inner", "1", "--out", tmp_path / "d")
    assert code == 2 and "found 4 subjects, those kept together counted as one (8 with --apart)" in errors[-1]


@pytest.mark.parametrize(("flags", "fault"), [
    (["--format", "synthetic", "--subject", "x"], "--subject: found --format synthetic, expected one of bids"),
    (["x", "--format", "hub", "--suffix", "T2w", "--image_pattern", "x"], "--image_pattern: found --format hub"),
    (["x", "--format", "msd", "--same", "space=rec"], "--same: found --format msd, expected one of bids"),
    (["x", "--format", "table", "--image_pattern", ""], "--out: missing"),
])
def test_corrections_that_a_format_cannot_have_are_refused(run, flags, fault):
    code, _, errors = run(*flags)
    assert code == 2 and len(errors) == 1 and fault in errors[0]


def test_scans_are_prepared_as_a_model_sees_them(table, tmp_path, run):
    """--like takes everything from the model's card; a flag still wins."""
    model = tmp_path / "model"
    model.mkdir()
    seen = {"voxel_mm": 8.0, "shape": [30, 31, 32], "orientation": "RAS", "averaged": True, "scaling": "minmax",
            "centre": "middle"}
    (model / "config.json").write_text(json.dumps(
        {"format": 1, "name": "meshnet", "arguments": {"channels": 3}, "channels": ["T2w"],
         "classes": ["background", "lesion"], **seen}))
    code, out, _ = run(table.path, "--like", model, "--out", tmp_path / "out", "--outer", 1, "--inner", 1,
                       "--no-pictures")
    info = json.loads((tmp_path / "out/prepared.json").read_text())
    assert code == 0 and {key: info[key] for key in seen} == seen
    assert "averaged, RAS, minmax" in out and f"--init {model} --recipe recipes/finetune.yaml" in out
    for flags in (["--orientation", "LIA"], ["--scaling", "quantile"], ["--window", "0", "90"]):
        code, out, _ = run(table.path, "--like", model, "--out", tmp_path / "other", "--outer", 1, "--inner", 1,
                           "--no-pictures", *flags)
        assert code == 0 and "--init would refuse it" in out and "finetune" not in out, flags
    two, one = write_cascade(tmp_path / "two", mirror=True), tmp_path / "windowed"
    one.mkdir()
    card = json.loads((model / "config.json").read_text()) | {"scaling": "window", "window": [0.0, 90.0]}
    (one / "config.json").write_text(json.dumps(card))
    for like, flags, alike in ((two, [], True), (two, ["--no-mirror"], False),
                               (two / "first", ["--first", two / "first"], False),
                               (one, ["--window", "0", "90"], True), (one, ["--window", "0", "80"], False)):
        given = prepare.make_parser().parse_args(["x.csv", "--like", str(like), *map(str, flags)])
        prepare.fill_in(given)
        assert given.alike == alike, (like, flags)
    given = prepare.make_parser().parse_args(["x.csv", "--like", str(model), "--voxel_mm", "4", "--no-averaged"])
    prepare.fill_in(given)
    assert (given.format, given.voxel_mm, given.shape, given.averaged, given.orientation) == (
        "table", 4.0, None, False, "RAS")
