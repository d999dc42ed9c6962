"""Cascades whose second network has weights of its own for some contrasts: which are taken, kept and refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bright import infer
from cascades import head_file, write_cascade
from conftest import run_script_file
from model_folders import edit
from safetensors.torch import load_file, save_file
from small import array

from meshnet import UserError, load_model, predict, segment_scan
from meshnet.inference import light
from meshnet.inference.models import load_models
from meshnet.networks.build import add_variants, build, network_for, variants
from meshnet.networks.card import read_card
from meshnet.networks.cascade import of_contrast
from meshnet.networks.folder import save_model
from meshnet.networks.readme import model_readme
from meshnet.scans.contrast import CONTRASTS


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return head_file(tmp_path_factory.mktemp("scan") / "a.nii.gz")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A cascade with other weights for every contrast but T2w."""
    return write_cascade(tmp_path_factory.mktemp("models") / "two", own=[name for name in CONTRASTS if name != "T2w"])


def alone(folder, contrast, out):
    """The cascade with the weights for one contrast alone, by the file's tensors."""
    tensors = of_contrast(load_file(folder / "model.safetensors"), contrast)
    network, card = load_model(write_cascade(out))
    network.load_state_dict(tensors)
    save_model(out, network, card)
    return out


def test_each_contrast_has_its_weights(tmp_path, scan, two, way):
    """What another contrast's weights would give differs."""
    looks, found = segment_scan(scan, two).contrast, {}
    assert looks in CONTRASTS
    for own in ([looks], [name for name in CONTRASTS if name != looks]):
        folder = write_cascade(tmp_path / str(len(own)), own=own)
        expected = alone(folder, looks if looks in own else None, tmp_path / f"{len(own)} alone")
        found[len(own)], plainly = (array(segment_scan(scan, one, probabilities=True).probabilities)
                                    for one in (folder, expected))
        assert np.array_equal(found[len(own)], plainly)
    assert np.abs(found[1] - found[2]).max() > 0.05


def test_the_kernels_and_pytorch_have_the_same_weights(two):
    network, card = load_model(two)
    fused = light.load(two, device="cpu")
    if fused is None:
        pytest.skip("no kernels here")
    seen = set()
    for contrast in (None, *CONTRASTS):
        ours, theirs = network_for(network, contrast), network_for(fused.network, contrast)
        assert (ours is network) == (contrast in (None, "T2w")) == (theirs is fused.network)
        np.testing.assert_array_equal(theirs.layers[-1].weight, ours.head.weight.detach().numpy())
        seen.add(float(ours.head.weight.detach().sum()))
    assert len(seen) == len(CONTRASTS) and variants(load_model(two)).keys() == set(card.own_weights)


def test_they_are_kept_with_the_model(tmp_path, two):
    save_model(tmp_path / "copy", *load_model(two))
    assert (tmp_path / "copy/model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    (tmp_path / "copy/last.safetensors").write_bytes((two / "model.safetensors").read_bytes())
    edit(tmp_path / "copy/config.json", thresholds={"last.safetensors": 0.4})
    card = read_card(tmp_path / "copy", "last.safetensors")  # of which the threshold alone is another one
    assert card.own_weights == read_card(two).own_weights and card.threshold == 0.4
    load_model(tmp_path / "copy/last.safetensors")
    assert load_models([two], device="meta")[0].network.for_contrast["T1w"].head.weight.device.type == "meta"


def test_a_card_of_other_sets_is_not_saved_with_them(tmp_path, two):
    network, card = load_model(two)
    for model, given, line in ((network, card.changed(contrasts={}), "found a card with other weights for no contrast, "
                                                                     "expected T1w, FLAIR or DWI as the network has"),
                               (network_for(network, "T1w"), card, "for T1w, FLAIR or DWI, expected none")):
        with pytest.raises(UserError, match=line):
            save_model(tmp_path / "x", model, given)
    assert not (tmp_path / "x").exists()


def test_each_set_is_computed_as_the_card_says(tmp_path, two):
    """In its patches, and given what it was trained with."""
    network, _ = load_model(two)
    with pytest.raises(UserError, match="found values from 200 to 200, expected 0 to 1"):
        predict(network_for(network, "T1w"), np.full((3, 16, 16, 16), 200, np.float32))
    torch.manual_seed(0)
    networks = [build("unet", {"in_channels": 3, "classes": 3}).eval() for _ in range(2)]
    add_variants(networks[0], {"T1w": networks[1]})
    networks[0].first = network.first
    save_model(tmp_path / "unet", networks[0], read_card(two).changed(patch=[16] * 3, contrasts={
        "T1w": {"own_weights": True}}))
    model, _ = load_model(tmp_path / "unet")
    assert network_for(model, "T1w") is not model and network_for(model, "T1w").patch == model.patch == [16] * 3


def test_two_cascades_become_one(tmp_path, scan, two):
    """Which segments a scan as that one of them does whose weights it takes, by the same decision."""
    looks = segment_scan(scan, two).contrast
    other = next(name for name in CONTRASTS if name != looks)
    folders = [write_cascade(tmp_path / name) for name in ("plain", "other")]
    network, card = load_model(alone(two, "T1w", tmp_path / "other"))
    save_model(tmp_path / "other", network, card.changed(threshold=0.4, first_share=0.2, contrasts={
        "T1w": {"sure": 0.6}, "T2w": {"threshold": 0.45}}))
    plain, theirs = (segment_scan(scan, folder, probabilities=True) for folder in folders)
    script = Path(__file__).resolve().parents[2] / "benchmarks/trust/own_weights.py"
    for contrast, expected in ((looks, theirs), (other, plain)):
        out = tmp_path / contrast
        run_script_file(script, "--common", folders[0], "--own", contrast, folders[1], "--out", out)
        found = segment_scan(scan, out, probabilities=True)
        assert np.array_equal(array(found.mask), array(expected.mask)) and found.decision == expected.decision
        assert np.array_equal(array(found.probabilities), array(expected.probabilities))
    edit(folders[1] / "first/config.json", shifted=False)
    for given, line in ((["PD", folders[1]], "--own: found PD, expected some of T1w, T2w, FLAIR or DWI, each once"),
                        (["T1w", folders[1], "--own", "T1w", folders[0]], "--own: found T1w, T1w, expected some of"),
                        (["T1w", folders[1] / "model.safetensors"], "is a file, expected a model folder"),
                        (["T1w", folders[0] / "first"], "is a single network, expected a cascade"),
                        (["T1w", folders[1]], "found another first network than in"),
                        (["T1w", write_cascade(tmp_path / "m", mirror=True)], "found in_channels 6, expected 3 as")):
        refused = run_script_file(script, "--common", folders[0], "--own", *given, "--out", tmp_path / "x", check=False)
        assert refused.returncode == 2 and line in refused.stderr and refused.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()
    wide = write_cascade(tmp_path / "wide", ("T1w", "T2w"), scaling="conform_uint8")
    before = (wide / "config.json").read_bytes()
    refused = run_script_file(script, "--common", wide, "--own", "T1w", wide, "--out", wide, check=False)
    assert refused.returncode == 2 and "found contrasts, expected one channel and the scaling" in refused.stderr
    assert (wide / "config.json").read_bytes() == before


def test_what_a_page_and_a_readme_say_of_them(tmp_path, two):
    from meshnet.sharing.about import about_html

    network, card = load_model(two)
    each = sum(value.numel() for value in network_for(network, "T1w").parameters())
    said = model_readme(network, card, "me/two", tmp_path, None, "mit")
    assert (f"A meshnet of {each:,} parameters, with other weights for scans that look like T1w and like FLAIR or DWI, "
            "the second of a cascade") in said
    assert "weights of its own" in about_html(two / "model.safetensors", card)


@pytest.mark.parametrize("kernels", [True, False])
def test_a_file_without_them_or_with_others_is_refused(tmp_path, scan, kernels, monkeypatch, capsys):
    if not kernels:
        monkeypatch.setattr(light, "load", lambda *_, **__: None)
    folder = write_cascade(tmp_path / "two", own=["T1w"])
    path, tensors = folder / "model.safetensors", load_file(folder / "model.safetensors")
    lacking = of_contrast(tensors, None)
    others = {**lacking, **{f"for_contrast.T2w.{name}": value.clone() for name, value in lacking.items()}}
    for changed, line in ((lacking, "lacks 23 tensors"), (others, "lacks 23 tensors"),
                          ({**tensors, **others}, "has unknown 23 tensors"),
                          ({**tensors, "for_contrast.T1w.head.bias": torch.zeros(2)}, "found for_contrast.T1w.head.")):
        save_file(changed, path)
        with pytest.raises(UserError, match=f"{path}: {line}"):
            segment_scan(scan, folder)
    save_file(tensors, path)
    values = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", contrasts={"T1w": {"sure": 0.1}})
    with pytest.raises(UserError, match="has unknown 23 tensors"):
        segment_scan(scan, folder)
    for contrasts, line in (({"T1w": {"own_weights": 1}}, "found own_weights = 1 for T1w, expected true in a cascade"),
                            ({"PD": {"own_weights": True}}, "found contrasts for 'PD', expected some of")):
        edit(folder / "config.json", contrasts=contrasts)
        refused = infer(scan, "-o", tmp_path / "m.nii.gz", "--model", folder, check=False)
        assert refused.returncode == 2 and line in refused.stderr and not (tmp_path / "m.nii.gz").exists()
    edit(folder / "first/config.json", contrasts={"T1w": {"own_weights": True}})
    edit(folder / "config.json", **values)
    with pytest.raises(UserError, match="found own_weights = True for T1w, expected true in a cascade, or false"):
        segment_scan(scan, folder)
