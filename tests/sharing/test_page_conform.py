"""The page's reading and conforming in JavaScript against the program's: the same bytes, the same words."""

import base64
import gzip
import re
import warnings
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_steps import Page, bad_files, scan

from meshnet.errors import UserError
from meshnet.inference.scan import read_case
from meshnet.networks.build import Model
from meshnet.networks.card import Card
from meshnet.scans.grid import _along, target_affine
from meshnet.scans.nifti import image_like, read_image
from meshnet.scans.ours import MADE_OF, scan_mark, signed
from meshnet.sharing import to_web

TYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8", ">i2", ">f4", "i8"]
CARDS = [{}, {"voxel_mm": 2.0, "orientation": "RAS", "averaged": True, "centre": "middle"},
         {"voxel_mm": 4.0, "averaged": True, "centre": "middle", "shifted": True},
         {"scaling": "minmax", "voxel_mm": 3.0},
         {"scaling": "quantile", "shape": [20, 24, 30], "voxel_mm": 1.7}, {"scaling": "window", "window": [5.0, 60.5]},
         {"scaling": "brainchop_quantile", "orientation": "PSR"},
         {"scaling": "lesions_bright", "voxel_mm": 2.0}]


@pytest.fixture(scope="module")
def page():
    with Page() as page:
        yield page


def card_of(**values):
    return Card(["T2w"], ["background", "lesion"], **{"shape": [24, 24, 24], "voxel_mm": 1.0, **values})


def both(page, paths, card):
    """The views of a case by Python and by JavaScript, with what was said; or the two refusals."""
    folder = page.folder.name
    answer = page.ask("conform", scans=list(map(str, paths)), card=card.to_dict(), out=f"{folder}/view",
                      mask=f"{folder}/mask.nii", probability=f"{folder}/probability.nii")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case = read_case(paths, [Model(None, card)])
    except UserError as error:
        return str(error), answer
    return case, answer


def check(page, paths, card):
    case, answer = both(page, paths, card)
    if isinstance(case, str):
        assert answer.get("user") and same_words(answer["error"], case), (answer, case)
        return
    assert "error" not in answer, answer
    assert answer["remarks"] == case.remarks
    assert len(case.inputs[0]) == len(answer["written"])
    for (volume, affine), names, other in zip(case.inputs[0], answer["written"], answer["affines"]):
        np.testing.assert_array_equal(affine, other)
        for channel, name in zip(volume, names):
            found = np.fromfile(name, np.float32).reshape(channel.shape)
            differ = np.count_nonzero(found != channel)
            assert not differ, f"{differ} of {channel.size} differ, by up to {np.abs(found - channel).max()}"
    numbers = np.arange(np.prod(case.images[0].shape)).reshape(case.images[0].shape, order="F")
    for name, array in (("mask", numbers.astype(np.uint8)), ("probability", numbers.astype(np.float32))):
        expected = signed(image_like(array, case.images[0]), case.mark)
        assert MADE_OF.match(bytes(expected.header["descrip"].item()))
        assert Path(f"{page.folder.name}/{name}.nii").read_bytes() == expected.to_bytes()


def same_words(one, two):
    """Whether two refusals say the same, but for the reason that a library gives in brackets."""
    heads = [text.partition("gzip (")[0].partition("NIfTI (")[0] for text in (one, two)]
    return one == two or (heads[0] == heads[1] != one)


@st.composite
def scans(draw):
    """A scan of any type, axes, voxel sizes, scaling and header, with something like a head in it."""
    shape = tuple(draw(st.lists(st.integers(1, 34), min_size=3, max_size=3)))
    kind = np.dtype(draw(st.sampled_from(TYPES)))
    generator = np.random.default_rng(draw(st.integers(0, 999)))
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    data = np.where((grid ** 2).sum(0) < 0.8, 40 + 30 * generator.random(shape), 3 * generator.random(shape))
    if kind.kind == "f" or kind in (np.int16, np.int32):
        data = data * draw(st.sampled_from([1, 7.3, 50])) - draw(st.sampled_from([0, 20]))
    if draw(st.integers(0, 5)) == 0 and kind.kind != "u" and kind != np.int8:
        data.flat[0] = 30000
    sizes = draw(st.lists(st.sampled_from([1.0, 0.9375, 2.0, 3.3, 0.45]), min_size=3, max_size=3))
    axes = draw(st.permutations(range(3)))
    affine = np.eye(4)
    affine[:3, :3] = np.diag(sizes)[axes] * draw(st.sampled_from([[1, 1, 1], [-1, 1, 1], [-1, -1, 1], [1, -1, -1]]))
    tilt = draw(st.sampled_from([0, 0, 0.05, 0.4]))
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    lean = draw(st.sampled_from([0, 0, 0.03, -0.5]))
    nod = np.array([[1, 0, 0], [0, np.cos(lean), -np.sin(lean)], [0, np.sin(lean), np.cos(lean)]])
    affine[:3, :3] = nod @ turn @ affine[:3, :3]
    affine[:3, 3] = draw(st.lists(st.sampled_from([0.0, -37.25, 11.1]), min_size=3, max_size=3))
    form = nib.Nifti2Image if draw(st.booleans()) and kind.byteorder != ">" else nib.Nifti1Image
    header = form.header_class(endianness=">" if kind.byteorder == ">" else "<")
    image = form(np.zeros(shape, kind), affine, header)
    image.set_data_dtype(kind)
    codes = draw(st.sampled_from([(1, 1), (0, 2), (1, 0)]))
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    raw = image.header
    raw["scl_slope"], raw["scl_inter"] = draw(st.sampled_from([(1, 0), (0.5, 0), (2.25, -3), (np.nan, 0)]))
    raw["vox_offset"] = len(raw.binaryblock) + 4
    content = raw.binaryblock + bytes(4) + data.astype(kind).tobytes(order="F")
    return gzip.compress(content, 1) if draw(st.booleans()) else content


@given(scans(), st.sampled_from(CARDS))
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_made_up_scans_are_conformed_to_the_byte(page, content, values):
    (path := Path(page.folder.name) / "scan.nii").write_bytes(content)
    check(page, [path], card_of(**values))


@pytest.mark.slow
@given(scans(), st.sampled_from(CARDS))
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_many_made_up_scans_are_conformed_to_the_byte(page, content, values):
    (path := Path(page.folder.name) / "scan.nii").write_bytes(content)
    check(page, [path], card_of(**values))


def turns(count):
    """Quaternions (3,) of headers: any, of half turns, of small angles, and longer than 1 by a rounding."""
    generator = np.random.default_rng(0)
    for n in range(count):
        four = generator.normal(size=4)
        three = four[1:] / np.linalg.norm(four) if n % 4 else np.eye(3)[n % 3] * (1 + 1e-8 * (n % 5 - 2))
        yield three * (generator.choice([1e-3, 1e-7]) if n % 7 == 0 else 1)


def test_matrices_have_the_same_bits(page, tmp_path):
    """From the header's quaternion and voxel sizes, or its rows, to the matrix from a grid to the scan."""
    generator = np.random.default_rng(1)
    for n, turn in enumerate(turns(60)):
        form = (nib.Nifti1Image, nib.Nifti2Image)[n % 2]
        image = form(generator.integers(1, 200, generator.integers(4, 9, 3)).astype(np.uint8), None)
        image.header["qform_code"], image.header["pixdim"][1:4] = 1, generator.choice([5, 9.375, 8.1, 13.3], 3)
        for name, value in zip("bcd", turn):
            image.header[f"quatern_{name}"] = value
        if n % 3 == 0:
            image.set_sform(image.header.get_qform(), 1)
        image.header["qoffset_x"] = -37.25
        nib.save(form(image.dataobj, None, image.header), path := tmp_path / "scan.nii")
        card = card_of(**CARDS[n % 3], scaling="minmax") if n % 3 else card_of()
        answer = page.ask("conform", scans=[str(path)], card=card.to_dict(), out=page.folder.name + "/view")
        assert "error" not in answer, answer
        image = read_image(path)
        np.testing.assert_array_equal(answer["affine"], image.affine)
        for grid, matrix in zip(card.grids(), answer["sources"]):
            _, expected = _along(image, grid, target_affine(image, grid), None)
            np.testing.assert_array_equal(np.array(matrix)[:3], expected[:3])


def test_several_channels(page, tmp_path):
    """From a file each, and from one 4D file; with one that covers only part of the first, or lies elsewhere."""
    generator = np.random.default_rng(0)
    card = card_of(voxel_mm=3.0).changed(channels=["FLAIR", "T2w"])
    for name, shift in (("whole", 0), ("part", 30), ("little", 70), ("elsewhere", 900)):
        affine = np.diag([2.0, 2, 2.5, 1])
        paths = [tmp_path / f"{name}{c}.nii" for c in range(2)]
        nib.save(nib.Nifti1Image(generator.random((40, 36, 30), np.float32) + 1, affine), paths[0])
        affine[0, 3] = shift
        nib.save(nib.Nifti1Image(generator.integers(1, 900, (40, 36, 30)).astype(np.int16), affine), paths[1])
        check(page, paths, card)
        check(page, paths[:1], card)
    nib.save(nib.Nifti1Image(generator.random((30, 30, 20, 2), np.float32), affine), paths[0])
    check(page, paths[:1], card)
    check(page, paths[:1], card_of())


def test_what_is_said_of_odd_scans(page, tmp_path):
    """Padding, grey levels taken by something bright, a file given twice, forms apart, one slice, gzip in gzip."""
    generator, seen = np.random.default_rng(0), []
    grid = np.stack(np.meshgrid(*[np.linspace(-1.1, 1.1, 40)] * 3, indexing="ij"))
    head = np.where((grid ** 2).sum(0) < 1, 300 + 90 * generator.standard_normal(grid[0].shape), 0).clip(0)
    slab, bright, apart = head * (abs(grid[2]) < 0.2), head.copy(), nib.Nifti1Image(head, np.diag([4.0, 4, 4, 1]))
    bright[:, :, 5:7] = 30000
    moved = apart.affine.copy()
    moved[0, 3] = 20
    apart.set_qform(moved, 1)
    apart.set_sform(apart.affine, 1)
    images = {"slab": nib.Nifti1Image(slab, apart.affine), "bright": nib.Nifti1Image(bright, apart.affine),
              "forms": apart, "slice": nib.Nifti1Image(head[:, :, 20:21], np.diag([4.0, 4, 80, 1]))}
    for name, image in images.items():
        path = tmp_path / f"{name}.nii.gz"
        nib.save(image, path)
        for scaling in ("conform_uint8", "minmax"):
            card = card_of(voxel_mm=4.0, shape=[44, 44, 44], scaling=scaling)
            check(page, [path], card)
            seen += both(page, [path], card)[1]["remarks"]
    path.write_bytes(gzip.compress(path.read_bytes()))
    check(page, [path], card)
    check(page, [tmp_path / "forms.nii.gz"] * 2, card.changed(channels=["FLAIR", "T2w"]))
    said = " ".join(seen)
    for words in ("what the scan holds measures", "next to nothing lies", "qform and sform are 20 mm apart", "1 slice"):
        assert words in said, words


@pytest.mark.parametrize("contrast", ["T1w", "T2w"])
def test_scans_with_dark_lesions_are_turned_round_in_both(page, tmp_path, contrast):
    from meshnet.data.synthetic.case import make_case
    from meshnet.scans.contrast import likelihoods, most_likely
    from meshnet.scans.grid import Grid, conform

    grid = Grid(4.0, None, "LIA", "middle", averaged=True)
    images = (make_case(seed, 4.0, "train", contrasts={contrast: 1.0}, artefacts=0.0, extracted=0.0)[0]
              for seed in range(8))
    image = next(image for image in images
                 if most_likely(likelihoods(np.asarray(conform(image, grid).dataobj), 4.0)) == contrast)
    nib.save(image, tmp_path / "scan.nii.gz")
    card = card_of(scaling="lesions_bright", shape=None, voxel_mm=4.0, averaged=True, centre="middle", shifted=True)
    for orientation in ("LIA", "RAS", "SPL"):
        check(page, [tmp_path / "scan.nii.gz"], card.changed(orientation=orientation))
    values = image.get_fdata(dtype=np.float32)  # noise in the air, beyond what counts as air
    noisy = np.maximum(values, 0.14 * np.quantile(values, 0.999))
    nib.save(nib.Nifti1Image(noisy, image.affine), tmp_path / "noisy.nii")
    check(page, [tmp_path / "noisy.nii"], card)
    plain, bright = (np.asarray(conform(image, grid, kind).dataobj) for kind in ("conform_uint8", "lesions_bright"))
    assert np.array_equal(plain, bright) == (contrast == "T2w")


def test_what_contrast_a_scan_may_have_is_said_alike(page, tmp_path):
    from meshnet.data.synthetic.case import make_case

    card, said = card_of(scaling="lesions_bright", shape=None, voxel_mm=4.0, averaged=True, centre="middle"), []
    for seed in range(8):
        nib.save(make_case(seed, 4.0, "train", contrasts={"random": 1.0})[0], tmp_path / f"{seed}.nii")
        case, answer = both(page, [tmp_path / f"{seed}.nii"], card)
        assert answer["remarks"] == case.remarks
        said += case.remarks
    assert any("which is doubtful" in line for line in said) and any("turned round" in line for line in said)


@pytest.mark.parametrize("shape, voxel_mm, orientation, air", [
    ((43, 51, 49), 4.0, "LIA", 0), ((50, 47, 62), 3.0, "RAS", 30), ((90, 84, 97), 2.0, "PIL", 0),
    ((21, 25, 23), 8.0, "LIA", 0), ((7, 6, 5), 4.0, "LIA", 0), ((30, 30, 9), 4.0, "LIA", 0),
    ((9, 9, 9), 4.0, "LIA", 255)])
def test_contrasts_are_as_likely_in_the_page(page, tmp_path, shape, voxel_mm, orientation, air):
    from meshnet.scans.contrast import likelihoods

    generator = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, n) for n in shape], indexing="ij"))
    inside, waves = (grid ** 2).sum(0) < 1, 60 * np.sin(9 * grid).prod(0)
    volume = np.where(inside, 130 + waves + 9 * generator.standard_normal(shape), air).clip(0, 255).astype(np.uint8)
    (tmp_path / "volume").write_bytes(volume.tobytes())
    found = page.ask("contrast", volume=str(tmp_path / "volume"), shape=shape, voxel_mm=voxel_mm,
                     orientation=orientation)["likely"]
    expected = likelihoods(volume, voxel_mm, orientation)
    assert (found is None) == (expected is None) == (max(shape) < 10)
    assert found == expected if found is None else found == pytest.approx(expected, abs=1e-5)


def test_the_page_has_the_weights_that_tell_contrasts_apart():
    from meshnet.scans.contrast_network import WEIGHTS

    text = re.search(r'CONTRAST_WEIGHTS = "(.*)"', to_web.script("contrast_weights"))[1]
    assert base64.b64decode(text) == WEIGHTS.read_bytes()


def test_every_refusal_has_its_twin(page, tmp_path):
    refused = 0
    for name, content in bad_files().items():
        (path := tmp_path / name).write_bytes(content)
        case, answer = both(page, [path], card_of())
        assert isinstance(case, str) and "\n" not in answer["error"], (name, answer)
        assert answer["user"] and same_words(answer["error"], case), (name, answer["error"], case)
        refused += 1
    assert refused >= 40


@pytest.mark.slow
@pytest.mark.parametrize("values", [
    {}, {"voxel_mm": 4.0, "averaged": True, "centre": "middle", "shifted": True},
    {"voxel_mm": 2.0, "orientation": "RAS"},
    {"scaling": "quantile", "voxel_mm": 2.0}])
def test_real_scans_are_conformed_to_the_byte(page, shared_data, values):
    card = Card(["T2w"], ["background", "lesion"], **values)
    scans = [path for path in sorted(shared_data.rglob("*.nii.gz")) if not {"label_maps", "lesions_mni",
             "lesions_chronic"} & set(path.parts)]
    assert len(scans) > 15
    for path in scans:
        check(page, [path], card)


@st.composite
def packed(draw):
    """Bytes of a kind, packed as one of gzip's members, by any level and strategy."""
    generator, size = np.random.default_rng(draw(st.integers(0, 99))), draw(st.sampled_from([0, 1, 300, 70_000]))
    content = draw(st.sampled_from([
        generator.bytes(size), bytes(size), (b"lesion " * size)[:size],
        np.cumsum(generator.integers(-3, 4, size)).astype(np.uint8).tobytes()]))
    packer = zlib.compressobj(draw(st.integers(0, 9)), zlib.DEFLATED, -15, draw(st.integers(1, 9)),
                              draw(st.sampled_from([zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY])))
    flags = draw(st.integers(0, 31))
    head = bytes([0x1F, 0x8B, 8, flags, *[7] * 6])
    head += b"\3\0abc" * bool(flags & 4) + b"a name\0" * bool(flags & 8) + b"\0" * bool(flags & 16)
    tail = np.array([zlib.crc32(content), len(content)], "<u4").tobytes()
    return head + b"\1\2" * bool(flags & 2) + packer.compress(content) + packer.flush() + tail


@given(st.lists(packed(), min_size=1, max_size=3), st.integers(0, 20), st.booleans(), st.data())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_gzip_of_several_members_is_unpacked_as_by_python(page, members, zeros, damaged, data):
    """By the page's own reader, which browsers need for it: theirs take one member and nothing after it."""
    content = bytearray(bytes(zeros).join(members) + bytes(zeros))
    if damaged:
        at = data.draw(st.integers(2, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
        content = content[:data.draw(st.sampled_from([len(content), at, at + 1]))]
    (path := Path(page.folder.name) / "packed.gz").write_bytes(content)
    found, = page.ask("unpack", files=[str(path)])
    try:
        expected = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        assert "error" in found, len(found["content"])
    else:
        assert "content" in found and base64.b64decode(found["content"]) == expected, found.get("error")


def test_a_scan_in_several_members_and_with_zeros_after_it(page, tmp_path):
    """Is conformed alike, and has the mark of the scan that is not compressed."""
    path = scan(tmp_path / "scan.nii")
    content = path.read_bytes()
    half = len(content) // 2
    for name, parts, zeros in (("one", [content], 0), ("padded", [content], 512),
                               ("halves", [content[:half], content[half:]], 0),
                               ("several", [content[:5000], content[5000:9000], content[9000:]], 512),
                               ("bgzip", [content[:9000], content[9000:], b""], 0)):
        (other := tmp_path / f"{name}.nii.gz").write_bytes(b"".join(map(gzip.compress, parts)) + bytes(zeros))
        case, answer = both(page, [other], card_of())
        assert not isinstance(case, str) and "error" not in answer
        assert case.mark == scan_mark([path])
        check(page, [other], card_of())


def test_extensions_of_a_header_are_passed_over(page, tmp_path):
    image = nib.load(scan(tmp_path / "scan.nii"))
    for form in (nib.Nifti1Image, nib.Nifti2Image):
        extended = form(np.asarray(image.dataobj), image.affine)
        extended.header.extensions += [nib.nifti1.Nifti1Extension(6, b"a comment" * n) for n in (1, 50)]
        nib.save(extended, path := tmp_path / "extended.nii")
        assert len(nib.load(path).header.extensions) == 2
        check(page, [path], card_of())
