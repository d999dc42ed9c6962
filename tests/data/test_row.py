"""One case as a row: what is said of its mask."""

import nibabel as nib
import numpy as np
from small import image_of

from meshnet.data.row import Settings, code_version, make_row
from meshnet.data.sources.case import Case
from meshnet.scans import contrast_network, grid
from meshnet.scans.grid import Grid
from meshnet.scans.ours import signed


def test_a_prediction_of_this_program_given_as_the_truth_is_said_until_it_is_corrected(tmp_path):
    data = np.zeros((24, 24, 24), np.uint8)
    data[4:-4, 4:-4, 4:-4] = np.random.default_rng(0).integers(60, 120, (16, 16, 16))
    marked = np.zeros_like(data)
    marked[8:12, 8:12, 8:12] = 1
    affine = np.diag([8.0, 8, 8, 1])
    nib.save(image_of(data, affine), tmp_path / "s.nii")
    mask = signed(image_of(marked, affine))
    nib.save(mask, tmp_path / "m.nii")
    case = Case("c", "p", (str(tmp_path / "s.nii"),), str(tmp_path / "m.nii"))
    settings = Settings(Grid(8.0), "conform_uint8", None, None, 1, ())
    assert "it is a prediction, and nobody has corrected it" in make_row(case, settings)["warnings"][0]
    marked[11, 11, 11] = 0  # an editor keeps the header
    nib.save(nib.Nifti1Image(marked, mask.affine, mask.header), tmp_path / "m.nii")
    assert make_row(case, settings)["warnings"] == []


def test_what_rows_depend_on_holds_the_weights_that_tell_contrasts_apart(tmp_path, monkeypatch):
    before = code_version(synthetic=False)
    (tmp_path / "other").write_bytes(b"other weights")
    monkeypatch.setattr(contrast_network, "WEIGHTS", tmp_path / "other")
    assert code_version(synthetic=False) != before


def test_a_doubtful_contrast_is_said_of_a_case(tmp_path, monkeypatch):
    data = np.zeros((24, 24, 24), np.uint8)
    data[4:-4, 4:-4, 4:-4] = np.random.default_rng(0).integers(60, 120, (16, 16, 16))
    nib.save(image_of(data, affine := np.diag([8.0, 8, 8, 1])), tmp_path / "s.nii")
    nib.save(image_of((data > 118).astype(np.uint8), affine), tmp_path / "m.nii")
    case = Case("c", "p", (str(tmp_path / "s.nii"),), str(tmp_path / "m.nii"))
    for share in (0.55, 0.65):
        found = {"T1w": 0.2, "T2w": share, "FLAIR or DWI": 0.8 - share}
        monkeypatch.setattr(grid, "likelihoods", lambda *_, found=found: found)
        said = " ".join(make_row(case, Settings(Grid(8.0), "lesions_bright", None, None, 1, ()))["warnings"])
        assert ("looks most like T2w (55 %)" in said) == (share < 0.6)
