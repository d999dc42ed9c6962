"""What makes a lesion: a class that counts as well, and the benchmark that chooses, both worked by hand."""

import json
import sys

import nibabel as nib
import numpy as np
import pytest
from bright import bright_model, infer, scan_file

from meshnet import load_model, segment_scan
from meshnet.networks.folder import save_model
from meshnet.networks.meshnet import MeshNet
from meshnet.scans.mask import Decision


@pytest.fixture
def decision(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks/trust"))
    import decision

    yield decision
    for name in ("decision", "builtin_weights", "weights_card"):
        sys.modules.pop(name, None)


def head(healthy: bool, parts: list, ml: float = 0.0) -> dict:
    """``parts``: voxels of 8 mm³, peak, sum of probabilities, voxels that are right, true lesions that it touches."""
    thresholds = ("0.05", "0.1", "0.15", "0.2", "0.25", "0.3", "0.35", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9")
    return {"healthy": healthy, "ml": ml, "n": 0 if healthy else 2, "sum": 500.0, "looks": "T1w",
            "parts": {name: [part for part in parts if part[1] >= float(name)] for name in thresholds}}


def test_a_head_is_scored_by_what_a_decision_keeps(decision):
    stroke = head(False, [[250, 0.8, 150.0, 125, [1]], [50, 0.5, 20.0, 0, []], [10, 0.9, 8.0, 10, [2]]], 2.0)
    dice, f1, ml, quality = decision.decided(stroke, Decision(0.3, 0.6, 100.0))  # the first alone, half of it right
    assert (dice, f1, ml) == (pytest.approx(0.5), pytest.approx(2 / 3), pytest.approx(2.0))
    assert quality == pytest.approx((2 * 1.2 + 1) / (4 + 2 + 1))
    assert decision.decided(stroke, Decision(0.3, 0.0, 0.0))[1] == pytest.approx(4 / 5)  # both found, one false
    assert decision.decided(head(True, []), Decision(0.3))[:3] == (1.0, None, 0.0)


def test_what_is_of_use(decision):
    """A Dice of 0.3; 1 mL in a healthy head, whatever its Dice."""
    for healthy, dice, ml, of_use in ((False, 0.3, 50, True), (False, 0.29, 0.1, False), (True, 0, 1.0, True),
                                      (True, 1, 1.01, False)):
        assert decision.succeeded({"healthy": healthy}, (dice, None, ml, 0.5)) == of_use


def test_a_head_is_measured_at_the_models_own_threshold(decision, tmp_path):
    from builtin_weights import THRESHOLDS, row_of

    bright_model(tmp_path / "one", threshold=0.57)
    model = load_model(tmp_path / "one")
    image = nib.load(scan_file(tmp_path / "a.nii.gz"))
    truth = np.asarray(segment_scan(image, model).mask.dataobj) > 0
    row = row_of([model], {"scan": np.asarray(image.dataobj), "affine": image.affine, "truth": np.packbits(truth),
                           "map": 0, "acute": False, "extracted": False, "healthy": False}, 1, "T1w", "plain")
    assert 0.57 not in THRESHOLDS and decision.decided(row, model.card.decision("T1w"))[:2] == (1.0, 1.0)


def test_a_sure_voxel_is_asked_for_where_that_spares_healthy_heads(decision):
    rows = [head(False, [[250, 0.85, 150.0, 250, [1, 2]]], 2.0), head(True, [[500, 0.55, 200.0, 0, []]])]
    found, value, best = decision.choose(rows)
    assert value == best == 1.0 and max(found.threshold, found.sure) > 0.55


def test_what_is_surely_one_of_two_classes_is_marked_where_the_contrast_says_so(tmp_path):
    """Two classes that share what is bright: each has half of the probability, 0.5 at most."""
    bright_model(tmp_path / "two", threshold=0.6)
    network, own = load_model(tmp_path / "two")
    three = MeshNet(channels=1, classes=3, dilations=[1], norm="none")
    three.blocks.load_state_dict(network.blocks.state_dict())
    for name in ("weight", "bias"):
        given = getattr(network.head, name).data
        getattr(three.head, name).data[:] = given[[0, 1, 1]]
    found = {}
    for also in ((), ("spots",)):
        card = own.changed(classes=["background", "lesion", "spots"], marks="lesion", scaling="lesions_bright",
                                contrasts={"FLAIR or DWI": {"sure": 0.9, "also": list(also)}})
        save_model(tmp_path / "three", three, card)
        found[also] = segment_scan(scan_file(tmp_path / "a.nii.gz"), tmp_path / "three", probabilities=True)
    assert found[()].lesions == 0 and found["spots",].lesions == 1 and found["spots",].decision.also == ("spots",)
    for one in found.values():  # the lesion's own probability is what is told
        assert np.asarray(one.probabilities.dataobj).max() == pytest.approx(0.5, abs=1e-3)
    assert found["spots",].quality == pytest.approx(0.6, abs=0.03)  # half of what is marked is expected to be right
    told = json.loads(infer(tmp_path / "a.nii.gz", "--model", tmp_path / "three", "--no-picture", "--json").stdout)
    assert told["also"] == ["spots"] and told["volume_ml"] == found["spots",].volume_ml


def test_a_card_says_what_probabilities_mean_by_tenths(decision):
    """A column for each contrast; a tenth that none of the voxels is in has a dash."""
    import weights_card

    found = {"T1w": {"bins": [{"said": 0.05, "is": 0.04, "voxels": 90}, {"said": 0.25, "is": 0.3, "voxels": 7}]},
             "T2w": {"bins": [{"said": 0.15, "is": 0.1, "voxels": 8}, {"said": 1.0, "is": 0.9, "voxels": 3}]}}
    lines = weights_card.calibration({"calibration": found})
    assert "| 0 to 0.1 | 0.05: **0.04** (90) | – |" in lines and "| 0.1 to 0.2 | – | 0.15: **0.10** (8) |" in lines
    assert "| 0.2 to 0.3 | 0.25: **0.30** (7) | – |" in lines and "| 0.9 to 1 | – | 1.00: **0.90** (3) |" in lines
