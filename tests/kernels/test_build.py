"""Building the kernels: compilers that fail or are missing, other CPUs, processes that build at once."""

import platform
import shutil
import subprocess
import sys

import pytest
from small import needs_kernels

from meshnet.kernels import build, calls


def test_a_compiler_means_kernels():
    if any(map(shutil.which, build.COMPILERS)):
        assert calls.available()


def test_no_compiler_or_a_broken_one_means_pytorch(monkeypatch, tmp_path):
    broken = tmp_path / "kernels.cpp"
    broken.write_text("this is no C++")
    with monkeypatch.context() as patch:
        patch.setattr(build, "SOURCE", broken)
        assert build.build_library(tmp_path / "cache") is None
        assert not list((tmp_path / "cache").glob("*")), "nothing half-built may stay"
    monkeypatch.setattr(build, "COMPILERS", ())
    assert build.build_library(tmp_path / "cache") is None


def test_another_header_is_another_library(monkeypatch, tmp_path):
    shutil.copy(build.SOURCE, tmp_path)
    headers = shutil.copytree(build.SOURCE.parent / "cpu", tmp_path / "cpu")
    before = build.library_hash(sys.executable)
    monkeypatch.setattr(build, "SOURCE", tmp_path / build.SOURCE.name)
    assert build.library_hash(sys.executable) == before
    (headers / "inner.h").write_text("// changed")
    assert build.library_hash(sys.executable) != before


@needs_kernels
@pytest.mark.slow
def test_processes_that_build_at_once_do_not_disturb_each_other(tmp_path, root):
    command = [sys.executable, "-c", "from meshnet.kernels import calls; print(calls.available())"]
    environment = {"MESHNET_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin:/usr/local/bin", "PYTHONPATH": str(root)}
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in running] == ["True"] * 4
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]


@pytest.mark.slow
@pytest.mark.parametrize(("compiler", "flags", "lanes"), [
    ("g++", ["-march=native"], None), ("g++", ["-march=haswell"], 8), ("g++", ["-march=x86-64"], 4),
    ("aarch64-linux-gnu-g++", ["-static"], 4)])
def test_builds_for_other_cpus_compute_the_same(compiler, flags, lanes, root, tmp_path):
    """Each width of vectors against sums in double; 64-bit ARM by an emulator."""
    runner = ["qemu-aarch64-static"] if compiler.startswith("aarch64") else []
    for program in (compiler, *runner):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here")
    if not runner and platform.machine() != "x86_64":
        pytest.skip("these are builds for x86-64")
    program = tmp_path / "check"
    usual = [flag for flag in build.FLAGS if flag not in ("-shared", "-fPIC")]
    source = root / "tests" / "kernels" / "kernels_check.cpp"
    subprocess.run([compiler, *usual, *flags, source, "-o", program], check=True)
    found = subprocess.run([*runner, program, "25" if runner else "60"], stdout=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 0 and (lanes is None or found.stdout.startswith(f"{lanes} lanes")), found.stdout


def test_what_was_built_once_is_kept(monkeypatch, tmp_path):
    compiler, cache = tmp_path / "compiler", tmp_path / "cache"
    compiler.write_text(f"#!/bin/sh\necho called >> {tmp_path}/calls\nfor last; do :; done\necho built > $last\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "COMPILERS", ("no such compiler", str(compiler)))
    found = [build.build_library(cache) for _ in range(2)]
    assert found[0] == found[1] == next(cache.iterdir()) and found[0].read_text() == "built\n"
    assert len(list(cache.iterdir())) == 1 and (tmp_path / "calls").read_text() == "called\n"
    monkeypatch.setenv("MESHNET_CACHE", str(tmp_path / "another"))
    assert build.build_library().parent == tmp_path / "another"


@pytest.mark.parametrize("machine, flag", [("x86_64", "-march=native"), ("arm64", "-mcpu=native"),
                                           ("aarch64", "-mcpu=native")])
def test_the_library_is_built_for_this_very_cpu(monkeypatch, tmp_path, machine, flag):
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nfor last; do :; done\necho \"$@\" > $last\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "COMPILERS", (str(compiler),))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    given = build.build_library(tmp_path / "cache").read_text().split()
    assert [word for word in given if word.endswith("=native")] == [flag]
    assert set(build.FLAGS) < set(given) and str(build.SOURCE) in given
