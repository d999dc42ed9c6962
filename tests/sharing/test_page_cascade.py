"""A cascade in the page: what its second network is given is Python's to the byte, and its mask is infer.py's."""

import base64
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cascades import head_file, write_cascade
from conftest import run_script_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_folders import edit
from page_steps import Page, check_mask, scan
from safetensors.numpy import load_file, save_file

from meshnet.cohort.facts import model_facts
from meshnet.errors import UserError
from meshnet.inference import cascade
from meshnet.inference.models import load_models
from meshnet.inference.scan import read_case
from meshnet.networks.card import Card, read_card
from meshnet.scans import mask, mirror, quality, second, veto
from meshnet.scans.contrast import CONTRASTS, likelihoods, most_likely
from meshnet.scans.grid import conform
from meshnet.sharing import to_web


@pytest.fixture(scope="module")
def page():
    with Page() as page:
        yield page


def by_page(page, grey, probabilities, voxel_mm, across=None):
    """What the page gives the second network, as ``second.second_input`` has it."""
    paths = {name: Path(page.folder.name) / name for name in ("scan", "probabilities", "out")}
    for name, volume in (("scan", grey), ("probabilities", probabilities)):
        np.ascontiguousarray(volume).tofile(paths[name])
    answer = page.ask("second", **{name: str(path) for name, path in paths.items()}, shape=grey.shape[1:],
                      voxel_mm=voxel_mm, across=across)
    assert "error" not in answer, answer
    return np.fromfile(paths["out"], np.uint8).reshape(-1, *grey.shape[1:]) if answer["found"] else None


@st.composite
def findings(draw):
    """A conformed scan (C, X, Y, Z) and probabilities (K, X, Y, Z) of something in it, up to the faces or not."""
    shape = tuple(draw(st.lists(st.integers(1, 26), min_size=3, max_size=3)))
    generator = np.random.default_rng(draw(st.integers(0, 9999)))
    low, high = sorted(draw(st.lists(st.sampled_from([0, 1, 30, 100, 110, 200, 256]), min_size=2, max_size=2,
                                     unique=True)))
    scan = generator.integers(low, high, (draw(st.integers(1, 2)), *shape), np.uint8)
    p = np.zeros((draw(st.integers(1, 3)), *shape), np.float32)
    ends = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))) for n in shape]
    inside = (slice(None), *(slice(a, b + 1) for a, b in ends))
    p[inside] = generator.random(p[inside].shape, np.float32) ** draw(st.sampled_from([1, 4, 12]))
    levels = np.array([0.3, 0.5, 1, np.nextafter(np.float32(0.3), np.float32(1)), 0.5 / 255], np.float32)
    where = generator.random(p.shape) < 0.05
    p[where] = generator.choice(levels, np.count_nonzero(where))
    return scan, p


@given(findings(), st.sampled_from([1.0, 2.0, 3.2, 4.0, 16.5]), st.sampled_from([None, None, 0, 1, 2]))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_second_network_is_given_pythons_bytes(page, found, voxel_mm, across):
    expected, answer = second.second_input(*found, voxel_mm, across), by_page(page, *found, voxel_mm, across)
    assert (answer is None) == (expected is None)
    if expected is not None:
        np.testing.assert_array_equal(answer, expected)


def test_the_second_network_is_given_pythons_bytes_of_a_head(page):
    """With thousands of voxels of brain, so that their quartiles count, and with hardly any range between these."""
    generator = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1.1, 1.1, n) for n in (56, 62, 50)], indexing="ij"))
    inside = (grid ** 2).sum(0) < 1
    for spread in (30, 1):
        scan = np.where(inside, 110 + spread * generator.standard_normal(inside.shape), 0).clip(0, 255)
        scan = scan.astype(np.uint8)[None]
        p = np.stack([np.float32(0.9) * (((grid - 0.3) ** 2).sum(0) < 0.06), np.float32(0.4) * inside]).astype("f4")
        for across in (None, 0, 2):
            expected = second.second_input(scan, p, 2.0, across)
            assert len(np.unique(expected[0])) > 3
            np.testing.assert_array_equal(by_page(page, scan, p, 2.0, across), expected)


@pytest.mark.parametrize("seed", range(6))
def test_the_plane_between_the_hemispheres_is_pythons(page, seed):
    """Of a tilted head with one side unlike the other, so that the plane is looked for in every round."""
    generator = np.random.default_rng(seed)
    tilts, shift = generator.uniform(-0.15, 0.15, 2), generator.uniform(-6, 6)
    x, y, z = np.indices((58, 66, 54), float) - np.array([28.5, 32.5, 26.5]).reshape(3, 1, 1, 1)
    apart = (x - shift + tilts[0] * y + tilts[1] * z) / np.sqrt(1 + (tilts ** 2).sum())
    scan = 90 + 40 * np.cos(apart / 3) * np.cos(y / 5) + 20 * np.sin(z / 4) + generator.normal(0, 9, x.shape)
    scan = scan.clip(1, 255).astype(np.uint8)[None]
    p = np.full((1, *x.shape), 0.4, np.float32)
    expected = second.second_input(scan, p, 2.0, 0)
    assert mirror.find_plane(expected[0]) != (0, 0, 0) and expected[2].any()
    np.testing.assert_array_equal(by_page(page, scan, p, 2.0, 0), expected)


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_veto_takes_back_the_same_parts(page, seed):
    """Of random parts in a region that they touch, with weights of all values that matter alike."""
    generator = np.random.default_rng(seed)
    shape, classes = generator.integers(6, 15, 3), int(generator.integers(2, 4))
    region = [tuple(sorted(generator.choice(n + 1, 2, replace=False).tolist())) for n in shape]
    inside, channels = (slice(None), *(slice(a, b) for a, b in region)), int(generator.integers(1, 7))
    found = np.zeros((classes, *shape), np.float32)
    found[0] = 1
    rough = generator.random(found[inside].shape, np.float32) ** 4 + np.float32(0.01)
    found[inside] = rough / rough.sum(0)
    seen = generator.integers(0, 256, (channels, *shape), np.uint8)  # what lies outside the region must not count
    marked = [1] if classes == 2 or generator.random() < 0.6 else [1, 2]
    threshold, sure = float(generator.choice([0.3, 0.5, 0.7])), float(generator.choice([0, 0.6, 0.85]))
    expected = found.copy()
    values = [veto.values_of((own, around), *(found[some][inside].sum(0)[box] for some in (
        marked, [k for k in range(1, classes) if k not in marked])), seen[inside][(slice(None), *box)], 1.5)
        for box, own, around in veto.parts_of(found[marked][inside].sum(0), threshold, sure)]
    spread = np.std(values, 0) + 0.01 if values else np.ones(veto.count_of(channels))
    weights = generator.normal(0, 1, len(spread)) / spread
    bias = 0.3 - float(np.mean(values, 0) @ weights) if values else 0.0  # not 0 for a part that is the mean
    ml = veto.take_back(expected[inside], marked, seen[inside], threshold, sure, 1.5,
                        veto.Veto(bias, tuple(weights.tolist())))
    paths = {name: str(Path(page.folder.name) / name) for name in ("found", "given", "out")}
    found.tofile(paths["found"]), seen.tofile(paths["given"])
    answer = page.ask("veto", **paths, shape=shape.tolist(), region=region, voxel_mm=1.5, marked=marked,
                      threshold=threshold, sure=sure, veto={"bias": bias, "weights": weights.tolist()})
    assert answer.get("ml") == ml, answer
    left = np.fromfile(paths["out"], np.float32).reshape(found.shape)
    np.testing.assert_array_equal(left[1:], expected[1:])
    np.testing.assert_allclose(left[0], expected[0], atol=2e-7)


def test_the_constants_are_pythons():
    for name, module in (("second", second), ("mirror", mirror), ("veto", veto), ("quality", quality),
                         ("mask", mask)):
        text = re.search(rf"^const {name.upper()} = (\{{.*\}});$", to_web.script(name), re.MULTILINE).group(1)
        text = re.sub(r"1 / (\d+)", lambda found: str(1 / int(found[1])), text)
        values = json.loads(re.sub(r"([A-Z_]+):", r'"\1":', text))
        own = {key: value for key, value in vars(module).items() if key.isupper() and key not in ("SCALINGS", "COUNTS")}
        assert json.loads(json.dumps(own)) == values


# ---------------------------------------------------------------------- both networks, from a scan to its mask

CASES = {
    "on two grids, then batch norm": {"channels": ("T1w, T2w, FLAIR or DWI",)},
    "instance norm in both": {"first_norm": "instance", "second_norm": "instance"},
    "two channels": {"channels": ("FLAIR", "T2w")},
    "nothing turned round, one grid": {"scaling": "conform_uint8", "shifted": False},
    "the first has a share": {"first_share": 0.3},
    "the first has a share by contrast": {"contrasts": {name: {"first_share": 0.1 * n, "threshold": 0.4} for n, name in
                                                         enumerate(CONTRASTS, 2)}},
    "a veto by size, and what is around": {"contrasts": {name: {"threshold": 0.45, "sure": 0.9, "veto": {
        "sure": 0.5, "bias": -2, "weights": [1.0, 0.2, -0.1, 0.3, 0.5, -0.7, 0.2, 0.4, -0.3, 0.1]}}
        for name in CONTRASTS}},
    "what else is seen": {"contrasts": {name: {"mentions": {"fluid": 1}} for name in CONTRASTS}},
    "less than is told": {"contrasts": {name: {"mentions": {"fluid": 99999}} for name in CONTRASTS}},
    "what is counted is not told": {"contrasts": {name: {"also": ["fluid"], "mentions": {"fluid": 1}}
                                                  for name in CONTRASTS}},
    "a veto with the mirror image": {"mirror": True, "first_share": 0.2, "contrasts": {name: {
        "also": ["fluid"], "quality": {"marked": [0.1, -0.2, 0.3, -0.5, 0.4], "empty": [0.3, -0.2, 0.1]},
        "veto": {"bias": -2, "weights": [1.0, *[0.1, -0.1, 0.2] * 5]}} for name in CONTRASTS}},
    "other weights for each contrast": {"own": CONTRASTS, "mirror": True},
    "other weights for some": {"own": CONTRASTS[:2]},
    "the mirror image as well": {"mirror": True},
    "the mirror image along another axis": {"mirror": True, "orientation": "PSR", "channels": ("FLAIR", "T2w")},
    "an odd grid": {"orientation": "RAS", "shape": [37, 40, 33], "min_lesion_mm3": 2000, "sure": 0.6},
}


def given_to_second(paths, model):
    """What infer.py gives the second network of a cascade: (C + K, X, Y, Z) uint8 or None, and the region."""
    (network, card), = models = load_models([model], device="cpu")
    case = read_case(paths, models)
    found = cascade.second_volume(network.first, case.inputs[0], case.seconds[0], card.voxel_mm)
    return found or (None, None)


@pytest.mark.parametrize("name", CASES)
def test_the_mask_is_that_of_infer(page, tmp_path, name):
    model = write_cascade(tmp_path / "model", **CASES[name])
    if name == "an odd grid":
        edit(model / "config.json", voxel_mm=7.0, averaged=False)
    scans = [head_file(tmp_path / f"{c}.nii", c) for c, _ in enumerate(read_card(model).channels)]
    answer = check_mask(page, scans, model, tmp_path)
    assert any("by the model's veto" in line for line in answer["remarks"]) == ("veto" in name)
    assert any("mL look like fluid, which this model does" in line for line in answer["remarks"]) == ("else" in name)
    assert answer["volume_ml"] > 0 and answer["steps"].count("computing, network 1 of 2") == (
        1 + CASES[name].get("shifted", True)) and answer["steps"].count("computing, network 2 of 2") == 1


def test_the_mask_of_a_scan_that_is_turned_round_for_both_networks(page, tmp_path):
    """The first network decides whether it is, on its own view; the second one's, on finer voxels, follows it."""
    from meshnet.data.synthetic.case import make_case

    model = write_cascade(tmp_path / "model", voxels=(8.0, 4.0))  # where a head still looks like one
    (first, *_), path = read_card(model / "first").grids(), tmp_path / "scan.nii"
    images = (make_case(seed, 4.0, "train", contrasts={"T1w": 1.0}, artefacts=0.0, extracted=0.0)[0]
              for seed in range(20))
    look = lambda image: most_likely(likelihoods(np.asarray(conform(image, first, exact=False).dataobj), 8.0))
    nib.save(next(image for image in images if look(image) == "T1w"), path)
    answer = check_mask(page, [path], model, tmp_path)
    assert answer["contrast"] == "T1w" and any("turned round" in line for line in answer["warnings"])
    grey, plain = read_case([path], load_models([model], device="cpu")), conform(nib.load(path), read_card(
        model).grids()[0], exact=False)
    assert not np.array_equal(grey.seconds[0][0][0], np.asarray(plain.dataobj))


def test_a_cascade_that_finds_nothing_marks_nothing(page, tmp_path):
    """And the second network is not run."""
    model = write_cascade(tmp_path / "model")
    path = model / "first/model.safetensors"
    tensors = load_file(path)
    tensors["head.bias"][0] += 50
    save_file(tensors, path)
    scan = head_file(tmp_path / "scan.nii")
    assert given_to_second([scan], model) == (None, None)
    answer = check_mask(page, [scan], model, tmp_path)
    assert answer["volume_ml"] == 0 and answer["quality"] == 1
    assert answer["steps"].count("computing, network 1 of 2") == 2 and "computing, network 2 of 2" not in (
        answer["steps"])


def test_all_outside_the_region_is_background(page, tmp_path):
    """Even where the second network takes for lesion what it has not seen; with a share of the first one's, too."""
    for share in (0, 0.3):
        model = write_cascade(tmp_path / f"{share}", first_share=share)
        edit(model / "config.json", threshold=0.3)
        path = model / "model.safetensors"
        tensors = load_file(path)
        tensors["head.bias"][1] += 30
        save_file(tensors, path)
        scan = head_file(tmp_path / "scan.nii")
        answer = check_mask(page, [scan], model, tmp_path)
        _, region = given_to_second([scan], model)
        assert answer["volume_ml"] <= 1.15 * np.prod([b - a for a, b in region]) * 0.512 < 0.8 * 50 * 60 * 64 * 0.064


@pytest.mark.parametrize("shape, said", [(None, "200 x 176 x 168"), ([10, 9, 8], "160 x 144 x 128")])
def test_a_region_that_reaches_the_faces_of_the_grid(page, tmp_path, shape, said):
    """Of a head that is larger than the second network's grid, or than both, which is said once, of the first."""
    model = write_cascade(tmp_path / "model", shape=[25, 22, 21])
    edit(model / "first/config.json", shape=shape)
    scan = head_file(tmp_path / "scan.nii")
    _, region = given_to_second([scan], model)
    answer = check_mask(page, [scan], model, tmp_path)
    larger = [line for line in answer["warnings"] if "the grid was enlarged" in line]
    assert len(larger) == 1 and f"the model's grid of {said} mm" in larger[0]
    assert shape is None or any(low == 0 for low, _ in region), region


def test_what_is_doubtful_is_said_by_the_network_that_it_concerns(page, tmp_path):
    """How thick a slice may be by the second one, whose mask it is; what the scan holds by the first one's view."""
    model = write_cascade(tmp_path / "model")
    image = nib.load(head_file(tmp_path / "head.nii"))
    thick = nib.Nifti1Image(np.asarray(image.dataobj)[:, :, ::8], image.affine @ np.diag([1, 1, 8, 1]))
    nib.save(thick, tmp_path / "thick.nii")
    said = check_mask(page, [tmp_path / "thick.nii"], model, tmp_path)["warnings"]
    assert any("thick for a model with voxels of 8 mm" in line for line in said)
    check_mask(page, [scan(tmp_path / "small.nii")], model, tmp_path)  # 75 mm; measured by 8 mm it would be half


def test_a_cascade_takes_the_time_of_both_networks_and_the_memory_of_the_larger_one(page, tmp_path):
    """Each of them on a grid of far more voxels; the speed that is measured may differ by far less."""
    plans = {}
    for name, large in (("none", None), ("first", "first"), ("second", "")):
        model = write_cascade(tmp_path / name, first_norm="instance", second_norm="instance")
        if large is not None:
            edit(model / large / "config.json", shape=[600] * 3)
        plans[name] = page.ask("plan", model=str(model))
        assert "error" not in plans[name], plans
    least = {"first": 4 * (1 + 2), "second": 4 * (3 + 2 * 5)}  # bytes of each voxel: the input and two maps
    for name, each in least.items():
        assert plans[name]["network"] > 4 * plans["none"]["network"], plans
        assert plans[name]["bytes"] - plans["none"]["bytes"] > 0.9 * each * 600 ** 3
    assert plans["none"]["voxelBytes"] == 20
    edit(tmp_path / "none/config.json", contrasts={"T2w": {"veto": {"bias": 0, "weights": [0] * 10}}})
    assert page.ask("plan", model=str(tmp_path / "none"))["voxelBytes"] == 28  # two sets of probabilities


# ---------------------------------------------------------------------- the page that is written

def model_in(page):
    """What the model.js of a page holds."""
    return json.loads((page / "model.js").read_text(encoding="utf-8").removeprefix(to_web.MODEL).rstrip(";\n"))


def test_a_page_of_a_cascade_holds_both_networks(tmp_path):
    model = write_cascade(tmp_path / "model", second_norm="instance", first_share=0.3)
    page = tmp_path / "page"
    said = to_web.write_page(model, page)
    assert to_web.plan_bytes(read_card(model)) == 4 * 32 ** 3 * (3 + 2 * 5)  # its three inputs, and two maps
    assert said.endswith("about 2 MB of memory for the network")
    held = model_in(page)
    for values, folder in ((held, model), (held["first"], model / "first")):
        assert Card.from_dict(values["card"]) == read_card(folder)
        assert base64.b64decode(values["weights"]) == (folder / "model.safetensors").read_bytes()
    assert [held["build"][key] for key in ("model", "first")] == [
        model_facts([model], [read_card(model)], "model.safetensors")[0][key]
        for key in ("WeightsSHA256", "FirstWeightsSHA256")]
    text = re.sub("<[^>]*>", " ", (page / "index.html").read_text(encoding="utf-8"))
    for words in ("networks two", "first network: voxels 16 mm", "first network: grid 16 x 16 x 16",
                  "handed on lesion, fluid", "second network: voxels 8 mm", "second network: grid 32 x 32 x 32",
                  "first network: share of the result 0.3"):
        assert words in re.sub(r"\s+", " ", text), words
    to_web.write_page(model / "first", page)  # the first one alone, over the other
    held = model_in(page)
    assert "first" not in held and "first" not in held["build"]
    assert "first network" not in (page / "index.html").read_text(encoding="utf-8")


def test_the_page_that_is_written_is_compared_with_infer(tmp_path):
    """By the networks in it: with another first one the masks differ."""
    model, page = write_cascade(tmp_path / "model"), tmp_path / "page"
    said = run_script_file("share.py", "web", model, page, "--scan", head_file(tmp_path / "scan.nii")).stdout
    assert re.search(r" [01] of 192000 voxels differ|Node is not installed", said), said
    held = model_in(page)
    held["first"]["card"]["shape"] = [4, 4, 4]
    (page / "model.js").write_text(f"{to_web.MODEL}{json.dumps(held)};\n", encoding="utf-8")
    said = to_web.compare(model, [tmp_path / "scan.nii"], page)
    assert re.search(r" [1-9]\d+ of 192000 voxels differ|Node is not installed", said), said


@pytest.mark.parametrize("stage", ["", "first"])
def test_what_one_of_two_networks_cannot_do_in_a_page_is_refused_of_it(tmp_path, stage):
    for name, changes, words in (
            ("large", {"shape": [512] * 3}, r"needs \d+\.\d GB for a grid of 512 x 512 x 512, expected at most 2 GB"),
            ("unet", {"name": "unet"}, "is a unet, expected a MeshNet"), ("half", {}, "expected F32 alone")):
        model = write_cascade(tmp_path / name)
        edit(model / stage / "config.json", **changes)
        if name == "half":
            path = model / stage / "model.safetensors"
            save_file({key: value.astype(np.float16) for key, value in load_file(path).items()}, path)
        where = re.escape(str(model / stage))
        with pytest.raises(UserError, match=f"^{where}(/model.safetensors)?: .*{words}") as refused:
            to_web.write_page(model, tmp_path / "page")
        assert "\n" not in str(refused.value) and not (tmp_path / "page").exists()


def test_a_cascade_that_lacks_its_first_network_is_refused_in_a_line(tmp_path):
    model = write_cascade(tmp_path / "model")
    (model / "first/config.json").unlink()
    with pytest.raises(UserError, match=r"first/config\.json: not found, expected the first network of this cascade"):
        to_web.write_page(model, tmp_path / "page")
    model = write_cascade(tmp_path / "another")
    edit(model / "first/config.json", classes=["background", "lesion", "other"])
    with pytest.raises(UserError, match=r"first/config\.json: found classes lesion, other, expected lesion, fluid"):
        to_web.write_page(model, tmp_path / "page")
    assert not (tmp_path / "page").exists()
