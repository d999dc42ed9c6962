"""Loading a case that was listed."""

import gzip
import os

import numpy as np
import pytest
from trees import write_nifti

from meshnet.data.sources.case import Case, Filters
from meshnet.data.sources.find import find_cases, load_case, signature
from meshnet.errors import UserError


def test_the_number_of_channels_is_checked(tmp_path):
    write_nifti(tmp_path / "a.nii.gz")
    write_nifti(tmp_path / "m.nii.gz", mask=True)
    case = Case("a", "a", (str(tmp_path / "a.nii.gz"),), str(tmp_path / "m.nii.gz"))
    with pytest.raises(UserError, match=r"found 1 channel\(s\), expected 2"):
        load_case(case, 2)


@pytest.mark.parametrize("form", ["nii", "nii.gz"])
@pytest.mark.parametrize("which", ["a", "m"])
def test_a_file_of_the_same_length_and_time_is_another_one_by_its_content(tmp_path, form, which):
    """As a copy that keeps the times writes it. Of a mask one voxel may change, of a scan one that is looked at."""
    paths = [tmp_path / f"{name}.{form}" for name in "am"]
    content = [bytearray(np.random.default_rng(i).bytes(400000)) for i in range(2)]
    pack = (lambda c: gzip.compress(bytes(c), 0)) if form == "nii.gz" else bytes
    case = Case("a", "a", (str(paths[0]),), str(paths[1]))
    for path, one in zip(paths, content):
        path.write_bytes(pack(one))
    before, path = signature(case), paths["am".index(which)]
    known = path.stat()
    assert signature(case) == before
    content["am".index(which)][200000 if which == "a" else 120000] ^= 1
    path.write_bytes(pack(content["am".index(which)]))
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert path.stat().st_size == known.st_size and path.stat().st_mtime_ns == known.st_mtime_ns
    assert signature(case) != before


def test_a_scan_given_as_its_own_mask_fails(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", mask=True)
    (tmp_path / "b.nii.gz").symlink_to("a.nii.gz")
    (tmp_path / "t.csv").write_text("subject,image,mask\n1,a.nii.gz,b.nii.gz\n")
    listing = find_cases("table", str(tmp_path / "t.csv"), [], Filters())
    assert not listing.cases and "the mask and the scan of the same case" in listing.failed[0][1]
