"""share.py from a shell."""

import argparse
import subprocess
import sys

import numpy as np
import pytest
from as_published import made_up

import share


def test_the_commands_from_a_shell(tmp_path, root):
    made_up(tmp_path)

    def call(*words):
        return subprocess.run([sys.executable, "share.py", *map(str, words)], cwd=root, check=False,
                              capture_output=True, text=True)

    done = call("import", tmp_path / "model.json", tmp_path / "m")
    assert done.returncode == 0 and "2 classes, LIA, minmax" in done.stdout, done.stderr
    failed = call("import", tmp_path / "nothing.json", tmp_path / "n")
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and "not found" in failed.stderr
    assert isinstance(share.make_parser(), argparse.ArgumentParser)


@pytest.mark.slow
def test_infer_takes_the_imported_model(published, shared_data, tmp_path, root):
    import nibabel as nib

    scan, mask = shared_data / "brainchop" / "t1_256.nii.gz", tmp_path / "labels.nii.gz"
    subprocess.run([sys.executable, "infer.py", scan, "-o", mask, "--model", published, "--no-picture"], cwd=root,
                   check=True)
    found, reference = (np.asarray(nib.load(path).dataobj)
                        for path in (mask, shared_data / "brainchop" / "labels_reference.nii.gz"))
    assert (found != reference).sum() <= 20
