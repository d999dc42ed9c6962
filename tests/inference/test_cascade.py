"""Cascades: the mask of infer.py beside the specification written plainly, and what is refused."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from bright import infer
from cascades import CLASSES, first_network, head_file, plain_input, write_cascade
from model_folders import edit
from small import array, by_model, image_of, needs_kernels, network

from meshnet import MeshNet, UserError, load_model, predict, segment_scan
from meshnet.inference import light
from meshnet.inference.agreement import agreement
from meshnet.inference.cascade import second_probabilities, second_volume
from meshnet.inference.models import load_models
from meshnet.inference.scan import read_case, segment_case
from meshnet.networks.build import Model
from meshnet.networks.card import read_card
from meshnet.networks.folder import save_model
from meshnet.scans import grid as grids
from meshnet.scans.contrast import CONTRASTS, T1W, turned_round
from meshnet.scans.grid import conform, to_native
from meshnet.scans.mask import slices
from meshnet.scans.second import mixed, region


def by_hand(paths, folder, turned=False):
    """The probability of lesion on the scan's grid, by PyTorch's modules and the specification in plain loops."""
    images = [nib.load(path) for path in paths]
    (second, card), (first, before) = load_model(folder), load_model(folder / "first")
    own, p = card.grids()[0], 0
    grey = [array(conform(image, own, "conform_uint8", reference=images[0], exact=False)) for image in images]
    grey = np.stack([turned_round(one) if turned else one for one in grey])
    affine = conform(images[0], own, exact=False).affine
    for each in before.grids():
        seen = [array(conform(one, each, reference=images[0], exact=False)) for one in images]
        seen = np.stack([turned_round(one) if turned else one for one in seen])
        found = by_model(first, seen.astype(np.float32) / 255)
        found = np.exp(found - found.max(0)) / np.exp(found - found.max(0)).sum(0)
        there = conform(images[0], each, exact=False).affine
        p = p + to_native(found[1:], there, SimpleNamespace(affine=affine, shape=own.size)) / len(before.grids())
    given = plain_input(grey, p.astype(np.float32), card.voxel_mm, card.across)
    logits = by_model(second, given.astype(np.float32) / 255)
    found = np.exp(logits - logits.max(0)) / np.exp(logits - logits.max(0)).sum(0)
    inside = np.zeros(own.size, bool)
    inside[slices(region(p.astype(np.float32), card.voxel_mm))] = True
    found = np.where(inside, found, np.float32([1, 0, 0]).reshape(3, 1, 1, 1))
    share, place = card.first_share, len(card.channels) + card.first.index("lesion")
    found = (1 - share) * found + share * given[place].astype(np.float32) / 255
    return to_native(found[1:2], affine, images[0], seen_only=True)[0]


def agree(found, expected, threshold=0.5):
    """Whether a segmentation is that of the probabilities ``expected`` (X, Y, Z), to rounding: of float32, and of the
    first network's, which become uint8, here and there by 1."""
    apart = np.abs(array(found.probabilities) - expected)
    assert np.quantile(apart, 0.98) < 1e-4 and apart.max() < 0.02
    sure = np.abs(expected - threshold) > 0.02
    mask = array(found.mask) > 0
    assert (mask == (expected >= threshold))[sure].all() and mask.any() and sure.mean() > 0.9


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return head_file(tmp_path_factory.mktemp("scan") / "a.nii.gz")


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    return write_cascade(tmp_path_factory.mktemp("models") / "two")


@pytest.mark.parametrize("shifted", [True, False])
def test_the_mask_is_that_of_the_specification(tmp_path, scan, way, shifted):
    folder = write_cascade(tmp_path / "two", shifted=shifted)
    agree(segment_scan(scan, folder, probabilities=True), by_hand([scan], folder))


@pytest.mark.parametrize("mirror", [False, True])
def test_a_veto_takes_back_what_has_a_score_below_nothing(tmp_path, scan, way, mirror):
    folder = write_cascade(tmp_path / "two", mirror=mirror)
    plainly = segment_scan(scan, folder, probabilities=True)
    number = 4 + 2 * (6 if mirror else 3)

    def vetoed(bias, *weights):
        veto = {"bias": bias, "weights": [*weights, *[0] * (number - len(weights))]}
        edit(folder / "config.json", contrasts={plainly.contrast: {"veto": veto}})
        return segment_scan(scan, folder, probabilities=True)

    kept, none, some = vetoed(0.0), vetoed(-1), vetoed(-2, 1.0)  # the last: those under 7.4 mL
    assert np.array_equal(array(kept.mask), array(plainly.mask)) and kept.remarks == plainly.remarks
    assert none.volume_ml == 0 < some.volume_ml and 0 < some.lesions < plainly.lesions
    for found in (none, some):
        assert found.veto and any(line.endswith("mL found and taken back by the model's veto, as no lesion")
                                  for line in found.remarks)
    assert (array(some.probabilities) <= array(plainly.probabilities) + 1e-6).all()
    assert array(none.probabilities).max() < 0.5


def test_what_a_veto_looks_at_is_what_would_be_marked(tmp_path, scan):
    """By the contrast's own threshold, ``sure`` and ``also``: what these leave out does not meet it."""
    folder = write_cascade(tmp_path / "two")
    looks = segment_scan(scan, folder).contrast
    never = {"veto": {"bias": -1, "weights": [0] * 10}}
    taken = {}
    for name, own in (("0.5", {}), ("0.6", {"threshold": 0.6}), ("sure", {"sure": 0.7}), ("both", {"also": ["fluid"]})):
        edit(folder / "config.json", contrasts={looks: own})
        found = segment_scan(scan, folder)
        edit(folder / "config.json", contrasts={looks: {**own, **never}})
        none = segment_scan(scan, folder)
        assert found.volume_ml > 0 == none.volume_ml and "veto" in none.remarks[0]
        taken[name] = float(none.remarks[0].split()[0])
    assert taken["both"] > taken["0.5"] > max(taken["0.6"], taken["sure"])


def test_a_veto_counts_for_one_model_with_its_own_threshold(tmp_path, scan):
    """And each time alike; not for other weights of the folder, nor where a threshold is given."""
    from meshnet.inference.agreement import agreement

    folder = write_cascade(tmp_path / "two")
    plainly = segment_scan(scan, folder)
    lower = segment_scan(scan, folder, threshold=0.3)
    (tmp_path / "two/last.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    edit(folder / "config.json", thresholds={"last.safetensors": 0.4},
         contrasts={plainly.contrast: {"veto": {"bias": -2, "weights": [1.0, *[0] * 9]}}})
    models = load_models([folder])
    case = read_case([scan], models)
    first, again = segment_case(case, models), segment_case(case, models)
    assert first.remarks == again.remarks and len(again.remarks) == len(plainly.remarks) + 1
    for found, expected in ((segment_scan(scan, folder, threshold=0.3), lower),
                            (segment_scan(scan, [folder, folder]), plainly)):
        assert np.array_equal(array(found.mask), array(expected.mask)) and not found.veto
        assert found.remarks == expected.remarks
    assert not segment_scan(scan, folder / "last.safetensors").veto
    edit(folder / "config.json", contrasts={plainly.contrast: {"sure": 1, "veto": {
        "bias": 1, "weights": [0] * 10, "sure": 0.5}}})  # where it counts it lets more through
    assert np.array_equal(array(segment_scan(scan, folder).mask), array(plainly.mask))
    assert segment_scan(scan, folder).decision.sure == 0.5
    assert segment_scan(scan, [folder, folder]).volume_ml == 0 and read_card(folder).decision("T1w").sure == 0
    edit(folder / "config.json", contrasts={plainly.contrast: {"veto": {"bias": -1, "weights": [0] * 10}}})
    models = load_models([folder])
    empty = np.zeros(array(plainly.mask).shape)
    assert agreement(case, models, empty) == 1 > agreement(case, models, empty, threshold=0.5)


def test_what_a_page_says_of_a_veto(tmp_path, scan):
    from meshnet.sharing.about import about_html

    folder = write_cascade(tmp_path / "two", contrasts={"T1w": {"threshold": 0.3, "veto": {
        "bias": 1, "weights": [0] * 10, "sure": 0.7}}})
    said = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", about_html(folder / "model.safetensors", read_card(folder))))
    assert "on T1w threshold 0.3, a veto takes back what looks like no lesion, and sure 0.7 is enough then" in said


@pytest.mark.parametrize("orientation", ["LIA", "PSR"])
def test_the_second_network_can_be_given_the_mirror_image(tmp_path, scan, way, orientation):
    folder = write_cascade(tmp_path / "two", mirror=True, orientation=orientation)
    found = segment_scan(scan, folder, probabilities=True)
    agree(found, by_hand([scan], folder))
    network, card = load_model(folder)
    with torch.no_grad():
        network.blocks[0].conv.weight[:, 3:] = 0
    save_model(folder, network, card)
    without = segment_scan(scan, folder, probabilities=True)
    assert np.abs(array(found.probabilities) - array(without.probabilities)).max() > 0.05


def test_the_first_network_can_have_a_share_of_the_result(tmp_path, scan, way):
    folder = write_cascade(tmp_path / "two")
    alone = array(segment_scan(scan, folder, probabilities=True).probabilities)
    edit(folder / "config.json", first_share=0.4)
    found = segment_scan(scan, folder, probabilities=True)
    agree(found, by_hand([scan], folder))
    assert np.abs(array(found.probabilities) - alone).max() > 0.05


def test_the_share_can_be_another_on_scans_that_look_otherwise(tmp_path, scan, way):
    folder = write_cascade(tmp_path / "two")
    plainly = array(segment_scan(scan, folder, probabilities=True).probabilities)
    looks = segment_scan(scan, folder).contrast
    other = next(name for name in CONTRASTS if name != looks)
    for contrast, changed in ((other, False), (looks, True)):
        edit(folder / "config.json", contrasts={contrast: {"first_share": 0.4, "threshold": 0.45}})
        found = segment_scan(scan, folder, probabilities=True)
        assert np.array_equal(array(found.probabilities), plainly) != changed
    assert found.decision.threshold == 0.45
    edit(folder / "config.json", contrasts={}, first_share=0.4)
    agree(found, by_hand([scan], folder), 0.45)


def test_agreement_looks_with_the_share_of_the_contrast(tmp_path, scan):
    folder = write_cascade(tmp_path / "two", mirror=True)
    found = {}
    for name, changes in (("all", {"first_share": 0.9}), ("by contrast", {"first_share": 0, "contrasts": {
            contrast: {"first_share": 0.9, "threshold": 0.3} for contrast in CONTRASTS}})):
        edit(folder / "config.json", threshold=0.3, **changes)
        models = load_models([folder])
        case = read_case([scan], models)
        mask = array(segment_case(case, models).mask)
        found[name] = agreement(case, models, mask)
    assert found["all"] == found["by contrast"] > 0.1
    edit(folder / "config.json", sure=0.999, contrasts={})  # neither look is sure of anything
    models = load_models([folder])
    case = read_case([scan], models)
    mask = array(segment_case(case, models).mask)
    assert not mask.any() and agreement(case, models, mask) == 1


def test_a_share_by_hand():
    """One voxel: background, lesion, disease 0.2, 0.5, 0.3; the first network says fluid, disease, lesion 0, 0.2, 1."""
    own = np.float32([0.2, 0.5, 0.3]).reshape(3, 1, 1, 1)
    found = mixed(own, np.uint8([0, 51, 255]).reshape(3, 1, 1, 1), [2, 1], 0.25)
    assert found is own and np.allclose(found.ravel(), [1 - 0.625 - 0.275, 0.625, 0.275], atol=1e-6)


def test_a_scan_that_the_first_network_saw_turned_round_is_so_for_the_second(scan, cascade, monkeypatch):
    plainly = by_hand([scan], cascade)
    monkeypatch.setattr(grids, "likelihoods", lambda volume, *_: {T1W: 0.9 * (len(volume) == 16), "T2w": 0.5})
    found = segment_scan(scan, cascade, probabilities=True)
    expected = by_hand([scan], cascade, turned=True)
    assert found.contrast == T1W and np.abs(array(found.probabilities) - expected).max() < 2e-3
    assert np.abs(expected - plainly).max() > 0.1


def test_several_channels_and_norms_that_need_whole_maps(tmp_path, scan, way):
    """The second network's norm takes in the zeros outside the region, as in training."""
    other = head_file(tmp_path / "b.nii.gz", seed=1)
    folder = write_cascade(tmp_path / "two", ("FLAIR", "T1w"), scaling="conform_uint8", second_norm="instance")
    agree(segment_scan([scan, other], folder, probabilities=True), by_hand([scan, other], folder))


def test_computing_the_head_gives_the_mask_of_computing_everything(scan, cascade, way):
    head, everything = (segment_scan(scan, cascade, crop=crop) for crop in ("head", "none"))
    assert np.array_equal(array(head.mask), array(everything.mask)) and head.volume_ml > 1


@pytest.mark.parametrize("share", [0, 0.4])
def test_all_outside_the_first_networks_region_is_background(tmp_path, scan, way, share):
    """Even where the second network takes what lies there for lesion: the air, which is 0, as all outside is."""
    folder = write_cascade(tmp_path / "two", first_share=share)
    network, card = load_model(folder)
    network.head.bias.data[1] += 30
    save_model(folder, network, card)
    models = load_models([folder])
    case = read_case([scan], models)
    given = second_volume(models[0].network.first, case.inputs[0], case.seconds[0], 8.0)
    volume, box = given
    inside = np.zeros(volume.shape[1:], bool)
    inside[slices(box)] = True
    for crop in ("head", "none"):
        found = second_probabilities(models[0], given, volume.shape[1:], crop=crop)
        assert not found[1:, ~inside].any() and (found[0, ~inside] == 1).all() and not inside.all()
        assert (found[1, inside] > 0.5 * (1 - share)).all()


def test_where_the_first_network_finds_nothing_the_second_is_not_run(tmp_path, cascade, monkeypatch):
    folder = write_cascade(tmp_path / "two")
    network, card = load_model(folder / "first")
    network.head.bias.data[0] = 100
    save_model(folder / "first", network, card)
    scan = head_file(tmp_path / "a.nii.gz")
    models = load_models([folder])
    case = read_case([scan], models)
    from meshnet.inference import cascade as inside

    real = inside.predict
    monkeypatch.setattr(inside, "predict", lambda model, *given, **more: real(model, *given, **more)
                        if model is models[0].network.first.network else pytest.fail("the second network was run"))
    found = segment_case(case, models, probabilities=True)
    assert not array(found.mask).any() and not array(found.probabilities).any() and found.volume_ml == 0
    monkeypatch.undo()
    alone = segment_scan(scan, cascade, probabilities=True)
    both = segment_scan(scan, [cascade, folder], probabilities=True)
    np.testing.assert_allclose(array(both.probabilities), array(alone.probabilities) / 2, atol=1e-6)


def test_several_classes_are_marked_and_none_where_nothing_is_found(tmp_path, scan):
    folder = write_cascade(tmp_path / "two", marks=None)
    assert set(np.unique(array(segment_scan(scan, folder).mask))) > {0, 1}
    network, card = load_model(folder / "first")
    network.head.bias.data[0] = 100
    save_model(folder / "first", network, card)
    assert not array(segment_scan(scan, folder).mask).any()


@needs_kernels
def test_a_cascade_needs_no_pytorch(scan, cascade):
    code = f"""
import sys
from meshnet import segment_scan
found = segment_scan({str(scan)!r}, {str(cascade)!r})
assert "torch" not in sys.modules
print(found.volume_ml)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with_torch = segment_case(read_case([scan], [load_model(cascade)]), [load_model(cascade)])
    assert float(found.stdout) == pytest.approx(with_torch.volume_ml, rel=0.01) and with_torch.volume_ml > 1


def test_without_kernels_for_the_first_network_pytorch_runs_both(tmp_path):
    folder = write_cascade(tmp_path / "two")
    model, card = load_model(folder / "first")
    save_model(folder / "first", model.double(), card)  # which the kernels do not take
    assert light.load(folder, device="cpu") is None
    assert isinstance(load_models([folder], device="cpu")[0].network.first.network, MeshNet)


def test_both_networks_go_to_the_device(cascade):
    model = load_models([cascade], device="meta")[0]
    assert {next(each.parameters()).device.type for each in (model.network, model.network.first.network)} == {"meta"}


def test_averaged_with_itself_a_cascade_gives_its_mask_and_with_a_single_network_their_mean(tmp_path, scan, cascade):
    alone = segment_scan(scan, cascade, probabilities=True)
    both = segment_scan(scan, [cascade, cascade], probabilities=True)
    assert np.array_equal(array(alone.mask), array(both.mask))
    assert np.array_equal(array(alone.probabilities), array(both.probabilities))
    single = segment_scan(scan, cascade / "first", probabilities=True)
    mixed = segment_scan(scan, [cascade / "first", cascade], probabilities=True)
    mean = (array(single.probabilities) + array(alone.probabilities)) / 2
    np.testing.assert_allclose(array(mixed.probabilities), mean, atol=1e-6)


def test_infer_says_both_stages_and_gives_the_mask_of_the_call(tmp_path, scan, cascade):
    said = infer(scan, "-o", tmp_path / "m.nii.gz", "--model", cascade, "--probability", "--json", "--agreement")
    result = json.loads(said.stdout)
    assert 0 <= result["agreement"] <= 1 and {"first", "compute", "back"} < set(result["parts"])
    found = segment_scan(scan, cascade)
    assert np.array_equal(array(nib.load(tmp_path / "m.nii.gz")), array(found.mask))
    said = infer(scan, "-o", tmp_path / "n.nii.gz", "--model", cascade, "--no-picture")
    assert f"{cascade} (two networks, of 16 mm and 8 mm): marks lesion (disease not stated) on T1w scans" in said.stderr
    said = infer(scan, "-o", tmp_path / "o.nii.gz", "--model", cascade, cascade / "first", "--no-picture")
    assert f"mean of 2 models ({cascade} (two networks, of 16 mm and 8 mm), {cascade / 'first'})" in said.stderr


def test_remarks_of_conforming_are_told_once(tmp_path, cascade):
    image = nib.load(head_file(tmp_path / "a.nii.gz"))
    nib.save(image_of(array(image), np.diag([8.0, 8, 8, 1])), tmp_path / "large.nii.gz")
    data = array(image).copy()
    data[25, 30, 30] = 1e6
    nib.save(image_of(data, image.affine), tmp_path / "bright.nii.gz")
    for name, words in (("large", "the grid was enlarged"), ("bright", "far outside all others")):
        remarks = read_case([tmp_path / f"{name}.nii.gz"], load_models([cascade])).remarks
        assert sum(words in line for line in remarks) == 1, remarks


def test_a_mirrored_look_at_a_cascade_that_does_not_know_the_sides_agrees(tmp_path, scan):
    folder = write_cascade(tmp_path / "two")
    for each in (folder, folder / "first"):
        model, card = load_model(each)
        for block in model.blocks:
            block.conv.weight.data += block.conv.weight.data.flip(2)
        save_model(each, model, card)
    from meshnet.inference.agreement import agreement

    models = load_models([folder])
    case = read_case([scan], models)
    mask = array(segment_case(case, models).mask)
    assert mask.any() and agreement(case, models, mask) > 0.98


def test_load_model_returns_both_networks_and_saves_both(tmp_path, cascade):
    model, card = load_model(cascade)
    assert card.inputs == ["T1w", *CLASSES[1:]] and model.first.card.shifted
    assert predict(model, np.zeros((3, 32, 32, 32), np.float32)).shape == (3, 32, 32, 32)
    save_model(tmp_path / "copy", model, card)
    again, card_again = load_model(tmp_path / "copy")
    assert card_again == card and again.first.card == model.first.card
    for one, other in ((again, model), (again.first.network, model.first.network)):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))


CARD_FAULTS = [
    ("config.json", {"first": []}, "found first = [], expected the names"),
    ("config.json", {"first": "lesion"}, "found first = 'lesion', expected the names"),
    ("config.json", {"first": ["lesion"]}, "found 2 channels, expected 3 as arguments.in_channels says"),
    ("config.json", {"scaling": "minmax"}, "found scaling 'minmax' of a cascade, expected conform_uint8 or lesions_br"),
    ("config.json", {"shifted": True}, "found shifted = True of a cascade, expected false"),
    ("config.json", {"first": ["fluid", "lesion"]}, "found classes lesion, fluid, expected fluid, lesion"),
    ("config.json", {"first_share": 1}, "found first_share = 1, expected a number from 0 to below 1"),
    ("config.json", {"contrasts": {"T2w": {"first_share": 1}}}, "found first_share for T2w = 1, expected a number"),
    ("config.json", {"contrasts": {"T2w": {"veto": {"bias": 0, "weights": [0] * 9}}}},
     "found veto for T2w = {'bias': 0, 'weights': [0, 0, 0, 0, 0, 0, 0, 0, 0]}, expected a bias and 10 weights"),
    ("config.json", {"contrasts": {"T2w": {"veto": {"bias": True, "weights": [0] * 10}}}}, "found veto for T2w = "),
    ("config.json", {"contrasts": {"T2w": {"veto": [0]}}}, "found veto for T2w = [0], expected a bias and 10 weights"),
    ("config.json", {"contrasts": {"T2w": {"veto": {"bias": 10**400, "weights": [0] * 10}}}}, "found veto for T2w = "),
    ("config.json", {"contrasts": {"T2w": {"veto": {"bias": 0, "weights": [0] * 10, "sure": 2}}}},
     "found veto for T2w with sure = 2, expected a number from 0 to 1"),
    ("config.json", {"contrasts": {"T2w": {"veto": {"bias": 0, "weights": [0] * 10, "least": 1}}}},
     "found veto for T2w = "),
    ("config.json", {"contrasts": {"T2w": {"veto": {"bias": 0, "weights": [0] * 10}, "threshold": 0}}},
     "found veto for T2w and threshold = 0, expected a threshold above it"),
    ("config.json", {"contrasts": {"T2w": {"also": ["fluid", "fluid"]}}}, "found also = ['fluid', 'fluid'], expected"),
    ("first/config.json", {"contrasts": {"T2w": {"veto": {"bias": 0, "weights": [0] * 6}}}},
     "found veto for T2w, expected it only in a cascade that marks one class"),
    ("config.json", {"marks": None, "contrasts": {"T2w": {"veto": {"bias": 0, "weights": [0] * 10}}}},
     "found veto for T2w, expected it only in a cascade that marks one class"),
    ("config.json", {"classes": ["background", "a", "b"], "marks": "a", "contrasts": {"T2w": {"first_share": 0.5}}},
     "found first_share for T2w = 0.5, expected it only in a cascade"),
    ("config.json", {"mirror": 1}, "found mirror = 1, expected true in a cascade, or false"),
    ("config.json", {"mirror": True}, "found 6 channels, expected 3"),
    ("config.json", {"mirror": True, "first": None}, "found mirror = True, expected true in a cascade, or false"),
    ("config.json", {"first_share": True}, "found first_share = True, expected a number"),
    ("config.json", {"first_share": 0.5, "classes": ["background", "a"]}, "found first_share = 0.5, expected it only"),
    ("config.json", {"channels": ["T2w"]}, "found channels T1w, expected T2w"),
    ("config.json", {"scaling": "conform_uint8"}, "found scaling lesions_bright, expected conform_uint8"),
]


@pytest.mark.parametrize("file, changes, line", CARD_FAULTS)
def test_a_card_that_cannot_be_a_cascade_is_refused_in_one_line(tmp_path, file, changes, line):
    folder = write_cascade(tmp_path / "two")
    edit(folder / file, **changes)
    for load in (load_model, lambda name: light.load(name, device="cpu")):
        with pytest.raises(UserError) as error:
            load(folder)
        assert line in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_first_network_that_is_missing_or_a_cascade_is_refused(tmp_path, scan):
    folder = write_cascade(tmp_path / "two")
    write_cascade(tmp_path / "other")
    (tmp_path / "other" / "first").rename(folder / "gone")
    (tmp_path / "other" / "config.json").rename(folder / "first" / "config.json")
    with pytest.raises(UserError, match=r"first/config\.json: is a cascade itself, expected a single network"):
        load_model(folder)
    (folder / "first" / "config.json").unlink()
    found = infer(scan, "-o", tmp_path / "m.nii.gz", "--model", folder, check=False)
    assert found.returncode == 2 and not (tmp_path / "m.nii.gz").exists()
    assert found.stderr.count("\n") == 1
    assert f"{folder / 'first' / 'config.json'}: not found, expected the first network of this cascade" in found.stderr


def test_the_second_network_alone_is_refused(scan, cascade):
    with pytest.raises(UserError, match="is a cascade of two networks, expected one; load it"):
        MeshNet.from_pretrained(cascade)
    alone = Model(network(5, (1, 2, 1), in_channels=3, classes=3), read_card(cascade))
    with pytest.raises(UserError, match="model 1: is the second network of a cascade without the first one"):
        segment_scan(scan, alone)
    alone.network.first = Model(first_network(), read_card(cascade / "first").changed(channels=["T2w"]))
    with pytest.raises(UserError, match="the first network of model 1: found channels T2w, expected T1w"):
        segment_scan(scan, alone)
