"""Which heads the training of a built-in second network takes."""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from cascades import write_cascade

from meshnet import load_model
from meshnet.errors import UserError
from meshnet.networks.build import build, network_for


@pytest.fixture
def training(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks" / "trust"))
    yield importlib.import_module("second_train")
    sys.modules.pop("second_train", None)


@pytest.mark.parametrize("given", [["T1W", "1"], ["T1w"], ["T1w", "many"], ["T1w", "0"], ["T1w", "-1"]])
def test_kinds_that_cannot_be_are_refused(training, given):
    with pytest.raises(UserError, match="--kinds: found T1"):
        training.kinds_of(given)


def test_heads_of_other_kinds_are_not_taken(training, tmp_path):
    kinds = training.kinds_of(["T1w", "1", "DWI", "0.5"])
    assert kinds == {"T1w": 1.0, "DWI": 0.5}
    given, truth = np.full((4, 8, 8, 8), 40, np.uint8), np.zeros((8, 8, 8), np.uint8)
    truth[2:4, 2:4, 2:4] = 1
    for kind in ("T1w", "FLAIR", "DWI"):
        np.savez(tmp_path / f"{kind}.npz", given=given, truth=truth, contrast=kind)
    taken = {kind: training.read_head(tmp_path / f"{kind}.npz", False, kinds) for kind in ("T1w", "FLAIR", "DWI")}
    assert taken["FLAIR"] is None and [taken[kind]["weight"] for kind in ("T1w", "DWI")] == [1.0, 0.5]
    assert len(taken["T1w"]["places"][0]) == 8


def test_heads_that_come_later_are_taken_each_once_and_the_oldest_go(training, tmp_path):
    def write(*names):
        for name in names:
            np.savez(tmp_path / name, given=np.full((4, 8, 8, 8), 40, np.uint8), contrast="T1w",
                     truth=np.full((8, 8, 8), int(name[2]) if name[2].isdigit() else 9, np.uint8))

    def there(heads):
        return [int(head["truth"][0, 0, 0]) for head in heads.taken]

    with pytest.raises(UserError, match="--data: found no head of T1w in 0 files"):
        training.Heads([tmp_path], False, {"T1w": 1.0}, 3)
    write("701", "702")
    heads = training.Heads([tmp_path], False, {"T1w": 1.0}, 3)
    write("703", "704", ".tmp-1-799", "704-copy")  # the last but one is being written
    heads.read(1)
    assert there(heads) == [1, 2, 3]
    heads.read(5)
    heads.read(5)
    assert there(heads) == [2, 3, 4]
    assert {int(head["truth"][0, 0, 0]) for head in heads.draw(np.random.default_rng(0), 60)} == {2, 3, 4}
    assert there(training.Heads([tmp_path], False, {"T1w": 1.0}, 1)) == [4]
    with pytest.raises(UserError, match="--most: found 0, expected at least 1 head"):
        training.Heads([tmp_path], False, {"T1w": 1.0}, 0)
    assert there(training.Heads([tmp_path], False, {"T1w": 1.0}, 3, (1, 2))) == [1, 3]  # another has the others


def test_a_training_starts_from_the_weights_for_a_contrast(training, tmp_path, monkeypatch):
    folder = write_cascade(tmp_path / "two", own=["T1w"])
    network, _ = load_model(folder)
    for contrast, expected in ((None, network), ("T1w", network_for(network, "T1w"))):
        fresh = build(network.name, network.arguments)
        training.take(fresh, training.weights_in(folder, contrast))
        assert all((value == expected.state_dict()[name]).all() for name, value in fresh.state_dict().items())
    arguments = ["second_train.py", "--data", str(tmp_path), "--first", str(folder / "first"), "--contrast", "T1w",
                 "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(UserError, match="--contrast: found T1w without --weights, expected a cascade there"):
        training.main()
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"--contrast: found T2w, expected one for which .*two has weights of its own "):
        training.weights_in(folder, "T2w")


@pytest.mark.parametrize("kind", ["strokes", "sclerosis", "plaques"])
def test_what_draws_lesions_is_called_as_the_generator_calls_it(root, monkeypatch, kind):
    """By one of the label maps, with masks of 100 to 4,000 voxels of 1 mm."""
    from meshnet.data.synthetic import from_folders

    maps = sorted((root.parent / "shared/data/label_maps").glob("*.nii.gz"))
    if not maps:
        pytest.skip("needs ../shared/data/label_maps")
    monkeypatch.syspath_prepend(str(root / "benchmarks" / "trust"))
    heads = importlib.import_module("second_heads")
    masks = [str(path) for path in sorted((root.parent / "shared/data/lesions_mni").glob("*.nii.gz"))[:20]]
    draw = heads.plaques(str(maps[0])) if kind == "plaques" else heads.drawer(str(maps[0]), kind == "sclerosis")
    monkeypatch.setattr(from_folders, "draw_strokes", draw)
    counts = []  # of lesions of each head, which is not made
    monkeypatch.setattr(from_folders, "build_labelled", lambda *given: counts.append(len(given[3])))
    for seed in range(12):
        with pytest.raises(AttributeError, match="NoneType"):
            from_folders.make_labelled_case(seed, 8.0, "every", [str(maps[0])], masks, healthy=0.5)
    fewest = {"strokes": 0, "sclerosis": 5, "plaques": 4}[kind]
    assert len(counts) == 12 and min(counts) >= fewest and (0 in counts) == (kind == "strokes")


def test_a_plaque_is_an_ellipsoid_of_its_volume_and_points_away_from_the_ventricles(root, monkeypatch):
    maps = sorted((root.parent / "shared/data/label_maps").glob("*.nii.gz"))
    if not maps:
        pytest.skip("needs ../shared/data/label_maps")
    monkeypatch.syspath_prepend(str(root / "benchmarks" / "trust"))
    heads = importlib.import_module("second_heads")
    drawn = [one for seed in range(6) for one in heads.plaques(str(maps[0]))(np.random.default_rng(seed), None, [], 0)]
    lengths = []
    for plaque in drawn:
        half = 1 / np.linalg.eigvalsh(plaque.turn.astype(float))
        assert plaque.volume_mm3 == pytest.approx(4 / 3 * np.pi * half.prod(), rel=1e-3)
        assert half[0] > half[1] == pytest.approx(half[2], rel=1e-3) and 1.5 < half[0] < 11.5
        lengths.append(half[0] / half[1])
    assert 1.2 < np.median(lengths) < 2
    from meshnet.data.synthetic.labelmaps import CODE, load_map

    grid = np.stack(np.meshgrid(*[np.arange(-90, 91, 3.0)] * 3, indexing="ij")).astype(np.float32)
    codes = load_map(str(maps[0])).at(grid.reshape(3, -1)).reshape(grid.shape[1:])
    ventricle = grid[:, codes == CODE["ventricle"]].T
    outward = [plaque.centre_mm - ventricle[((ventricle - plaque.centre_mm) ** 2).sum(1).argmin()] for plaque in drawn]
    near = [(each / np.linalg.norm(each), plaque) for each, plaque in zip(outward, drawn)
            if 3 < np.linalg.norm(each) < 8]
    white = grid[:, codes == CODE["white"]].T[::7]
    apart = np.sqrt(((white[:, None] - ventricle[None, ::3]) ** 2).sum(2).min(1))
    assert len(near) / len(drawn) > 2 * ((apart > 3) & (apart < 8)).mean()  # nearer than white matter is
    along = [abs(each @ np.linalg.eigh(plaque.turn.astype(float))[1][:, 0]) for each, plaque in near]
    assert np.mean(along) > 0.65  # 0.5 if they pointed anywhere
    points = np.stack(np.meshgrid(*[np.arange(-90, 91, 1.0)] * 3, indexing="ij")).reshape(3, -1).astype(np.float32)
    large = max(drawn, key=lambda one: one.volume_mm3)
    share = large.at(points)[1]
    assert (share > 0.5).sum() == pytest.approx(large.volume_mm3, rel=0.3)
    whole = load_map(str(maps[0]))
    for name in ("ventricle", "cortex"):
        without = SimpleNamespace(at=lambda at, name=name: np.where(whole.at(at) == CODE[name], 0, whole.at(at)))
        monkeypatch.setattr(heads, "load_map", lambda path, without=without: without)
        with pytest.raises(UserError, match="found no ventricle, cortex or white matter"):
            heads.plaques("a.nii.gz")


def test_where_a_network_is_wrong_patches_are_drawn_and_at_small_lesions_as_at_large_ones(training, monkeypatch):
    """Lesions of 1 and 125 voxels; 40 voxels elsewhere that are taken for one, half of them three times as surely."""
    patches = importlib.import_module("second_patches")
    truth, found = np.zeros((20, 20, 20), np.uint8), np.zeros((3, 20, 20, 20), np.float32)
    truth[2, 2, 2], truth[10:15, 10:15, 10:15] = 1, 1
    found[1, 0, :, 0], found[1, 0, :, 1], found[1, 12, 12, 12] = 0.25, 0.75, 0.9
    found[1, 16, 12, 12] = 0.9  # beside a lesion, where people differ
    head = {"given": np.full((4, 20, 20, 20), 51, np.uint8), "truth": truth, "plane": (0, 0, 0.5)}
    first = [patches.some(np.random.default_rng(0), where, 5000) for where in (truth == 1, truth == 2, truth == 0)]
    head["places"], seen = first, []

    def given_to(network, given, threads):
        seen.append(given)
        return found

    monkeypatch.setattr(patches, "predict", given_to)
    network = type("Network", (), {"eval": lambda self: None})()
    for _ in range(patches.AGAIN + 1):
        patches.mine(np.random.default_rng(0), network, head)
    assert len(seen) == 2 and seen[0].shape == (8, 20, 20, 20) and seen[0].dtype == np.float32
    assert seen[0].max() == pytest.approx(0.2) and (seen[0][4:, 0] == 0).all() and (seen[0][4:, 1:] > 0).all()
    at_lesions, at_disease, hot = head["places"]
    assert len(at_lesions) == 2 * 126 and len(at_disease) == 0 and len(hot) == 2 * len(first[2])
    small = (at_lesions[126:] == 2).all(1).mean()
    assert 0.35 < small < 0.65 and {value.dtype for value in (at_lesions, hot)} == {np.dtype(np.int16)}
    drawn = hot[len(first[2]):]
    assert (drawn[:, 0] == 0).all() and (drawn[:, 2] < 2).all() and 0.7 < (drawn[:, 2] == 1).mean() < 0.8
    head["drawn"], found[1] = 0, 0
    patches.mine(np.random.default_rng(0), network, head)
    assert np.array_equal(head["places"][2], first[2])  # nothing is wrong any more


def test_a_training_that_looks_where_it_is_wrong_ends_with_a_cascade(training, root, tmp_path, monkeypatch):
    first, generator = root / "weights/meshnet16-cascade/first", np.random.default_rng(0)
    for seed in range(2):
        truth = np.zeros((24, 26, 25), np.uint8)
        truth[5:9, 5:9, 5:9] = 1
        np.savez(tmp_path / f"{seed}.npz", given=generator.integers(0, 256, (4, 24, 26, 25), np.uint8), truth=truth,
                 contrast="FLAIR")
    monkeypatch.setattr(sys, "argv", [
        "second_train.py", "--data", str(tmp_path), "--first", str(first), "--mine", "--mirror",
        "--minutes", "0.02", "--out", str(tmp_path / "out")])
    looked = []
    monkeypatch.setattr(training, "mine", lambda rng, network, head: looked.append(network.training))
    training.main()
    assert looked and len(looked) % training.BATCH == 0
    network, card = load_model(tmp_path / "out")
    assert card.mirror and network.arguments["in_channels"] == 8
