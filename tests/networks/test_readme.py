"""The model card's page: what it says, and what it must not."""

from stand_in_hub import SOURCE

from meshnet.networks.card import Card, read_card
from meshnet.networks.folder import save_model
from meshnet.networks.meshnet import MeshNet
from meshnet.networks.readme import dataset_readme, model_readme, public_source, public_training_data, safe_source


def test_no_card_says_where_data_lay_or_who_was_in_it():
    source = {**SOURCE, "include": ["subject=sub-secret"], "exclude": ["subject=sub-hidden"], "labels": "/a/l.json"}
    words = public_source(source)
    assert words == "bids (suffix ['T2w'])" and safe_source(source) == {"format": "bids", "suffix": ["T2w"]}
    for path in ("/home/someone/x", "~/x", "./x", "C:\\x", "../x", "file:///home/x"):
        for before, after in ((" ", " "), ("(", ")"), ("'", "'"), ("=", ",")):
            found = public_source(f"scans of{before}{path}{after}and more")
            assert found == f"scans of{before}a local path{after}and more"
    assert public_source("of /home/Bob Smith/sub-01/x.nii") == "of a local path"
    for harmless in ("heads alone (meshnet/synthetic.py)", "T1w / T2w of ~500 people", "a share of 3/4", "T2w/FLAIR"):
        assert public_source(harmless) == harmless
    known = {"source": source, "began_as": "/home/someone/run", "cases": 3}
    assert public_training_data(known) == {"source": words, "began_as": "a local path", "cases": 3}
    assert public_source({"path": "/x"}) == "not recorded"


def test_the_card_names_what_is_marked_alone(tmp_path):
    model = MeshNet(4, dilations=(1,), classes=3)
    save_model(tmp_path, model, Card(**{"channels": ["T2w"], "classes": ["background", "lesion", "fluid"]}))
    for marks, words in ((None, "Segments lesion, fluid on T2w head scans."), ("lesion", "Segments lesion on T2w")):
        card = read_card(tmp_path).changed(marks=marks)
        assert words in model_readme(model, card, "user/stroke", tmp_path / "none.csv", None, "mit")
    info = {"cases": 2, "subjects": 2, "source": {"format": "synthetic"}, "channels": ["T2w"],
            "classes": card.classes, "shape": [4, 4, 4],
            "voxel_mm": 4.0, "orientation": "LIA", "scaling": "minmax", "marks": "lesion"}
    assert "classes background, lesion, fluid of which lesion alone is marked, 4×4×4" in dataset_readme(
        info, "user/data", "mit")
