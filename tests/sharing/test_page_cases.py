"""Files of a folder to cases in the page (``page/cases.js``), as ``infer.py`` puts them together."""

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from meshnet.cohort.files import find_scans, plan_masks
from meshnet.errors import UserError
from meshnet.scans.naming import name_remarks
from meshnet.scans.ours import signed
from meshnet.sharing.to_web import script

EVERY = ["T1w, T2w, FLAIR or DWI"]
ONE, TWO = ["T2w"], ["FLAIR", "T1w, T2w or DWI"]
FOLDERS = {
    "masks of both kinds": (ONE, ["a/FLAIR.nii", "a/FLAIR_lesion.nii", "b/FLAIR.nii.gz",
                                  "b/FLAIR_lesion_probability.nii.gz", "b/other_lesion.nii",
                                  "c/scan_mask.nii", "c/scan-dseg.NII.GZ", "c/labels.nii",
                                  "c/unmasked.nii", "c/lesion.nii", "c/x_Lesion.nii"]),
    "folders in order": (ONE, ["a-b/c.nii", "a/b.nii", "a/d.nii.gz", "a.nii", "Z.nii", "a/b/c.nii", ".hidden/d.nii",
                               "a/.trash.nii"]),
    "masks by their headers": (ONE, ["a/OURS.nii", "a/x OURS.nii.gz", "a/OURS two.nii.gz", "a/OURS_lesion.nii.gz",
                                     "b.nii", "a/ours too OURS.nii", "a/OURS_seg.nii"]),
    "masks alone": (ONE, ["seg.nii", "s_lesion.nii.gz", "t_probseg.nii", "u_label.nii", "v_mask.nii"]),
    "two channels": (TWO, ["sub-1/sub-1_FLAIR.nii", "sub-1/sub-1_T2w.nii", "sub-2/flair.nii.gz", "sub-2/t1.nii.gz",
                           "x_FLAIR.nii", "x_DWI.nii", "x_T2.nii", "y-flair.nii", "y-constructor.nii", "z.nii",
                           "sub-1/sub-1_FLAIR_lesion.nii"]),
    "masks of BIDS": (ONE, ["s_T2w.nii", "s_label-L_T2w.nii", "s_label-lesion_roi.nii", "s_lesionmask.nii", "s_msk.nii",
                            "s_acq-label_T2w.nii", "lesionmasks.nii"]),
    "no channel": (TWO, ["a.nii", "b_FLAIR.nii"]),
}


def by_javascript(code):
    if not shutil.which("node"):
        pytest.skip("Node is not installed, so the page's steps are not tested")
    source = "".join(script(name).replace('"use strict";', "")
                     for name in ("messages", "arrays", "cases", "contrast", "naming"))
    source += """const fs = require("fs"), known = async (path, name = path) => ({ path: name,
                 own: await carriesOurName(new File([fs.readFileSync(path)], path)) });"""
    run = f"{source}(async () => console.log(JSON.stringify(await ({code}))))();"
    done = subprocess.run(["node", "-e", run], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def write(path):
    """An empty file; of a name with OURS a mask as this program writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    if "OURS" in path.name:
        form = nib.Nifti2Image if "two" in path.name else nib.Nifti1Image
        noise = np.random.default_rng(0).integers(0, 2, (60, 60, 60)).astype(np.uint8)  # more than is read
        nib.save(signed(form(noise, np.eye(4))), path)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_put_together_as_by_infer(name, tmp_path, capsys):
    channels, paths = FOLDERS[name]
    for path in paths:
        write(tmp_path / "top" / path)
    given = [f"top/{path}" for path in paths if not any(part.startswith(".") for part in path.split("/"))]
    files = ", ".join(f"known({json.dumps(str(tmp_path / path))}, {json.dumps(path)})" for path in given[::-1])
    found, names = by_javascript(f"""(async () => {{
        const found = casesOf(await Promise.all([{files}]), {json.dumps(channels)});
        return [found, found.cases.map((files) => namesOf(files.map(({{ path }}) => path), []))]; }})()""")
    try:
        cases, below = find_scans([str(tmp_path / "top")], lambda: channels)
    except UserError as error:
        assert found["cases"] == [] and bool(found["error"]) == ("no case with" in str(error)), error
    else:
        assert [[file["path"] for file in case] for case in found["cases"]] == [
            [path.relative_to(tmp_path).as_posix() for path in case] for case in cases]
        for one, planned in zip(names, plan_masks(cases, below, str(tmp_path / "out"))):
            folder = planned["mask"].parent.relative_to(tmp_path / "out").parts
            own = planned["mask"].name.removesuffix("_lesion.nii.gz")
            assert one["names"][0] == planned["shown"]
            assert one["mask"] == "_".join([*(folder[:-1] if own in folder[-1:] else folder), own])
    notes = [line.replace(str(tmp_path) + "/", "") for line in capsys.readouterr().err.splitlines()]
    assert found["notes"] == notes


@pytest.mark.parametrize("paths", [
    ["a.nii", "a_lesion.nii", "b_mask.nii", "a_seg.nii.gz", "OURS.nii.gz", "OURS two.nii"],
    ["OURS.nii", "x OURS.nii.gz"], ["b_mask.nii"], ["a.nii"], ["FLAIR.nii", "T1.nii", "lesion_mask.nii"],
    ["b_mask.nii", "b_mask_seg.nii", "c_lesion.nii"],
    ["s_mask.nii", "s_mask_label-L_roi.nii"], ["b_mask.nii", "OURS.nii"]])
def test_masks_among_files_given_by_themselves_are_left_out_as_by_infer(paths, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in paths:
        write(Path(path))
    files = ", ".join(f"known({json.dumps(str(tmp_path / path))}, {json.dumps(path)})" for path in paths)
    found = by_javascript(f"Promise.all([{files}]).then(withoutGivenMasks)")
    try:
        cases, _ = find_scans(paths, lambda: ONE)
    except UserError as error:
        assert found["scans"] == [] and found["error"] == str(error)
    else:
        assert [file["path"] for file in found["scans"]] == [str(case[0]) for case in cases] and not found["error"]
    assert found["notes"] == capsys.readouterr().err.splitlines()


def test_broken_files_carry_no_name(tmp_path):
    """And each is answered, as a packed one of which nothing comes out."""
    whole = gzip.compress(bytes(range(256)) * 9)
    files = {"empty": b"", "short": bytes(4), "start": whole[:10], "cut": whole[:-9],
             "junk": whole[:10] + b"junk" * 9000,
             "nothing": gzip.compress(b""), "late": whole[:3] + b"\4" + whole[4:10] + b"\xff\xff" + bytes(70_000),
             "many": whole * 99}
    for name, content in files.items():
        (tmp_path / f"{name}.nii.gz").write_bytes(content)
    known = ", ".join(f"known({json.dumps(str(tmp_path / f'{name}.nii.gz'))})" for name in files)
    assert by_javascript(f"Promise.all([{known}]).then((all) => all.map((one) => one.own))") == [False] * len(files)


def test_names_say_kinds_of_scans_as_in_the_program():
    names = ["T2w/x_FLAIR.nii.gz", "sub-1_acq-T2_space-T1w_FLAIR.nii", "p3.t2_flair.nii", "CT_004.nii", "head CT.nii",
             "FLAIR_to_T1.nii", "case_adc.nii", "constructor.nii", "flairmont.nii", "x_DWI_b1000.nii.gz", "scan.nii"]
    asked = [(paths, channels, looks) for looks in (None, "T1w", "T2w", "FLAIR or DWI")
             for channels in (EVERY, ["FLAIR"], ["image"], ["CT or ADC"], ["T2w", "FLAIR"])
             for paths in [*([name] * len(channels) for name in names), ["a_T2w.nii"], ["a.nii", "b_DWI.nii"]]]
    found = by_javascript(f"{json.dumps(asked)}.map((one) => nameRemarks(...one))")
    for one, remarks in zip(asked, found):
        assert remarks == name_remarks(*one), one


def test_names_are_hidden_in_a_report_whatever_they_are_made_of():
    odd = ["null_affine.nii", "=1+2,x.nii", "a (1) [b] {c} ^$.*+?|\\/-_#&~ .nii", "Müller", "a", ""]
    hidden = by_javascript(f"{json.dumps(odd)}.map((name) => withoutNames(`${{name}}: found an axis, ${{name}}`, "
                           f"new Set({json.dumps(odd)})))")
    assert hidden == ["scan: found an axis, scan"] * 5 + [": found an axis, "]
    hidden = by_javascript("withoutNames('Müllers a/b.nii, b.nii', ['Müller', 'a/b.nii', 'b.nii'])")
    assert hidden == "Müllers scan, scan"


def test_a_name_that_is_taken_has_its_folder():
    assert by_javascript("[namesOf(['one/a/x.nii'], ['x.nii']), namesOf(['one/a/x.nii'], ['a/x.nii']), "
                         "namesOf(['x.nii.gz'], [])]") == [
        {"names": ["a/x.nii"], "mask": "a_x"}, {"names": ["one/a/x.nii"], "mask": "one_a_x"},
        {"names": ["x.nii.gz"], "mask": "x"}]
