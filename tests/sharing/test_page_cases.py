"""Files of a folder to cases in the page (``page/cases.js``), as ``infer.py`` puts them together."""

import json
import shutil
import subprocess

import pytest

from meshnet.cohort.files import find_scans, plan_masks
from meshnet.errors import UserError
from meshnet.sharing.to_web import script

ONE, TWO = ["T2w"], ["FLAIR", "T1w, T2w or DWI"]
FOLDERS = {
    "masks of both kinds": (ONE, ["a/FLAIR.nii", "a/FLAIR_lesion.nii", "b/FLAIR.nii.gz",
                                  "b/FLAIR_lesion_probability.nii.gz", "b/other_lesion.nii",
                                  "c/scan_mask.nii", "c/scan-dseg.NII.GZ", "c/labels.nii",
                                  "c/unmasked.nii", "c/lesion.nii", "c/x_Lesion.nii"]),
    "folders in order": (ONE, ["a-b/c.nii", "a/b.nii", "a/d.nii.gz", "a.nii", "Z.nii", "a/b/c.nii", ".hidden/d.nii",
                               "a/.trash.nii"]),
    "masks alone": (ONE, ["seg.nii", "s_lesion.nii.gz", "t_probseg.nii", "u_label.nii", "v_mask.nii"]),
    "two channels": (TWO, ["sub-1/sub-1_FLAIR.nii", "sub-1/sub-1_T2w.nii", "sub-2/flair.nii.gz", "sub-2/t1.nii.gz",
                           "x_FLAIR.nii", "x_DWI.nii", "x_T2.nii", "y-flair.nii", "y-constructor.nii", "z.nii",
                           "sub-1/sub-1_FLAIR_lesion.nii"]),
    "no channel": (TWO, ["a.nii", "b_FLAIR.nii"]),
}


def by_javascript(code):
    if not shutil.which("node"):
        pytest.skip("Node is not installed, so the page's steps are not tested")
    source = "".join(script(name).replace('"use strict";', "") for name in ("messages", "cases"))
    done = subprocess.run(["node", "-e", f"{source}console.log(JSON.stringify({code}))"], capture_output=True,
                          text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_put_together_as_by_infer(name, tmp_path, capsys):
    channels, paths = FOLDERS[name]
    for path in paths:
        (tmp_path / "top" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / path).write_bytes(b"")
    given = [{"path": f"top/{path}"} for path in paths if not any(part.startswith(".") for part in path.split("/"))]
    found = by_javascript(f"casesOf({json.dumps(given[::-1])}, {json.dumps(channels)})")
    try:
        cases, below = find_scans([str(tmp_path / "top")], lambda: channels)
    except UserError as error:
        assert found["cases"] == [] and bool(found["error"]) == ("no case with" in str(error)), error
    else:
        assert [[file["path"] for file in case] for case in found["cases"]] == [
            [path.relative_to(tmp_path).as_posix() for path in case] for case in cases]
        names = by_javascript(f"{json.dumps([[f['path'] for f in case] for case in found['cases']])}"
                              ".map((paths) => namesOf(paths, []))")
        for one, planned in zip(names, plan_masks(cases, below, str(tmp_path / "out"))):
            folder = planned["mask"].parent.relative_to(tmp_path / "out").parts
            own = planned["mask"].name.removesuffix("_lesion.nii.gz")
            assert one["names"][0] == planned["shown"]
            assert one["mask"] == "_".join([*(folder[:-1] if own in folder[-1:] else folder), own])
    notes = [line.replace(str(tmp_path) + "/", "") for line in capsys.readouterr().err.splitlines()]
    assert found["notes"] == notes


def test_a_name_that_is_taken_has_its_folder():
    assert by_javascript("[namesOf(['one/a/x.nii'], ['x.nii']), namesOf(['one/a/x.nii'], ['a/x.nii']), "
                         "namesOf(['x.nii.gz'], [])]") == [
        {"names": ["a/x.nii"], "mask": "a_x"}, {"names": ["one/a/x.nii"], "mask": "one_a_x"},
        {"names": ["x.nii.gz"], "mask": "x"}]
