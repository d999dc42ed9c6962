"""``python -m meshnet.data.synthetic --pictures 24 --out FILE.png`` draws random cases."""

import nibabel as nib
import numpy as np

from meshnet import plots
from meshnet.data.synthetic.case import PRESETS, make_case
from meshnet.errors import OneLineParser, run_script


@plots.styled
def draw_cases(path: str, count: int, first_seed: int, voxel_mm: float, preset: str) -> None:
    """A sheet of ``count`` random cases: three planes through the middle of the lesions, the mask outlined."""
    columns = 8
    rows = -(-count // columns)
    figure = plots.new_figure(2 * columns, 6 * rows)
    panels = figure.subplots(rows * 3, columns, squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    for number in range(count):
        image, mask, info = make_case(first_seed + number, voxel_mm, preset)
        scan_array, mask_array = (np.asarray(nib.as_closest_canonical(each).dataobj) for each in (image, mask))
        middle = np.argwhere(mask_array).mean(0).astype(int) if mask_array.any() else np.array(mask_array.shape) // 2
        top = np.quantile(scan_array[scan_array > 0], 0.995)
        cuts = [[np.take(array, middle[axis], axis).T for array in (scan_array, mask_array)] for axis in range(3)]
        for plane, (scan_cut, mask_cut) in enumerate(cuts):
            panel = panels[number // columns * 3 + plane, number % columns]
            panel.imshow(scan_cut, origin="lower", cmap="gray", vmin=0, vmax=top)
            if mask_cut.any():
                panel.contour(mask_cut, [0.5], colors="red", linewidths=0.6)
            if plane == 0:
                panel.set_title(f"{info['seed']} {info['contrast']} {info['lesion_ml']:.1f} mL", fontsize=7)
    plots.save(figure, path)


def main() -> None:
    arguments = make_parser().parse_args()
    draw_cases(arguments.out, arguments.pictures, arguments.seed, arguments.voxel_mm, arguments.preset)
    print(arguments.out)


def make_parser() -> OneLineParser:
    parser = OneLineParser("python -m meshnet.data.synthetic", description="Draw random synthetic cases.")
    parser.add_argument("--pictures", type=int, default=24, help="how many cases")
    parser.add_argument("--out", default="synthetic.png", help="picture to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case")
    parser.add_argument("--voxel_mm", type=float, default=2.0, help="voxel size in mm")
    parser.add_argument("--preset", default="train", choices=sorted(PRESETS), help="how much the cases vary")
    return parser


if __name__ == "__main__":
    run_script(main)
