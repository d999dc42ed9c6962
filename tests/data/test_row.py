"""One case as a row: what is said of its mask."""

import nibabel as nib
import numpy as np
from small import image_of

from meshnet.data.row import Settings, make_row
from meshnet.data.sources.case import Case
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
