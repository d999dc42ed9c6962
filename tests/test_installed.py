"""The command ``meshnet``, and the package as ``pip install .`` puts it elsewhere."""

import subprocess
import sys
import sysconfig
import tomllib
import venv

import nibabel as nib
import numpy as np
import pytest

from meshnet.__main__ import VERBS
from meshnet.completion import script_for
from meshnet.errors import UserError


def run(*command, **options):
    return subprocess.run([str(one) for one in command], capture_output=True, text=True, check=False, **options)


def test_every_verb_is_a_script(root):
    for script, _ in VERBS.values():
        assert (root / script).is_file()
    found = run(sys.executable, "-m", "meshnet", "segment", "--help", cwd=root)
    assert found.returncode == 0 and found.stdout.startswith("usage: infer.py")


@pytest.mark.parametrize("given, code, words", [
    (["--version"], 0, "meshnet 0.1.0"), ([], 0, "usage: meshnet VERB"),
    (["segmnt"], 2, "error: found verb 'segmnt', expected one of segment, prepare, train, search, crossval, share; did "
                    "you mean segment?"),
    (["export"], 2, "error: found verb 'export', expected one of segment, prepare, train, search, crossval, share; did "
                    "you mean share?"),
    (["segment", "none.nii.gz"], 2, "error: none.nii.gz")])
def test_what_the_command_says(root, given, code, words):
    found = run(sys.executable, "-m", "meshnet", *given, cwd=root)
    assert found.returncode == code and (found.stdout + found.stderr).startswith(words)


def test_completion_offers_verbs_flags_and_recipes(root):
    """The script as bash runs it; only one verb's help is made for it, the others take as long."""
    text = script_for("bash", {"share": VERBS["share"], "train": VERBS["train"]})
    ask = f"""{text}
    t() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _meshnet; echo "${{COMPREPLY[@]}}"; }}
    t meshnet tr; t meshnet share pu; t meshnet train --optimizer.weight; t meshnet train --recipe meshnet26_"""
    found = run("bash", "-c", ask)
    assert found.stdout.split("\n")[:4] == ["train", "push pull", "--optimizer.weight_decay", "meshnet26_tuned"]
    with pytest.raises(UserError, match=r"found 'fish', expected one of bash, zsh"):
        script_for("fish", VERBS)


def test_the_container_takes_what_is_there(root):
    """No container can be built here: that its files exist, and its Python is the one that was tested."""
    lines = (root / "Dockerfile").read_text().splitlines()
    steps = [line.split() for line in lines if line and not line.startswith("#")]
    assert {step[0] for step in steps} <= {"FROM", "RUN", "ARG", "WORKDIR", "COPY", "ENV", "ENTRYPOINT", "CMD"}
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert steps[0] == ["FROM", f"python:{version}-slim"]
    assert all((root / source).exists() for step in steps if step[0] == "COPY" for source in step[1:-1])
    ignored = (root / ".dockerignore").read_text().split()
    assert not {"meshnet", "recipes", "weights", "setup.py", "requirements.txt", "README.md", "LICENSE"} & set(ignored)


@pytest.mark.slow
def test_the_wheel_segments_as_the_checkout_does(root, tmp_path):
    """Into an empty environment that sees this one's packages, in another folder: scripts, recipes, weights and the
    kernels' source are all in the wheel."""
    from meshnet.data.synthetic.case import make_case

    image, _, _ = make_case(5, 2.0, "demo")
    scan = tmp_path / "scan.nii.gz"
    nib.save(image, scan)
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", root, source], check=True)
    built = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", source, "-w", tmp_path)
    assert built.returncode == 0, built.stderr
    venv.create(tmp_path / "venv", with_pip=True)
    inside = tmp_path / "venv/bin"
    (wheel,) = tmp_path.glob("*.whl")
    assert run(inside / "pip", "install", "-q", "--no-deps", wheel).returncode == 0
    where = run(inside / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    with open(f"{where}/other.pth", "w") as handle:
        handle.write(sysconfig.get_path("purelib") + "\n")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(inside / "meshnet", "segment", scan, "-o", "mask.nii.gz", cwd=elsewhere).returncode == 0
    assert run(sys.executable, root / "infer.py", scan, "-o", elsewhere / "checkout.nii.gz").returncode == 0
    code = ("import meshnet, numpy; from meshnet import segment_scan; print(meshnet.__file__); "
            f"numpy.save('called.npy', numpy.asarray(segment_scan({str(scan)!r}).mask.dataobj))")
    called = run(inside / "python", "-c", code, cwd=elsewhere)
    assert called.stdout.startswith(where), called.stderr
    masks = [np.asarray(nib.load(elsewhere / f"{name}.nii.gz").dataobj) for name in ("mask", "checkout")]
    assert masks[0].any()
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], np.load(elsewhere / "called.npy"))
    dry = run(inside / "meshnet", "train", "--recipe", f"{where}/meshnet/root/recipes/meshnet5.yaml", "--dry_run",
              cwd=elsewhere)
    assert dry.returncode == 0 and "5,682" in dry.stdout, dry.stderr
