"""The commands of README.md on synthetic cases, as printed and in their order, in a fresh clone.

Lines that begin with # below a command are what it prints near its end. Numbers may differ a little from machine to
machine: Dice within ``NEAR``, others are not compared. What trains must reach ``LEARNS``.
"""

import os
import re
import shlex
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT

from meshnet.data.synthetic.case import make_case

NEAR, LEARNS = 0.15, 0.4
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OURS = ("data/tiny", "runs/tiny")
TRAINS = re.compile(r"train\.py --recipe|train\.py --test|search\.py --data|crossval\.py")
DICE = re.compile(r"(?:Dice |val_dice )(\d\.\d+)|^\S+ +(?:[\d,]+ +)?(\d\.\d+)", re.MULTILINE)
NUMBER = re.compile(r"[−-]?\d[\d.,:]*")
LAST = 25  # lines of the output among which the expected ones are looked for


def steps() -> list[tuple[str, list[str]]]:
    """(command, expected lines) of README.md, those that need nothing but the synthetic cases and one scan."""
    found: list[tuple[str, list[str]]] = []
    for kind, block in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        taken = False
        for line in block.splitlines() if not kind else ():
            if line.startswith("# ") and taken:
                found[-1][1].append(line.removeprefix("# "))
            else:
                taken = line.startswith("python ") and any(each in line for each in OURS)
                found += [(line.partition(" #")[0].strip(), [])] if taken else []
    return found


def shape_of(line: str) -> str:
    """A line without its numbers and without the spaces that line numbers up."""
    return re.sub(r"\s+", " ", NUMBER.sub("#", line)).strip()


def dices(lines: list[str]) -> list[float]:
    """Every Dice in some lines of output, of a table the first column of scores."""
    return [float(one or other) for one, other in DICE.findall("\n".join(lines))]


def compare(command: str, expected: list[str], printed: str) -> list[str]:
    """What is wrong with the output of a command; without expected lines its best Dice alone is looked at."""
    if not expected:
        found = dices(printed.strip().splitlines()[-LAST:])
        learns = not TRAINS.search(command) or max(found, default=0) >= LEARNS
        return [] if learns else [f"{command}: the Dice are {found}"]
    last = printed.strip().splitlines()[-LAST:]
    shapes, wanted = [shape_of(line) for line in last], [shape_of(line) for line in expected]
    at = next((k for k in range(len(last)) if shapes[k:k + len(wanted)] == wanted), None)
    if at is None:
        return [f"{command}: printed {last}, expected {expected} among the last lines"]
    found, known = dices(last[at:at + len(wanted)]), dices(expected)
    if found != pytest.approx(known, abs=NEAR):
        return [f"{command}: found the Dice {found}, expected {known}"]
    return [f"{command}: the best Dice is {max(found)}"] if TRAINS.search(command) and max(found) < LEARNS else []


def test_the_readme_says_how_its_trainings_end():
    assert [command.split()[1] for command, _ in steps()] == [
        "prepare.py", "train.py", "train.py", "infer.py", "search.py", "crossval.py"]
    for command, expected in steps():
        if TRAINS.search(command) and "crossval" not in command:
            assert max(dices(expected), default=0) >= LEARNS, f"{command}: no Dice is printed below it, or a low one"


def test_outputs_are_compared_by_their_words_and_their_dice():
    expected = ["runs/a: finished at epoch 30, best validation Dice 0.50 (epoch 2)"]
    printed = "x\nruns/a: finished at epoch 29, best validation Dice {} (epoch 7)\nNext: y"
    assert not compare("python train.py --recipe r", expected, printed.format(0.45))
    assert "found the Dice" in compare("python train.py --recipe r", expected, printed.format(0.3))[0]
    assert "expected" in compare("python train.py --recipe r", expected, "runs/a: stopped")[0]
    table = "Model  Parameters  Lesion Dice\ntiny  10,770  {} (0.08)  0.70 (0.04)\nreport.html\nNext: y"
    assert not compare("python crossval.py", [], table.format("0.410"))
    assert compare("python crossval.py", [], table.format("0.390"))


@pytest.mark.slow
def test_every_command_of_the_readme_ends_as_printed(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    image, _, _ = make_case(987_654, 2.0, "demo")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine), clone / "scan.nii.gz")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MESHNET")}
    wrong = []
    for command, expected in steps():
        words = [sys.executable if word == "python" else word for word in shlex.split(command)]
        done = subprocess.run(words, cwd=clone, env=environment, capture_output=True, text=True, check=False)
        with open(tmp_path / "walk.txt", "a", encoding="utf-8") as record:
            record.write(f"$ {command}\n{done.stdout[-5000:]}\n{done.stderr[-3000:]}\n")
        if done.returncode:
            wrong.append(f"{command}: {done.stderr[-2000:]}")
        else:
            wrong += compare(command, expected, done.stdout)
    assert not wrong, "\n".join(wrong)
    dirty = subprocess.run(["git", "status", "--short"], cwd=clone, capture_output=True, text=True, check=True).stdout
    assert not dirty, dirty
    assert (clone / "runs/table/report/report.html").stat().st_size > 10_000
    assert (clone / "tiny_lesion.png").is_file() and (clone / "data/tiny/cases.html").is_file()
