"""The card beside an export: exported and imported again, a model gives the same mask."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import run_script_file
from small import CARD, randomise

from meshnet.errors import UserError
from meshnet.inference.scan import load_models, read_case, segment_case
from meshnet.networks.card import Card, read_card
from meshnet.networks.folder import save_model
from meshnet.networks.meshnet import MeshNet
from meshnet.sharing.importing import import_model

SETTINGS = {"channels": ["T2w"], "classes": ["background", "fluid", "lesion"], "voxel_mm": 8.0, "orientation": "RAS",
            "scaling": "quantile", "threshold": 0.31, "min_lesion_mm3": 2000.0, "marks": "lesion", "shifted": True,
            "averaged": True, "sure": 0.33, "thresholds": {"model.safetensors": 0.31, "last.safetensors": 0.7}}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a model ``m`` whose card has no default, and its export ``out``."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    model = randomise(MeshNet(4, dilations=(1, 2), classes=3))
    with torch.no_grad():  # no class is everywhere
        model.head.bias -= model(torch.rand(1, 1, 24, 24, 24)).mean((0, 2, 3, 4))
    data = {"source": {"format": "table", "path": "/home/someone/cases.csv"}, "cases": 7}
    save_model(folder / "m", model, Card(**SETTINGS, training_data=data))
    run_script_file("share.py", "tfjs", folder / "m", folder / "out")
    return folder


@pytest.fixture
def place(exported, tmp_path):
    """A copy of it."""
    return shutil.copytree(exported, tmp_path / "copy")


def mask_of(folder, scan) -> np.ndarray:
    models = load_models([folder], device="cpu")
    return np.asarray(segment_case(read_case([scan], models), models).mask.dataobj)


def test_a_model_exported_and_imported_again_gives_the_same_mask(place):
    import nibabel as nib

    scan = place / "scan.nii.gz"
    values = np.random.default_rng(0).random((40, 48, 44), dtype=np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([5.0, 4.5, 5.0, 1])), scan)
    said = run_script_file("share.py", "import", place / "out" / "model.json", place / "again").stdout
    assert "RAS, quantile, 8 mm, threshold 0.31, smallest lesion 2 mL" in said and "assumed" not in said
    before, after = mask_of(place / "m", scan), mask_of(place / "again", scan)
    assert 0 < np.count_nonzero(before) < before.size and np.array_equal(before, after)
    old, new = read_card(place / "m"), read_card(place / "again")
    assert all(getattr(new, key) == value for key, value in SETTINGS.items() if key != "thresholds")
    assert new.training_data["imported_from"] == "model.json" and new.training_data["cases"] == 7 and old.crop is None
    assert "someone" not in (place / "out" / "card.json").read_text()
    import_model(place / "out" / "model.json", place / "again")  # an import may be made again


def test_flags_go_before_the_card(place):
    import_model(place / "out" / "model.json", place / "again", channels=["FLAIR"], classes=["a", "b", "c"],
                 scaling="minmax", orientation="lia", voxel_mm=4.0)
    card = read_card(place / "again")
    assert (card.channels, card.classes, card.marks) == (["FLAIR"], ["a", "b", "c"], "c")
    assert (card.scaling, card.orientation, card.voxel_mm, card.shape) == ("minmax", "LIA", 4.0, None)
    assert card.threshold == 0.31
    with pytest.raises(UserError, match="1 input channels and 3 classes, found 2 names in --channels and 3"):
        import_model(place / "out" / "model.json", place / "again", channels=["a", "b"])


def test_an_export_that_lost_its_card_is_not_guessed(place):
    (place / "out" / "card.json").unlink()
    with pytest.raises(UserError, match=r"no card\.json beside it.* --channels, --orientation, --scaling$"):
        import_model(place / "out" / "model.json", place / "again", voxel_mm=8.0)
    assert not (place / "again").exists()
    said = import_model(place / "out" / "model.json", place / "again", channels=["T2w"], voxel_mm=8.0,
                        orientation="RAS", scaling="quantile")
    assert said.endswith("assumed, since no card says it: threshold 0.5, no smallest lesion")


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda p: p.write_text("{"), "not valid JSON"),
    (lambda p: p.write_text('{"format": 9}'), "found format 9"),
    (lambda p: p.write_text(json.dumps(json.loads(p.read_text()) | {"exported": None})), "no file that it belongs to"),
    (lambda p: p.write_text(json.dumps(json.loads(p.read_text()) | {"channels": []})), "found channels"),
    (lambda p: p.write_text(p.read_text().replace('"sha256": "', '"sha256": "0')), "belongs to other weights"),
])
def test_a_card_that_does_not_fit_is_refused(place, spoil, message):
    spoil(place / "out" / "card.json")
    with pytest.raises(UserError, match=rf"card\.json: .*{message}"):
        import_model(place / "out" / "model.json", place / "again")
    assert not (place / "again").exists()


def test_onnx_has_its_card_beside_it(tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    save_model(tmp_path / "m", randomise(MeshNet(4, dilations=(1, 2))), Card(**CARD, threshold=0.31))
    run_script_file("share.py", "onnx", tmp_path / "m", tmp_path / "net.onnx")
    written = json.loads((tmp_path / "net.card.json").read_text())
    assert (written["threshold"], written["exported"]["file"], written["size_multiple"]) == (0.31, "net.onnx", 1)
