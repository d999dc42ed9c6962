"""Loading a case that was listed."""

import pytest
from trees import write_nifti

from meshnet.data.sources.case import Case
from meshnet.data.sources.find import load_case
from meshnet.errors import UserError


def test_the_number_of_channels_is_checked(tmp_path):
    write_nifti(tmp_path / "a.nii.gz")
    write_nifti(tmp_path / "m.nii.gz", mask=True)
    case = Case("a", "a", (str(tmp_path / "a.nii.gz"),), str(tmp_path / "m.nii.gz"))
    with pytest.raises(UserError, match=r"found 1 channel\(s\), expected 2"):
        load_case(case, 2)
