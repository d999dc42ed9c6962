"""The card beside the weights."""

import pytest
from model_folders import edit, write_model

from meshnet.errors import UserError
from meshnet.networks.card import common_decision, read_card
from meshnet.scans.mask import Decision


@pytest.mark.parametrize("key", ["averaged", "shifted"])
def test_a_switch_of_the_card_is_true_or_false(tmp_path, key):
    write_model(tmp_path)
    edit(tmp_path / "config.json", **{key: None})
    with pytest.raises(UserError, match=f"config.json: found {key} = None, expected true or false"):
        read_card(tmp_path)


def test_a_contrast_may_have_its_own_decision(tmp_path):
    write_model(tmp_path)
    edit(tmp_path / "config.json", scaling="lesions_bright", threshold=0.4, sure=0.6, min_lesion_mm3=50,
         contrasts={"T1w": {"threshold": 0.15, "sure": 0.5}}, thresholds={"last.safetensors": 0.7})
    card = read_card(tmp_path)
    assert [card.decision(name) for name in (None, "T2w", "T1w")] == [
        Decision(0.4, 0.6, 50), Decision(0.4, 0.6, 50), Decision(0.15, 0.5, 50)]
    other = card.changed(threshold=0.6, contrasts={}, sure=0, min_lesion_mm3=10)
    assert common_decision([card, other], "T1w") == Decision(0.375, 0.25, 50)
    assert common_decision([card], "T1w", threshold=0.3) == Decision(0.3, 0.0, 50)  # the user's decides alone
    assert common_decision([card], "T1w", min_lesion_mm3=0) == Decision(0.15, 0.5, 0)
    assert read_card(tmp_path, "last.safetensors").decision("T1w") == Decision(0.7, 0.0, 50)  # of other weights


def test_another_class_may_count_as_the_marked_one(tmp_path):
    write_model(tmp_path, classes=3)
    edit(tmp_path / "config.json", scaling="lesions_bright", classes=["background", "lesion", "spots"], marks="lesion",
         contrasts={"T1w": {"also": ["spots"]}})
    card = read_card(tmp_path)
    assert [card.decision(name).also for name in (None, "T2w", "T1w")] == [(), (), ("spots",)]
    assert common_decision([card, card], "T1w", threshold=0.3) == Decision(0.3, 0.0, card.min_lesion_mm3, ("spots",))
    for also, marks in (("spots", "lesion"), (["lesion"], "lesion"), (["background"], "lesion"), (["spots"], None)):
        edit(tmp_path / "config.json", marks=marks, contrasts={"T1w": {"also": also}})
        with pytest.raises(UserError, match=r"found also = .*, expected a list of classes beside the one"):
            read_card(tmp_path)


@pytest.mark.parametrize("changes, words", [
    ({"sure": 1.2}, "found sure = 1.2, expected a threshold or sure from 0 to 1"), ({"sure": True}, "sure = True"),
    ({"contrasts": {"CT": {}}}, "found contrasts for 'CT', expected some of T1w, T2w, FLAIR or DWI"),
    ({"contrasts": {"T1w": {"size": 3}}}, "found size = 3"), ({"contrasts": {"T1w": 0.3}}, "found contrasts = "),
    ({"contrasts": {"T1w": {"min_lesion_mm3": -1}}}, "found min_lesion_mm3 = -1"),
    ({"contrasts": {"T1w": {"quality": {"marked": [0] * 5}}}}, "found quality for T1w = .*, expected marked of 5 and"),
    ({"contrasts": {"T1w": {"quality": {"marked": [0] * 5, "empty": [0] * 2}}}}, "found quality for T1w = "),
    ({"contrasts": {"T1w": {"quality": {"marked": [0] * 5, "empty": [0, True, 0]}}}}, "found quality for T1w = "),
    ({"contrasts": {"T1w": {"quality": {"marked": [10**400] * 5, "empty": [0] * 3}}}}, "found quality for T1w = "),
    ({"contrasts": {"T1w": {"quality": [0] * 8}}}, "found quality for T1w = .* or remove it"),
    ({"contrasts": {"T1w": {}}, "scaling": "quantile"}, "expected one channel and the scaling lesions_bright"),
    ({"threshold": "0,5"}, "found threshold = '0,5', expected a number from 0 to 1"),
    ({"threshold": 50}, "found threshold = 50"), ({"voxel_mm": 0}, "found voxel_mm = 0"),
    ({"min_lesion_mm3": "10"}, "found min_lesion_mm3 = '10'"), ({"voxel_mm": True}, "found voxel_mm = True"),
    ({"sure": 0.5, "classes": ["background", "a", "b"]}, "expected it with marks")])
def test_what_cannot_decide_is_refused(tmp_path, changes, words):
    write_model(tmp_path, **({"classes": 3} if "classes" in changes else {}))
    edit(tmp_path / "config.json", **({"scaling": "lesions_bright"} | changes))
    with pytest.raises(UserError, match=f"config.json: .*{words}"):
        read_card(tmp_path)
