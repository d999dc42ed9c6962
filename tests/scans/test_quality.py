"""How good a mask may be: worked by hand, learned from made-up heads, and kept from other decisions."""

import json
import math
import sys

import numpy as np
import pytest
from bright import bright_model, infer, scan_file

from meshnet import segment_scan
from meshnet.scans.quality import Evidence, Learned, evidence_of

LEARNED = {"marked": [-0.5, 0.2, 0.1, -0.3, 0.4], "empty": [0.7, -0.6, 0.25]}


def test_what_a_quality_is_made_of_by_hand():
    probability = np.zeros((10, 10, 10), np.float32)
    probability[:5] = 0.8  # 500 voxels of 8 mm³: 3.2 mL expected of 4 mL
    probability[9, 0, 0] = 0.25
    found = evidence_of(probability, probability > 0.5, 8.0, 3000.0, 500.0)
    assert [*vars(found).values()] == pytest.approx([3.202, 3.2, 4.0, 3.0, 0.5])
    assert found.dice() == pytest.approx((2 * 3.2 + 1) / (3.202 + 4 + 1))
    assert found.values() == pytest.approx([math.log(0.801 / 0.201), math.log(4.1), math.log(3.1), math.log(0.6)])
    empty = evidence_of(probability, probability > 1, 8.0, 0.0, 500.0)
    assert empty.dice() == pytest.approx(8 / (3.202 + 8))
    assert empty.values() == pytest.approx([math.log(3.302), math.log(0.6)])
    assert evidence_of(np.zeros_like(probability), probability > 1, 8.0).dice() == 1


def test_what_was_learned_weighs_it_by_hand():
    learned = Learned(**LEARNED)
    score = -0.5 + 0.2 * math.log(0.801 / 0.201) + 0.1 * math.log(4.1) - 0.3 * math.log(3.1) + 0.4 * math.log(0.6)
    assert learned.of(Evidence(3.2, 3.2, 4.0, 3.0, 0.5)) == pytest.approx(1 / (1 + math.exp(-score)))
    score = 0.7 - 0.6 * math.log(3.3) + 0.25 * math.log(0.6)
    assert learned.of(Evidence(3.2, 0.0, 0.0, 0.0, 0.5)) == pytest.approx(1 / (1 + math.exp(-score)))
    wild = Learned([1, 900, 0, 0, 0], [0] * 3)  # as sure as can be, either way
    assert [wild.of(Evidence(4.0, within, 4.0, 4.0, 0.0)) for within in (0.0, 4.0)] == pytest.approx([0, 1])


def test_the_cards_own_decision_has_the_quality_that_was_learned(tmp_path):
    """Another threshold, another least size and a mean of two models have that of the probabilities."""
    path = scan_file(tmp_path / "a.nii.gz")
    looks = {"FLAIR or DWI": {"threshold": 0.3, "quality": LEARNED}}
    model = bright_model(tmp_path / "m", scaling="lesions_bright", contrasts=looks)
    told = json.loads(infer(path, "--model", model, "--no-picture", "--json").stdout)
    assert told["quality_from"].pop("learned") is True
    seen = Evidence(**told["quality_from"])
    assert told["quality"] == pytest.approx(Learned(**LEARNED).of(seen), abs=2e-3)
    assert (told["volume_ml"], told["largest_ml"]) == pytest.approx((seen.marked_ml, seen.largest_ml))
    for changes in ({"threshold": 0.3}, {"min_lesion_mm3": 1.0}):
        found = segment_scan(path, model, **changes)
        assert found.quality == pytest.approx(found.evidence.dice(), abs=6e-4) and not found.learned
        assert abs(found.quality - told["quality"]) > 0.01
    assert segment_scan(path, [model, model]).quality == found.quality
    none = bright_model(tmp_path / "s", scaling="lesions_bright", contrasts={"FLAIR or DWI": {
        **looks["FLAIR or DWI"], "sure": 1.0}})
    found = segment_scan(path, none)
    assert found.evidence.dropped_ml == pytest.approx(told["volume_ml"], abs=1e-3) and found.lesions == 0
    assert found.quality == pytest.approx(Learned(**LEARNED).of(found.evidence), abs=6e-4)


# ---------------------------------------------------------------------- learning it

@pytest.fixture
def learning(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks/trust"))
    import quality

    yield quality
    for name in ("quality", "decision", "veto", "second_heads", "builtin_weights"):
        sys.modules.pop(name, None)


def heads(looks: str, seed: int = 0) -> list[dict]:
    """Heads with a part of 1 mL that is the more often right the surer it is on T1w, the less so on T2w; every third
    has none that is kept, and is healthy where little is expected."""
    generator, rows = np.random.default_rng(seed), []
    for number in range(240):
        p, marked = generator.uniform(0.5, 1), number % 3 > 0
        good = generator.random() < (p - 0.5) * 2 if looks != "T2w" else generator.random() > (p - 0.5) * 2
        part = [125, 0.9 if marked else 0.1, 125 * float(p), 125 if good else 0, [1] if good else []]
        healthy = not marked and bool(good)
        rows.append({"seed": number, "looks": looks, "contrast": looks.split()[0], "way": "as made", "map": 0,
                     "healthy": healthy, "ml": 0.0 if healthy else 1.0,
                     "n": 0 if healthy else 1, "sum": 125 * float(p if marked else 1.5 - p), "parts": {"0.5": [part]}})
    return rows


def test_a_quality_is_learned_by_contrast_and_ranks(learning, tmp_path, capsys, monkeypatch):
    looks = ("T1w", "T2w", "FLAIR or DWI")
    model = bright_model(tmp_path / "m", scaling="lesions_bright", threshold=0.5, sure=0.6, contrasts={
        "T1w": {"sure": 0.7}})
    rows, lines = [row for name in looks for row in heads(name)], tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["quality.py", str(lines), "--model", str(model)])
    learning.main()
    found = learning.read_card(model)
    assert found.decision("T1w").sure == 0.7 and found.quality("T1w").marked[1] > 0.5
    assert found.quality("T2w").marked[1] < -0.5 and found.quality("T1w").empty[1] < -1
    right, learned = (float(word) for word in capsys.readouterr().out.split() if word.startswith("0."))
    assert learned > right + 0.1 and learned > 0.7
    assert sys.modules["decision"].table(rows, model)["quality_auc"] == pytest.approx(learned, abs=0.05)
    with pytest.raises(learning.UserError, match="T2w: found 0 heads with marked masks, expected more than 4"):
        learning.learn([], found, "T2w")


def test_a_healthy_head_counts_by_what_is_marked_in_it(learning):
    """A third of the masks have 0.8 mL, the others 3: a regression has the mean that it was given. The veto's `sure`
    decides what is kept."""
    rows = [{"seed": n, "looks": "T2w", "healthy": True, "ml": 0.0, "n": 0, "sum": 300.0, "parts": {"0.5": [
        [100 if n % 4 == 1 else 375, 0.7 if n % 4 else 0.3, 90.0 + n % 7, 0, []]]}} for n in range(40)]
    card = learning.Card(["any"], ["background", "lesion"], scaling="lesions_bright", sure=0.8, contrasts={"T2w": {
        "veto": {"bias": 0, "weights": [], "sure": 0.6}}})
    found = learning.learn(rows, card, "T2w")
    of = lambda row: found.of(learning.evidence_of(row, card.decision("T2w", veto=True))[0])
    assert np.mean([of(row) for row in rows if row["seed"] % 4]) == pytest.approx(1 / 3, abs=1e-3)
    assert np.mean([of(row) for row in rows if row["seed"] % 4 == 0]) == pytest.approx(1, abs=0.02)
