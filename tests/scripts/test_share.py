"""share.py from a shell."""

import subprocess
import sys

import numpy as np
import pytest
from as_published import made_up

import share
from meshnet.errors import run_script


def test_the_commands_from_a_shell(tmp_path, root):
    made_up(tmp_path)

    def call(*words):
        return subprocess.run([sys.executable, "share.py", *map(str, words)], cwd=root, check=False,
                              capture_output=True, text=True)

    done = call("import", tmp_path / "model.json", tmp_path / "m")
    assert done.returncode == 0 and "2 classes, LIA, minmax" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == f"Next: python infer.py scan.nii.gz --model {tmp_path}/m"
    failed = call("import", tmp_path / "nothing.json", tmp_path / "n")
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and "not found" in failed.stderr
    done = call("tfjs", tmp_path / "m", tmp_path / "out")
    assert done.returncode == 0 and "its binary, colormap.json and card.json" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == (f"Next: load {tmp_path}/out/model.json in brainchop, or turn it back: "
                                            f"python share.py import {tmp_path}/out/model.json FOLDER")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"model.json", "group1-shard1of1.bin", "colormap.json", "card.json"}


@pytest.mark.parametrize(("words", "said"), [
    ((), "required: COMMAND"), (("push", "--nonsense"), "required: folder, user/name"), (("fly",), "invalid choice"),
    (("push", "x", "user/name", "--nonsense"), "unrecognized arguments: --nonsense"),
    (("push", "nowhere", "user/name@main"), "expected user/name"),
    (("pull", "name"), "user/name or user/name@revision"),
    (("tfjs", "nowhere", "out"), "nowhere"), (("onnx", "nowhere", "out.onnx"), "nowhere"),
    (("onnx", "m", "out.onnx", "--precision", "fp8"), "invalid choice"),
    (("import", "nowhere.json", "out"), "nowhere.json: not found"),
])
def test_mistakes_are_one_line(monkeypatch, capsys, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["share.py", *words])
    with pytest.raises(SystemExit) as left:
        run_script(share.main)
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and said in error, error


@pytest.mark.parametrize("command", ["push", "pull", "onnx", "tfjs", "import"])
def test_every_flag_of_a_command_is_explained(command):
    commands = next(action for action in share.make_parser()._actions if action.dest == "command").choices
    assert all(action.help for action in commands[command]._actions)


def test_old_commands_and_imports_name_the_new_ones(root):
    """Published model cards still have them."""
    for words, said in ((("-m", "meshnet.hub", "pull", "user/x"), "python share.py pull user/name FOLDER"),
                        (("-c", "from meshnet.modelfolder import load_model"),
                         "ImportError: meshnet.modelfolder is gone: write 'from meshnet import load_model' instead")):
        found = subprocess.run([sys.executable, *words], cwd=root, check=False, capture_output=True, text=True)
        assert found.returncode not in (0, None) and said in found.stderr.splitlines()[-1], found.stderr
        assert found.stderr.count("\n") == 1 or words[0] == "-c"


@pytest.mark.slow
def test_infer_takes_the_imported_model(published, shared_data, tmp_path, root):
    import nibabel as nib

    scan, mask = shared_data / "brainchop" / "t1_256.nii.gz", tmp_path / "labels.nii.gz"
    subprocess.run([sys.executable, "infer.py", scan, "-o", mask, "--model", published, "--no-picture"], cwd=root,
                   check=True)
    found, reference = (np.asarray(nib.load(path).dataobj)
                        for path in (mask, shared_data / "brainchop" / "labels_reference.nii.gz"))
    assert (found != reference).sum() <= 20
