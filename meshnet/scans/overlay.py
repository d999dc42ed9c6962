"""A picture of a mask on three planes of its scan.

It needs only Pillow, so that segmenting a scan does not load matplotlib.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from meshnet.files import whole_file
from meshnet.scans.mask import box_of, label_lesions, slices

MARK = ("Software", "MeshNet")  # what a picture says of itself

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
PREDICTED, TRUE = (255, 96, 55), (60, 200, 255)  # orange filled, blue outlined: distinct to the colour-blind too
# Of further classes, distinct from those two and from each other; used in turn.
OTHERS = ((120, 210, 90), (235, 215, 70), (205, 125, 215), (150, 150, 255), (240, 160, 190))
MOST_NAMES = 6  # classes in the legend
FILL = 0.3           # opacity of the predicted mask
GAP, MARGIN_MM = 8, 6.0
LINE, MIN_TEXT = 20, 240  # of the caption, in pixels: height of a line; width below which it stands under the legend
INK, PAPER = (225, 225, 225), (12, 12, 12)
PLANES = (  # name, axis cut through, axis that runs right, its letters left and right on screen (radiological)
    ("axial", 2, 0, "RL"), ("coronal", 1, 0, "RL"), ("sagittal", 0, 1, "AP"),
)


def draw_overlay(volume: np.ndarray, mask: np.ndarray, path: str | Path, truth: np.ndarray | None = None,
                 affine: np.ndarray | None = None, caption: str = "", height: int = 360,
                 names: Sequence[str] = ()) -> None:
    """A PNG of the axial, coronal and sagittal slices with the most lesion, the mask filled, the truth outlined.

    Args:
        volume: (X, Y, Z), any numbers; shown from the 1st to the 99.5th percentile of all voxels except air.
        mask: (X, Y, Z), lesion where > 0.
        path: of the picture, written whole.
        truth: (X, Y, Z) or None, lesion where > 0.
        affine: (4, 4), from voxel to RAS+ mm: slices are shown in the radiological view, scaled to mm and lettered.
            None: axes as stored, cubic voxels, no letters.
        caption: under the slices, in as many lines as it takes.
        height: of the tallest slice, in pixels.
        names: of the labels 1, 2, …; where there are several, each has its own colour and its name in the legend.

    Slices go through the truth if it is not empty, so that a missed lesion is seen; else through the mask; if both are
    empty, through the middle of the head.

    Raises:
        ValueError: if the shapes differ.
    """
    volume, labels = np.asarray(volume), np.asarray(mask) if len(names) > 1 else None
    mask = np.asarray(mask) > 0
    truth = None if truth is None else np.asarray(truth) > 0
    for name, other in (("mask", mask), ("truth", truth)):
        if other is not None and other.shape != volume.shape:
            raise ValueError(f"{name} {other.shape} and volume {volume.shape} must have the same shape (X, Y, Z)")
    legend = [("true", TRUE)] if truth is not None else []
    if not mask.any():
        legend = [("nothing marked", None), *legend]
    elif labels is None:
        legend = [("predicted", PREDICTED), *legend]
    else:
        found = [int(k) for k in np.unique(labels) if 0 < k <= len(names)]
        shown = [(names[k - 1], colour_of(k)) for k in found[:MOST_NAMES]]
        more = [(f"and {len(found) - MOST_NAMES} more", None)] if len(found) > MOST_NAMES else []
        legend = [*shown, *more, *legend]
    _compose(_panels(volume, mask, truth, affine, height, labels=labels), path, caption, legend)


def colour_of(label: int) -> tuple[int, int, int]:
    """The colour of the label 1, 2, … of a mask."""
    return PREDICTED if label == 1 else OTHERS[(label - 2) % len(OTHERS)]


def thumbnail(volume: np.ndarray, mask: np.ndarray, affine: np.ndarray, height: int = 96, quality: int = 60,
              filled: bool = True) -> bytes:
    """A small JPEG of the three slices through the largest connected lesion, the mask as in ``draw_overlay``.

    Args:
        volume: (X, Y, Z), any numbers. mask: (X, Y, Z), lesion where > 0, each label in its own colour. affine: (4, 4),
            from voxel to RAS+ mm.
        height: of the tallest slice, in pixels. quality: of the JPEG, 1 to 95. filled: False draws the outline alone,
            which hides nothing of the lesion.
    """
    import io

    from PIL import Image

    labels = np.asarray(mask) if np.max(mask, initial=0) > 1 else None
    marked = np.asarray(mask) > 0
    panels = [panel for panel, _ in _panels(np.asarray(volume), marked, None, affine, height, True, labels,
                                              FILL if filled else 0.0)]
    size = max(panel.shape[0] for panel in panels), sum(panel.shape[1] + 2 for panel in panels)
    strip = np.zeros((*size, 3), np.uint8)
    left = 0
    for panel in panels:
        top = (strip.shape[0] - panel.shape[0]) // 2
        strip[top:top + panel.shape[0], left:left + panel.shape[1]] = panel
        left += panel.shape[1] + 2
    file = io.BytesIO()
    Image.fromarray(strip).save(file, format="JPEG", quality=quality, subsampling=2 if filled else 0)  # a thin line
    return file.getvalue()


def _panels(volume: np.ndarray, mask: np.ndarray, truth: np.ndarray | None, affine: np.ndarray | None, height: int,
            largest: bool = False, labels: np.ndarray | None = None, fill: float = FILL
            ) -> list[tuple[np.ndarray, str]]:
    """The three slices (rows, columns, 3), uint8, with the masks drawn on them, and the letters of their edges.

    With ``largest`` the slices go through the largest connected lesion of ``mask``. ``labels`` are the classes of its
    voxels, where each has its own colour; ``fill`` is the opacity within an outline.
    """
    from PIL import Image

    (volume, mask, truth, labels), spacing_mm = _to_ras((volume, mask, truth, labels), affine)
    low, high = _grey_range(volume)
    box = _box_of_head(volume, mask if truth is None else mask | truth, low + 0.05 * (high - low), spacing_mm)
    at = _most_lesion(_largest(mask) if largest else mask, truth, box)
    scale = height / max((box[axis][1] - box[axis][0]) * spacing_mm[axis] for axis in (1, 2))
    panels = []
    for _, cut, across, letters in PLANES:
        grey, *masks = (None if v is None else _slice(v, cut, at[cut], box) for v in (volume, mask, truth, labels))
        up = 3 - cut - across
        size = tuple(max(1, round(grey.shape[i] * spacing_mm[axis] * scale)) for i, axis in ((1, across), (0, up)))
        shown = np.clip((grey.astype(np.float32) - low) / (high - low), 0, 1) * 255
        rgb = np.asarray(Image.fromarray(shown.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR))
        rgb = np.repeat(rgb[..., None], 3, 2).astype(np.float32)
        masks = [None if m is None else np.asarray(Image.fromarray(m).resize(size, Image.Resampling.NEAREST))
                 for m in masks]
        panels.append((_paint(rgb, *masks, fill=fill), letters if affine is not None else ""))
    return panels


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected lesion of ``mask`` (X, Y, Z); ``mask`` itself where it is empty."""
    box = box_of(mask)
    if box is None:
        return mask
    labels, count = label_lesions(mask[slices(box)])
    if count == 1:
        return mask
    largest = np.zeros_like(mask)
    largest[slices(box)] = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    return largest


def _to_ras(volumes: Sequence[np.ndarray | None], affine: np.ndarray | None) -> tuple[list, tuple[float, ...]]:
    """Volumes (X, Y, Z) with their axes turned to run right, forward and up, without resampling; their spacing in mm.

    A volume may be None. Without an affine nothing is turned, and the spacing is 1 mm.
    """
    if affine is None:
        return list(volumes), (1.0, 1.0, 1.0)
    import nibabel
    from nibabel.orientations import apply_orientation, io_orientation

    turn = io_orientation(affine)
    mm = nibabel.affines.voxel_sizes(affine)
    spacing_mm = tuple(float(mm[list(turn[:, 0]).index(axis)]) for axis in range(3))
    return [None if v is None else apply_orientation(v, turn) for v in volumes], spacing_mm


def _grey_range(volume: np.ndarray) -> tuple[float, float]:
    """The grey values of ``volume`` (X, Y, Z) that are shown as black and as white."""
    some = volume[::2, ::2, ::2]
    some = some[np.isfinite(some)]
    tissue = some[some > some.min()] if some.size else some
    if not tissue.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(tissue, [1, 99.5]))
    return (low, high) if high > low else (low - 1, low + 1)


def _box_of_head(volume: np.ndarray, lesion: np.ndarray, threshold: float, spacing_mm: Sequence[float]) -> Box:
    """The box around all voxels of ``volume`` (X, Y, Z) that are brighter than ``threshold`` or in ``lesion``, with a
    margin; the whole volume where there are none."""
    boxes = [box for box in (box_of(volume > threshold), box_of(lesion)) if box]
    if not boxes:
        return tuple((0, size) for size in volume.shape)
    margins = [round(MARGIN_MM / mm) for mm in spacing_mm]
    return tuple((max(0, min(a for a, _ in sides) - margin), min(size, max(b for _, b in sides) + margin))
                 for sides, margin, size in zip(zip(*boxes), margins, volume.shape))


def _most_lesion(mask: np.ndarray, truth: np.ndarray | None, box: Box) -> list[int]:
    """On each axis the slice with the most voxels of the truth; where it is empty of the mask; else the box's middle.
    """
    for lesion in (truth, mask):
        if lesion is not None and lesion.any():
            return [int(lesion.sum(axis=tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3)]
    return [(low + high) // 2 for low, high in box]


def _slice(volume: np.ndarray, cut: int, index: int, box: Box) -> np.ndarray:
    """Slice ``index`` along axis ``cut`` of ``volume`` (X, Y, Z), cropped to ``box``: (rows from the top, columns).

    As radiologists look at it: the patient's right, or front, is on the left of the picture.
    """
    where = list(slices(box))
    where[cut] = index
    return volume[tuple(where)].T[::-1, ::-1]


def _paint(rgb: np.ndarray, mask: np.ndarray, truth: np.ndarray | None, labels: np.ndarray | None = None,
           fill: float = FILL) -> np.ndarray:
    """A panel (rows, columns, 3), uint8, with the masks (rows, columns) drawn on ``rgb``, which is overwritten."""
    parts = [(mask, PREDICTED)] if labels is None else [(labels == k, colour_of(k)) for k in np.unique(labels[mask])]
    for part, colour in parts:
        rgb[part] = (1 - fill) * rgb[part] + fill * np.array(colour)
        rgb[_outline(part)] = colour
    if truth is not None:
        rgb[_outline(truth)] = TRUE
    return rgb.astype(np.uint8)


def _outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of ``mask`` (rows, columns) with at least one of the four neighbours outside it."""
    padded = np.pad(mask, 1)
    inside = padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return mask & ~inside


def _compose(panels: Sequence[tuple[np.ndarray, str]], path: str | Path, caption: str,
             legend: Sequence[tuple[str, tuple[int, int, int] | None]]) -> None:
    """Write the picture: panels side by side, the caption and the legend under them.

    ``panels`` are pairs of (rows, columns, 3) uint8 and the letters for the left and the right edge, or none;
    ``legend`` words and their colours, None for words without one.
    """
    from PIL import Image, ImageDraw, ImageFont
    from PIL.PngImagePlugin import PngInfo

    font = ImageFont.load_default(15)
    tall = max(p.shape[0] for p, _ in panels)
    legend_width = sum(int(font.getlength(word)) + 32 for word, _ in legend)
    width = max(sum(p.shape[1] for p, _ in panels) + GAP * (len(panels) + 1), legend_width + 2 * GAP)
    beside = width - legend_width - 2 * GAP  # what the legend leaves of a line
    under = beside < MIN_TEXT and font.getlength(caption) > beside
    lines = wrapped(caption, font.getlength, width - 2 * GAP if under else beside)
    rows = max(1, len(lines) + under)
    picture = Image.new("RGB", (width, tall + 2 * GAP + 28 + (rows - 1) * LINE), PAPER)
    draw = ImageDraw.Draw(picture)
    x = (width - sum(p.shape[1] for p, _ in panels) - GAP * (len(panels) - 1)) // 2
    for panel, letters in panels:
        high, wide = panel.shape[:2]
        y = GAP + (tall - high) // 2
        picture.paste(Image.fromarray(panel), (x, y))
        for letter, anchor, left in zip(letters, ("lm", "rm"), (x + 4, x + wide - 4)):
            draw.text((left, y + high // 2), letter, INK, font, anchor=anchor)
        x += wide + GAP
    middle = tall + GAP + 18
    for row, line in enumerate(lines, under):
        draw.text((GAP, middle + row * LINE), line, INK, font, anchor="lm")
    x = width - legend_width
    for word, colour in legend:
        if colour is not None:
            draw.rectangle((x, middle - 6, x + 12, middle + 6), fill=colour)
        draw.text((x + 18, middle), word, INK, font, anchor="lm")
        x += int(font.getlength(word)) + 32
    said = PngInfo()
    said.add_text(*MARK)
    with whole_file(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=said)


def wrapped(text: str, length: Callable[[str], float], most: float) -> list[str]:
    """The lines of ``text``, none longer than ``most`` by ``length``; within a word only where it alone is longer."""
    lines: list[str] = []
    for word in text.split():
        if lines and length(f"{lines[-1]} {word}") <= most:
            lines[-1] += f" {word}"
            continue
        while length(word) > most and len(word) > 1:  # a path without spaces
            end = next((end for end in range(len(word) - 1, 1, -1) if length(word[:end]) <= most), 1)
            lines.append(word[:end])
            word = word[end:]
        lines.append(word)
    return lines


def is_drawn(path: Path) -> bool:
    """Whether a picture is one that ``draw_overlay`` wrote, by what it says of itself."""
    try:
        with open(path, "rb") as file:
            return "\0".join(MARK).encode() in file.read(512)
    except OSError:
        return False
