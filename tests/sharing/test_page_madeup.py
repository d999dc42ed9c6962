"""The page's made-up scan, and what it foretells of time and memory, without a browser."""

import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
from page_steps import Page, model_of

from meshnet import segment_scan
from meshnet.networks.folder import default_model
from meshnet.sharing.to_web import script

KINDS = ("T1w", "T2w", "FLAIR", "DWI", "of a kind that it does not know")
LESION = 5  # what tissueAt gives


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A folder with a made-up scan of each kind, and the lesion as a mask."""
    if not shutil.which("node"):
        pytest.skip("Node is not installed, so the page's steps are not tested")
    folder = tmp_path_factory.mktemp("made_up")
    run = script("madeup").replace('"use strict";', "") + """
        const fs = require("fs"), [folder, ...kinds] = process.argv.slice(1), { size: [nx, ny, nz], mm } = MADE_UP;
        for (const kind of kinds) fs.writeFileSync(`${folder}/${kind}.nii`, madeUpScan(kind));
        const mask = new Uint8Array(nx * ny * nz);
        for (let k = 0, at = 0; k < nz; ++k) for (let j = 0; j < ny; ++j) for (let i = 0; i < nx; ++i, ++at)
          mask[at] = tissueAt((i - (nx - 1) / 2) * mm, (j - (ny - 1) / 2) * mm, (k - (nz - 1) / 2) * mm);
        fs.writeFileSync(`${folder}/tissues`, mask);"""
    subprocess.run(["node", "-e", run, str(folder), *KINDS], check=True)
    return folder


def lesion(folder):
    tissues = np.fromfile(folder / "tissues", np.uint8).reshape((88, 104, 88), order="F")
    return tissues == LESION


def test_a_made_up_scan_is_a_sound_nifti_file_of_no_person(made_up):
    for kind in KINDS:
        image = nib.load(made_up / f"{kind}.nii")
        assert image.shape == (88, 104, 88) and image.header.get_zooms() == (2, 2, 2)
        assert (image.affine == nib.affines.from_matvec(np.eye(3) * 2, [-87, -103, -87])).all()
        assert b"no person's" in image.header["descrip"].item() and image.header["xyzt_units"] == 2
    assert (made_up / f"{KINDS[-1]}.nii").read_bytes() == (made_up / "T2w.nii").read_bytes()
    assert 20 < lesion(made_up).sum() * 8 / 1000 < 60  # mL


def test_the_built_in_network_finds_its_lesion(made_up):
    found, truth = np.asarray(segment_scan(made_up / "T2w.nii", device="cpu").mask.dataobj) > 0, lesion(made_up)
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.5


def test_what_a_scan_takes_is_foretold(tmp_path):
    """More for a larger grid and a norm that needs whole maps, and for each channel."""
    small = model_of(tmp_path / "small", "batch")
    large = model_of(tmp_path / "large", "instance", shape=[60, 64, 56])
    two = model_of(tmp_path / "two", "batch", channels=("T2w", "FLAIR"))
    with Page() as page:
        plans = {path.name: page.ask("plan", model=str(path)) for path in (small, large, two)}
        built_in = page.ask("plan", model=str(default_model()))
    assert all(0 < plan["network"] < 60 and 0 < plan["voxel"] < 1e-4 for plan in [*plans.values(), built_in])
    assert plans["large"]["bytes"] > plans["small"]["bytes"] + 4 * 2 * 5 * 60 * 64 * 56  # two maps of five channels
    assert plans["large"]["network"] > plans["small"]["network"]  # eight times the voxels
    assert [plans[name]["voxelBytes"] for name in ("small", "two")] == [20, 40]
