"""Thousands of odd inputs: no traceback, and no silent 0 mL where the plain input has a lesion.

The default suite takes a few dozen seeds, ``pytest -m slow tests/test_fuzz.py`` 20,000 (``FUZZ_SEEDS``).
"""

import gzip
import os

import nibabel as nib
import numpy as np
import pytest
from bright import bright_model

from meshnet.config import Config
from meshnet.data.sources.participants import read_participants
from meshnet.errors import UserError
from meshnet.inference.scan import load_models, segment_scan
from meshnet.recipe import load_recipes

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # of numpy: NaN on the way to a mask
SHORT = 60
LONG = int(os.environ.get("FUZZ_SEEDS", "20000"))
TYPES = (np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64)


def head() -> np.ndarray:
    """A grey head in black air with one bright block of 1,000 voxels."""
    data = np.zeros((40, 44, 36))
    data[6:-6, 6:-6, 6:-6] = np.random.default_rng(0).uniform(90, 110, (28, 32, 24))
    data[14:24, 16:26, 12:22] = 250
    return np.rint(data)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Bright is lesion, on a grid of 8 mm: half of the scans' resolution."""
    return load_models([bright_model(tmp_path_factory.mktemp("fuzz") / "model")])[0]


def odd_file(rng: np.random.Generator, path) -> str:
    """The head in a file whose header, axes, units, padding, slope or type are valid and unusual; says how."""
    data, affine, said = head(), np.diag([4.0, 4, 4, 1]), []
    affine[:3, 3] = rng.integers(-80, 80, 3)
    if rng.random() < 0.5:
        pads = [(4 * int(n), 4 * int(n)) for n in rng.integers(0, 3, 3)]
        data = np.pad(data, pads)
        affine[:3, 3] -= affine[:3, :3] @ [p for p, _ in pads]
        said.append(f"padded {pads}")
    if rng.random() < 0.7:
        order = rng.permutation(3)
        turn = np.column_stack([order, rng.choice([-1, 1], 3)]).astype(float)
        image = nib.Nifti1Image(data, affine).as_reoriented(turn)
        data, affine = np.asarray(image.dataobj), image.affine
        said.append(f"turned {turn.tolist()}")
    kind = TYPES[rng.integers(len(TYPES))]
    form = (nib.Nifti1Image, nib.Nifti2Image)[rng.integers(2)]
    image = form(data.astype(kind), affine)
    if rng.random() < 0.3:
        image.header.set_slope_inter(float(rng.uniform(0.5, 4)), float(rng.integers(0, 50)))
        said.append("slope")
    codes = [(1, 1), (1, 0), (0, 1), (4, 1), (2, 2)][rng.integers(5)]
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    unit = ("mm", "unknown", "meter")[rng.integers(3)]
    if unit == "meter":
        small = np.diag([0.001, 0.001, 0.001, 1]) @ affine
        image = form(image.get_fdata(dtype=np.float32).astype(kind), small, image.header)
        image.set_sform(small, max(codes[0], 1))
        image.set_qform(small, codes[1])
    image.header.set_xyzt_units(unit)
    if rng.random() < 0.3:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", rng.bytes(20)))
    nib.save(image, path)
    return f"{kind.__name__} {form.__name__} {unit} {codes} {said}"


def check_scans(seeds, model, folder) -> None:
    plain = segment_in(folder / "plain.nii.gz", model, nib.Nifti1Image(head(), np.diag([4.0, 4, 4, 1])))
    assert plain.volume_ml > 30
    for seed in seeds:
        rng = np.random.default_rng(seed)
        path = folder / ("a.nii" if seed % 3 else "a.nii.gz")
        how = odd_file(rng, path)
        try:
            found = segment_scan(path, model)
        except UserError as error:
            assert len(str(error).splitlines()) == 1, (seed, how)
            continue
        same = abs(found.volume_ml - plain.volume_ml) <= 0.01 * plain.volume_ml
        assert same or found.remarks, (seed, how, found.volume_ml, plain.volume_ml)


def segment_in(path, model, image):
    nib.save(image, path)
    return segment_scan(path, model)


def check_bytes(seeds, model, folder) -> None:
    """Bytes changed anywhere: a UserError of one line or a mask, and nothing else."""
    path = folder / "b.nii"
    nib.save(nib.Nifti1Image(head().astype(np.int16), np.diag([4.0, 4, 4, 1])), path)
    whole = bytearray(path.read_bytes())
    for seed in seeds:
        rng = np.random.default_rng([seed, 1])
        broken = bytearray(whole)
        for at in rng.integers(0, 352 if rng.random() < 0.8 else len(whole), int(rng.integers(1, 6))):
            broken[at] = int(rng.integers(256))
        if rng.random() < 0.2:
            broken = broken[:int(rng.integers(0, len(whole)))]
        target = folder / ("c.nii.gz" if rng.random() < 0.3 else "c.nii")
        target.write_bytes(gzip.compress(bytes(broken), 1) if target.suffix == ".gz" else bytes(broken))
        try:
            segment_scan(target, model)
        except UserError as error:
            assert "\n" not in str(error), seed


def check_texts(seeds, folder) -> None:
    """Recipes and tables with pieces of text cut, doubled and replaced."""
    recipe = b"model: {channels: 5}\noptimizer:\n  lr: 1e-3\ntraining:\n  max_epochs: 5\n  precision: \"no\"\n"
    table = b"participant_id\tsex\tage\nsub-01\tF\t60\nsub-02\tM\t71\n"
    odd = (b"\xff\xfe", b"\t", b"{", b"]", b": ", b"\r\n", b"&a ", b"*a", b"<<: ", b"\x00", b"1:30", "ü".encode(),
           b"- ", b"#", b"\"", b"no", b"1e400", b"!!python/none")
    for seed in seeds:
        rng = np.random.default_rng([seed, 2])
        for name, text, read in (("a.yaml", recipe, load), ("participants.tsv", table, read_participants)):
            for _ in range(int(rng.integers(1, 4))):
                at, end = sorted(rng.integers(0, len(text) + 1, 2))
                piece = odd[rng.integers(len(odd))] if rng.random() < 0.7 else text[at:end] * 2
                text = text[:at] + piece + (text[end:] if rng.random() < 0.5 else text[at:])
            (folder / name).write_bytes(text)
            try:
                read(folder / name)
            except UserError as error:
                assert "\n" not in str(error), (seed, name)


def load(path) -> Config:
    return load_recipes([path])


def test_a_few_odd_scans_give_the_same_mask_or_a_word(model, tmp_path):
    check_scans(range(SHORT), model, tmp_path)


def test_a_few_files_with_broken_bytes_are_one_line(model, tmp_path):
    check_bytes(range(SHORT), model, tmp_path)


def test_a_few_odd_texts_are_one_line(tmp_path):
    check_texts(range(SHORT), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_many_odd_inputs(model, tmp_path, part):
    seeds = range(1000 + part * LONG // 10, 1000 + (part + 1) * LONG // 10)
    check_scans(seeds, model, tmp_path)
    check_bytes(seeds, model, tmp_path)
    check_texts(seeds, tmp_path)
