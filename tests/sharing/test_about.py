"""What a page says of the data that its model was trained and tested on."""

from meshnet.networks.card import Card
from meshnet.sharing.about import about_html


def about(folder, training_data) -> str:
    (folder / "test_cases.csv").write_text("case,dice\na,0.4\nb,0.6\n")
    card = Card(channels=["T1w"], classes=["background", "lesion"], training_data=training_data)
    return about_html(folder / "model.safetensors", card)


def test_scores_stand_beside_the_data_that_they_are_of(tmp_path):
    drawn = about(tmp_path, {"source": {"format": "synthetic", "path": None, "cases": 24, "preset": "demo"}})
    assert "Scores on held-out synthetic cases" in drawn and "No patient&#x27;s scan" not in drawn
    assert "one data set: synthetic (cases 24, preset demo). No patient's scan is among them." in drawn
    real = about(tmp_path, {"source": {"format": "bids", "path": "/home/me/ds1", "suffix": ["T2w"]}})
    assert "Scores on held-out cases" in real and "one data set: bids (" in real and "/home" not in real
    assert "synthetic" not in real and "one data set" not in about(tmp_path, None)


def test_what_a_contrast_has_is_said_in_words(tmp_path):
    own = {"threshold": 0.3, "also": ["spots"], "first_share": 0.5, "own_weights": True, "veto": {"sure": 0.6},
           "quality": {"marked": [0] * 5, "empty": [0] * 3}, "mentions": {"spots": 5.0}}
    card = Card(channels=["any"], classes=["background", "lesion", "spots"], marks="lesion", contrasts={"T1w": own})
    assert ("on T1w</td><td>threshold 0.3, also spots, first network: share of the result 0.5, weights of its own, a "
            "veto takes back what looks like no lesion, and sure 0.6 is enough then, quality learned from synthetic "
            "heads, told where it is seen: spots from 5 mL on</td>") in about_html(
                tmp_path / "model.safetensors", card).replace("th>", "td>")
