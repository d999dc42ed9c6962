"""Public models: fetched, pinned and kept."""

import dataclasses
import json

import pytest
from as_published import made_up, run_command
from cascades import write_cascade

from meshnet.config import SCALINGS
from meshnet.errors import UserError
from meshnet.networks import build
from meshnet.networks.card import read_card
from meshnet.sharing import published


def test_a_public_model_is_fetched_pinned_and_kept(shared_data, tmp_path, monkeypatch):
    from meshnet.sharing import published

    model = published.PUBLIC["brainchop-tissue-light"]
    source = tmp_path / "source" / model.commit / model.folder
    source.mkdir(parents=True)
    for name in ("model.json", model.binary):
        (source / name).write_bytes((shared_data / "brainchop" / name).read_bytes())
    monkeypatch.setattr(published, "SOURCE", (tmp_path / "source").as_uri())
    monkeypatch.setenv("MESHNET_CACHE", str(tmp_path / "kept"))
    network, card = build.load_model(published.find("brainchop-tissue-light"))
    assert network.arguments["channels"] == 5 and card.scaling == "minmax" and card.orientation == "LIA"
    with monkeypatch.context() as changed:  # another commit or scaling under the same name is another model
        other = dataclasses.replace(model, scaling="brainchop_quantile")
        changed.setitem(published.PUBLIC, "brainchop-tissue-light", other)
        assert build.load_model(published.find("brainchop-tissue-light"))[1].scaling == "brainchop_quantile"
        changed.setitem(published.PUBLIC, "brainchop-tissue-light", dataclasses.replace(model, commit="0" * 40))
        with pytest.raises(UserError, match="could not be downloaded"):
            build.load_model(published.find("brainchop-tissue-light"))
    (source / "model.json").unlink()
    assert build.load_model(published.find("brainchop-tissue-light"))[1] == card  # from the cache
    monkeypatch.setenv("MESHNET_CACHE", str(tmp_path / "second"))
    with pytest.raises(UserError, match="could not be downloaded"):
        build.load_model(published.find("brainchop-tissue-light"))
    (source / "model.json").write_bytes(b"{}")  # what cannot be read is fetched anew
    with pytest.raises(UserError, match="not a TensorFlow"):
        build.load_model(published.find("brainchop-tissue-light"))
    (source / "model.json").write_bytes((shared_data / "brainchop" / "model.json").read_bytes())
    assert build.load_model(published.find("brainchop-tissue-light"))[1] == card
    (source / model.binary).write_bytes(b"\0" * 22392)
    monkeypatch.setenv("MESHNET_CACHE", str(tmp_path / "third"))
    with pytest.raises(UserError, match="sha256 differs"):
        build.load_model(published.find("brainchop-tissue-light"))
    assert {model.scaling or "minmax" for model in published.PUBLIC.values()} <= set(SCALINGS)
    assert "brainchop-t2-lesion" in published.list_models()


def test_a_model_by_name_gets_the_card_of_an_import(tmp_path, monkeypatch):
    """Sub-volumes, the file's own scaling and its colormap: as ``import`` reads them."""
    model = published.Public("made up", "T1w", "sub", "0" * 40, "model.bin")
    (tmp_path / "source" / model.commit / "sub").mkdir(parents=True)
    made_up(tmp_path / "source" / model.commit / "sub", _normalize={"type": "quantile", "min": 5, "max": 95})
    monkeypatch.setattr(published, "SOURCE", (tmp_path / "source").as_uri())
    monkeypatch.setenv("MESHNET_CACHE", str(tmp_path / "kept"))
    monkeypatch.setitem(published.PUBLIC, "made-up", model)
    colours = {"labels": ["nothing", "something"]}
    (tmp_path / "source" / model.commit / "sub" / "colormap.json").write_text(json.dumps(colours))
    run_command("import", tmp_path / "source" / model.commit / "sub" / "model.json", tmp_path / "m")
    ours, theirs = (read_card(path) for path in (tmp_path / "m", published.fetch("made-up")))
    assert theirs.shape is None and theirs.scaling == "brainchop_quantile"
    assert ours.changed(training_data=None) == theirs.changed(training_data=None) and theirs.classes[1] == "something"


def test_the_list_has_the_parameters_of_both_networks_of_a_cascade(tmp_path, monkeypatch):
    from meshnet.cohort.facts import model_facts
    from meshnet.networks import folder

    two = write_cascade(tmp_path / "two")
    monkeypatch.setattr(folder, "BUILT_IN", tmp_path)
    numbers = [published.parameters_in(path / "model.safetensors") for path in (two / "first", two)]
    row = next(line for line in published.list_models().splitlines() if line.startswith("two "))
    assert f"  {' + '.join(numbers)}  " in row and numbers[0] != numbers[1]
    facts = [model_facts([path], [read_card(path)], "model.safetensors")[0] for path in (two, two / "first")]
    assert facts[0]["FirstWeightsSHA256"] == facts[1]["WeightsSHA256"] != facts[0]["WeightsSHA256"]
    assert "FirstWeightsSHA256" not in facts[1]
