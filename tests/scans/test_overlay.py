"""Pictures of a scan: what was drawn lies where it belongs, however the scan is stored."""

import io
import subprocess
import sys

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from PIL import Image, ImageDraw

from meshnet.scans import overlay


def head():
    """A made-up head (40, 50, 30) in RAS with 2 mm voxels: an ellipsoid, brighter to the right, and a lesion in it."""
    x, y, z = np.indices((40, 50, 30))
    inside = ((x - 20) / 15) ** 2 + ((y - 25) / 20) ** 2 + ((z - 15) / 11) ** 2 < 1
    volume = np.where(inside, 100 + 2 * x, 0).astype(np.float32)
    mask = np.zeros(volume.shape, bool)
    mask[25:30, 30:36, 16:20] = True
    truth = np.roll(mask, 1, 0)
    return volume, mask, truth, np.diag([2.0, 2.0, 2.0, 1.0])


def stored_as(codes, volumes, affine):
    """The same volumes with their axes stored as ``codes``, and their affine."""
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(codes))
    return [apply_orientation(v, turn) for v in volumes], affine @ inv_ornt_aff(turn, volumes[0].shape)


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.parametrize("codes", ["LIA", "PSR"])
def test_the_picture_is_the_same_however_the_scan_is_stored(tmp_path, codes):
    volume, mask, truth, affine = head()
    overlay.draw_overlay(volume, mask, tmp_path / "a.png", truth, affine)
    (volume, mask, truth), affine = stored_as(codes, (volume, mask, truth), affine)
    overlay.draw_overlay(volume, mask, tmp_path / "b.png", truth, affine)
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_the_lesion_is_drawn_on_the_side_where_it_lies(tmp_path):
    volume, mask, truth, affine = head()
    overlay.draw_overlay(volume, mask, tmp_path / "a.png", truth, affine, caption="sub-01")
    picture = pixels(tmp_path / "a.png")
    assert picture.ndim == 3
    body = picture[:-40]
    for colour in (overlay.PREDICTED, overlay.TRUE):
        assert (body == colour).all(-1).any()
    # The first panel is axial: right, where the lesion is (x 25 to 30 of 40), is on its left, and front is up.
    height = body.shape[0]
    panel = body[:, :body.shape[1] // 3]
    rows, columns = np.nonzero((panel == overlay.PREDICTED).all(-1))
    head_rows, head_columns = np.nonzero(panel.sum(-1) > 150)
    assert columns.mean() < head_columns.mean()
    assert rows.mean() < head_rows.mean() < height


def test_only_the_mask_is_coloured_and_an_empty_one_is_not(tmp_path):
    volume, mask, truth, affine = head()
    overlay.draw_overlay(volume, np.zeros_like(mask), tmp_path / "a.png", affine=affine)
    body = pixels(tmp_path / "a.png")[:-40]
    assert (body.max(-1) - body.min(-1)).max() == 0  # grey throughout
    overlay.draw_overlay(volume, np.zeros_like(mask), tmp_path / "b.png", truth, affine)
    body = pixels(tmp_path / "b.png")[:-40]
    assert (body == overlay.TRUE).all(-1).any()      # the slices go through the missed lesion
    assert not (body == overlay.PREDICTED).all(-1).any()


def test_thick_slices_are_drawn_in_millimetres(tmp_path):
    volume, mask, _, _ = head()
    overlay.draw_overlay(volume, mask, tmp_path / "thin.png", affine=np.diag([2.0, 2, 2, 1]))
    overlay.draw_overlay(volume[:, :, ::3], mask[:, :, ::3], tmp_path / "thick.png", affine=np.diag([2.0, 2, 6, 1]))
    thin, thick = (Image.open(tmp_path / name).size for name in ("thin.png", "thick.png"))
    assert thick == pytest.approx(thin, rel=0.12)


def test_constant_and_unequal_volumes(tmp_path):
    blank = np.zeros((8, 9, 10))
    overlay.draw_overlay(blank, blank > 0, tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()
    with pytest.raises(ValueError, match="same shape"):
        overlay.draw_overlay(blank, np.zeros((8, 9, 9)), tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


def test_an_overlay_does_not_load_matplotlib(tmp_path, root):
    code = ("import sys, numpy as np; from meshnet.scans.overlay import draw_overlay; "
            f"cube = np.eye(9)[None].repeat(9, 0); draw_overlay(cube, cube > 0, {str(tmp_path / 'a.png')!r}); "
            "print(sorted({'matplotlib', 'torch', 'pandas'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_each_panel_shows_its_own_two_axes(tmp_path):
    """A lesion 24 mm wide, 12 mm deep and 8 mm high is as wide and as high as that in every panel."""
    volume, mask, _, _ = head()
    mask[:] = False
    mask[14:26, 23:27, 14:16] = True
    overlay.draw_overlay(volume, mask, tmp_path / "a.png", affine=np.diag([2.0, 3, 4, 1]))
    body = pixels(tmp_path / "a.png")[:-40]
    coloured = body.max(-1) - body.min(-1) > 20
    columns = np.flatnonzero(coloured.any(0))
    found = []
    for group in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1):
        rows = np.flatnonzero(coloured[:, group].any(1))
        found.append(len(group) / (rows[-1] + 1 - rows[0]))
    assert found == pytest.approx([24 / 12, 24 / 8, 12 / 8], rel=0.1)  # axial, coronal, sagittal


def test_classes_have_their_own_colours_and_an_empty_mask_none(tmp_path):
    volume, mask = np.random.default_rng(0).random((20, 20, 20)), np.zeros((20, 20, 20), np.uint8)
    volume = np.where(volume > 0.1, 0.5, 0.0)  # grey: no pixel has a colour of its own
    mask[4:9, 4:9, 4:9], mask[11:16, 4:9, 4:9] = 1, 3
    colours = {}
    for name, labels, names in (("three", mask, ["a", "b", "c"]), ("one", mask > 0, ["lesion"]),
                                ("none", mask * 0, ["lesion"])):
        overlay.draw_overlay(volume, labels, tmp_path / f"{name}.png", names=names)
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png")).reshape(-1, 3)
        colours[name] = {k for k in (1, 2, 3) if (pixels == overlay.colour_of(k)).all(1).any()}
    assert colours == {"three": {1, 3}, "one": {1}, "none": set()}


@pytest.mark.parametrize("caption", ["sub-01_T1w.nii.gz, 1.20 mL, meshnet16", "its name says T1w, but the model " * 20,
                                     "runs/" + "a" * 400, ""])
@pytest.mark.parametrize(("height", "classes"), [(90, 1), (360, 1), (360, 6)])
def test_a_caption_is_whole_and_clear_of_the_legend(tmp_path, monkeypatch, caption, height, classes):
    volume, mask, _, affine = head()
    labels = np.zeros(volume.shape, np.uint8)
    labels[mask] = 1 + np.arange(mask.sum()) % classes
    drawn, draw_text = [], ImageDraw.ImageDraw.text

    def text(self, at, words, fill, font, anchor):
        drawn.append((words, self.textbbox(at, words, font, anchor=anchor), self.im.size))
        draw_text(self, at, words, fill, font, anchor=anchor)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    names = [f"class {k} of several" for k in range(classes)]
    overlay.draw_overlay(volume, labels, tmp_path / "a.png", affine=affine, caption=caption, height=height, names=names)
    foot = [one for one in drawn if one[0] not in ("R", "L", "A", "P")]
    lines = "".join(words for words, *_ in foot[:len(foot) - classes]).replace(" ", "")
    assert lines == caption.replace(" ", "")
    for number, (_, (left, top, right, bottom), size) in enumerate(foot):
        assert left >= 0 and right <= size[0] and bottom <= size[1]
        for _, (other_left, other_top, other_right, other_bottom), _ in foot[:number]:
            assert left >= other_right or right <= other_left or top >= other_bottom or bottom <= other_top


def test_a_thumbnail_with_an_outline_shows_the_lesion_within():
    """Within the outline the scan is as grey as it is."""
    volume, mask, _, affine = head()
    shown = {}
    for filled in (True, False):
        strip = np.asarray(Image.open(io.BytesIO(overlay.thumbnail(volume, mask, affine, 200, 95, filled)))).astype(int)
        shown[filled] = (strip.max(-1) - strip.min(-1) > 25).sum()
    assert 0.05 * shown[True] < shown[False] < 0.5 * shown[True]
