"""``benchmarks/gpu.py`` in its small form, so that it cannot rot: parts, marks, what is kept and not measured again."""

import json
import sys

import pytest

from benchmarks import gpu
from benchmarks.gpu_bench import Bench


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, words)])
    return gpu.main(), capsys.readouterr().out


def test_parts_are_measured_once_and_marks_decide(monkeypatch, capsys, tmp_path):
    results = tmp_path / "gpu.json"
    code, text = call(monkeypatch, capsys, "--simulate", "--results", results, "--parts", "machine", "processes")
    assert code == 0 and "takes two GPUs" in text and "matrix product" in text
    kept = json.loads(results.read_text())
    kept["parts"]["machine"] = [{"what": "made up", "value": 1, "mark": "<= 0", "result": "FAIL"}]
    results.write_text(json.dumps(kept))
    code, text = call(monkeypatch, capsys, "--simulate", "--results", results, "--parts", "machine")
    assert code == 1 and "made up" in text and "1 failed" in text
    code, text = call(monkeypatch, capsys, "--simulate", "--results", results, "--parts", "machine", "--again")
    assert code == 0 and "made up" not in text


def test_a_mark_is_a_bound():
    bench = Bench(False, True)
    for value, least, most in ((1, 1, None), (0.9, 1, None), (1, None, 1), (1.1, None, 1), (5, None, None)):
        bench.add("x", value, least, most)
    assert [row["result"] for row in bench.rows] == ["pass", "FAIL", "pass", "FAIL", ""]


@pytest.mark.slow
def test_every_part_passes_in_its_small_form(monkeypatch, capsys, tmp_path):
    code, text = call(monkeypatch, capsys, "--simulate", "--results", tmp_path / "gpu.json")
    assert code == 0, text
