"""``benchmarks/speed/browser_engine.py`` in its small form: parts, marks, what is not done again."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from meshnet import ROOT

PARTS = ("built-in exact", "MeshNet-5 threads", "built-in threads", "MeshNet-26 memory")


def test_the_small_form_measures_each_part_once(tmp_path):
    if not shutil.which("node"):
        pytest.skip("Node is not installed, so the page's engine is not measured")
    command = [sys.executable, str(ROOT / "benchmarks/speed/browser_engine.py"), "--small", "--out",
               str(tmp_path / "out.jsonl"), "--rounds", "1"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=False,
                                    env={**os.environ, "NODE_PATH": ""}) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr
    assert first.stdout == second.stdout and "MeshNet-5 against: left out, onnx" in first.stdout
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert tuple(line["part"] for line in lines) == PARTS and all(line["enough"] for line in lines)
    found = {line["part"]: line for line in lines}
    assert found["built-in exact"]["apart"] < 1e-4 and found["MeshNet-26 memory"]["bytes"] > 17e6
    (tmp_path / "out.jsonl").write_text(json.dumps({**lines[0], "enough": False}) + "\n", encoding="utf-8")
    third = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "NODE_PATH": ""})
    assert third.returncode == 1 and "built-in exact: MISSED" in third.stdout
