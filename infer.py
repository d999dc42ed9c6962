"""Segment lesions on scans: a mask on each scan's own grid, its volume, and a picture.

Research software, not for diagnosis. See README.md and ``python infer.py --help``.
"""

import argparse
import contextlib
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from meshnet.cohort import call
from meshnet.cohort.behind import Behind
from meshnet.cohort.files import WRITTEN, find_scans, named_channels, plan_masks
from meshnet.cohort.said import printable
from meshnet.config import parse_size
from meshnet.display import command, shown_path
from meshnet.errors import OneLineParser, UserError, run_script
from meshnet.flags import show_first
from meshnet.machine import without
from meshnet.numbers import in_ml, plain
from meshnet.runs import shards
from meshnet.runs.folder import AVERAGED
from meshnet.runs.place import place

MOST_THREADS = 1024
COMMON = """The three most common commands:

    python infer.py scan.nii.gz                     mask, volume and picture, by the built-in model
    python infer.py scans/ -o masks                 every scan of a folder
    python infer.py scan.nii.gz --model runs/mine   another model (python infer.py --list_models)

python infer.py --help lists all flags."""


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser("infer.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scans", nargs="*", metavar="SCAN",
                        help="NIfTI files or folders; channels of a case by name, FLAIR=a.nii.gz T2w=b.nii.gz, or "
                             "in the model's order joined by commas, a.nii.gz,b.nii.gz")
    parser.add_argument("-o", "--output", metavar="PATH",
                        help="mask file (one scan) or folder (default: NAME_lesion.nii.gz beside each scan)")
    parser.add_argument("--model", nargs="+", default=[], metavar="MODEL",
                        help="run folder, model folder, weights file or name; several models are averaged")
    parser.add_argument("--ema", action="store_true", help="use the exponential moving average of the weights")
    parser.add_argument("--threshold", type=float,
                        help="lesion probability from which a voxel is marked (default: the model's)")
    parser.add_argument("--min_lesion_mm3", type=float,
                        help="drop connected lesions smaller than this (default: the model's)")
    parser.add_argument("--also", nargs="+", action="extend", default=[], metavar="CLASS",
                        help="mark these classes of the model as well: \"white matter disease\" with the built-in one")
    parser.add_argument("--probability", action="store_true", help="also write NAME_lesion_probability.nii.gz")
    parser.add_argument("--crop", choices=("head", "none"), default="head",
                        help="compute only the head, or the whole volume")
    parser.add_argument("--max_memory", metavar="SIZE",
                        help="memory limit of the process while a MeshNet computes, such as 2GB")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: the fastest available)")
    parser.add_argument("--threads", type=int, help="number of CPU threads")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that share the scans of a "
                        "folder on this machine, as --launcher local --jobs N; needs -o (default 1)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each scan instead of text")
    parser.add_argument("--picture", action=argparse.BooleanOptionalAction, default=None,
                        help="draw the mask on three planes as NAME_lesion.png (default: yes, but for BIDS data sets)")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace masks that this program did not write, and with several scans all existing ones")
    parser.add_argument("--list_models", action="store_true", help="list the models available by name and exit")
    call.add_flags(parser)
    shards.add_flags(parser)
    show_first(parser, "-o --model --threshold --probability --json --picture --overwrite --list_models --format "
               "--report --workers")
    return parser


def main() -> int | None:
    arguments = make_parser().parse_args()
    if len(sys.argv) == 1 and sys.stderr.isatty():
        print(COMMON, file=sys.stderr)
        return 2
    if arguments.list_models:
        from meshnet.sharing.published import list_models

        print(list_models())
        return 0
    if arguments.threshold is not None and not 0 <= arguments.threshold <= 1:
        raise UserError(f"--threshold: found {plain(arguments.threshold)}, expected 0 to 1")
    if arguments.min_lesion_mm3 is not None and not arguments.min_lesion_mm3 >= 0:
        raise UserError(f"--min_lesion_mm3: found {plain(arguments.min_lesion_mm3)}, expected 0 or more")
    if arguments.threads is not None and not 1 <= arguments.threads <= MOST_THREADS:
        raise UserError(f"--threads: found {arguments.threads}, expected 1 to {MOST_THREADS}")
    if arguments.workers < 1:
        raise UserError(f"--workers: found {arguments.workers}, expected 1 or more")
    if arguments.workers > 1:
        if arguments.launcher:
            raise UserError("--workers: found beside --launcher, expected only one of them; --jobs says how many")
        arguments.launcher, arguments.jobs = "local", arguments.workers
    if arguments.max_memory is not None:
        arguments.max_memory = parse_size(arguments.max_memory, "--max_memory")
    call.scans_behind_flags(arguments)
    call.as_bids_app(arguments)
    if arguments.picture is None:
        arguments.picture = arguments.format != "bids"
    if arguments.level == "group":
        from meshnet.cohort.batch import group

        return group(arguments)
    with without("pydicom"):  # which nibabel imports where it is installed, in 0.2 s, to show one extension of headers
        import nibabel  # noqa: F401

    cases = None
    if arguments.format == "files":
        cases = plan_masks(*find_scans(arguments.scans, lambda: first_card(arguments).channels), arguments.output)
    names = find_models(arguments)
    if shards.drives(arguments):
        code = shards.run_shards("infer.py", call.check_launch(arguments, names), arguments,
                                 merges=arguments.level != "participant")
        if cases and not arguments.json:
            print(printable(next_step(cases, arguments, first_card(arguments))), file=sys.stderr)
        return code

    from meshnet.cohort.batch import Batch
    from meshnet.networks.card import check_also

    models = get_models(names, arguments, single=cases is not None and len(cases) == 1)
    check_also([model.card for model in models], arguments.also, "--also")
    batch = Batch(cases, arguments, models, names)
    with contextlib.closing(batch):
        segment_all(batch, models, arguments)
        code = batch.end()
    if batch.work.did + len(batch.work.skipped) and not arguments.json and not arguments.level and place().count == 1:
        said = (next_step(cases, arguments, models[0].card, batch.misfit, batch.beside) if cases else
                f"Next: look at {batch.out}" + ", or repeat the command with --report" * (not arguments.report))
        print(printable(said), file=sys.stderr)
    return code


def next_step(cases: list[dict], arguments: argparse.Namespace, card, misfit: bool = False, beside=()) -> str:
    """What to do after the last scan: look at it, or at all of them. ``card``: of the first model; ``misfit``: it is
    for another kind of scan; ``beside``: classes that it saw and did not mark."""
    from meshnet.cohort.lines import class_names

    if arguments.report:
        return f"Next: open {Path(arguments.output) / 'report.html'} in a browser"
    if len(cases) == 1:
        look = [f"look at {cases[0]['picture']}"] if arguments.picture and cases[0]["picture"].exists() else []
        more = ["a lower --threshold marks more, a higher one less"] if len(class_names(card)) == 1 else []
        more += [f"{command('--also', *beside)} marks {' and '.join(beside)} as well"] if beside else []
        more = ["another model: python infer.py --list_models"] if misfit else more
        return f"Next: {'; '.join(look + more) or 'look at ' + str(cases[0]['mask'])}"
    scans = {str(path) for case in cases for path in case["scans"]}
    given = [word for word in sys.argv[1:] if word != "--report" and (
        word in scans or not (word.lower().endswith(WRITTEN) and os.path.isfile(word)))]  # without masks in a list
    return f"Next: {command('python', 'infer.py', *given, *([] if arguments.output else ['-o', 'masks']), '--report')}"


def segment_all(batch, models: list, arguments: argparse.Namespace) -> None:
    """Segment the scans of ``batch`` that no other process does, one after the other. The next scan is read and
    conformed, and the last one written, while one is computed."""
    from meshnet.cohort.kept import check_output
    from meshnet.inference.scan import read_case

    # Scans read ahead: none under a limit of this process's memory; several for a GPU, which computes sooner than it
    # takes to read one.
    on_gpu = any(hasattr(network, "parameters") and next(network.parameters()).device.type == "cuda"
                 for network, _ in models)
    beside = 3 if on_gpu else 1 if arguments.max_memory is None else 0
    told: set[str] = set()
    with ThreadPoolExecutor(max(1, beside)) as reader, Behind(beside > 0 and not arguments.agreement) as behind:
        ahead: list[tuple] = []
        said = False
        while True:
            while len(ahead) <= (0 if batch.suspect else beside) and (case := behind.take(batch)):
                ahead.append((case, reader.submit(read_case, case["scans"], models)))
                if batch.taken == 1:
                    loaded = reader.submit(import_ahead, arguments.picture)
                    if arguments.max_memory is not None:
                        loaded.result()  # before the free memory is measured
            if not ahead:
                behind.wait()
                if batch.wait():
                    continue
                return
            started = time.perf_counter()
            case, read = ahead.pop(0)
            if said:
                behind.do(batch.show, case)
            try:
                check_output(case, arguments.overwrite, arguments.probability, arguments.picture, batch.record(case))
                conformed = read.result()
                behind.do(say_before, batch, case, models, arguments, said)
                said = True
                write = segment(conformed, models, case, arguments, batch)
                seconds = time.perf_counter() - started
            except Exception as error:  # noqa: BLE001 - one scan of many; what would end the others as well is raised
                behind.wait()
                batch.live.clear()
                batch.fail(case, error)
                continue
            behind.wait()  # for the scan before, so that no more than one is held for it
            behind.do(behind.finish, batch, case, write, seconds, arguments.json, told)
            if batch.suspect:
                behind.wait()


def say_before(batch, case: dict, models: list, arguments: argparse.Namespace, said: bool) -> None:
    """What is said before a scan is computed; not before it is read, since a mistake is one line."""
    batch.live.clear()
    if not (said or arguments.json):
        say_what_is_done(models, arguments)
    if len(case["scans"]) > 1 and not arguments.json:
        print(printable(named_channels(case["scans"], models[0].card.channels)), file=sys.stderr)
    batch.show(case)


def say_what_is_done(models: list, arguments: argparse.Namespace) -> None:
    """One line on standard error before the first scan is segmented, from one of several processes."""
    from meshnet.cohort.lines import header, voxel_sizes

    if os.environ.get("RANK", "0") != "0":
        return
    print(printable(header(arguments.model, [model.card for model in models], arguments.threshold,
                           arguments.min_lesion_mm3, voxel_sizes(models), arguments.also)), file=sys.stderr, flush=True)


# ---------------------------------------------------------------------- network and scans

def first_card(arguments: argparse.Namespace):
    """The card of the first ``--model``, or of the built-in one."""
    from meshnet.networks.card import read_card
    from meshnet.networks.folder import default_model, find_folder
    from meshnet.sharing.published import find

    return read_card(find_folder(find(arguments.model[0])) if arguments.model else default_model())


def find_models(arguments: argparse.Namespace) -> list[str | Path | None]:
    """Every ``--model`` as ``load_models`` takes it, fetched where it is a published one; None for the built-in one."""
    from meshnet.sharing.published import find

    return [find(name) for name in arguments.model] or [None]


def get_models(names: list[str | Path | None], arguments: argparse.Namespace, single: bool = False) -> list:
    """The models on the device; ``single`` for one scan."""
    from meshnet.inference.scan import load_models
    from meshnet.networks.card import WEIGHTS

    return load_models(names, AVERAGED if arguments.ema else WEIGHTS, arguments.device,
                       arguments.threads, single)


def import_ahead(picture: bool) -> None:
    """Import what is needed after the network, while the network computes."""
    import scipy.ndimage  # noqa: F401

    if picture:
        import PIL.Image  # noqa: F401

        import meshnet.scans.overlay  # noqa: F401


def segment(case, models: list, planned: dict, arguments: argparse.Namespace, batch):
    """Segment one case; returns a function that writes it, see ``write_files``."""
    from meshnet.inference.scan import segment_case

    found = segment_case(case, models, probabilities=arguments.probability, threshold=arguments.threshold,
                         min_lesion_mm3=arguments.min_lesion_mm3, also=arguments.also, crop=arguments.crop,
                         max_memory=arguments.max_memory, threads=arguments.threads)
    return partial(write_files, case, found, models, planned, arguments, batch)


def write_files(case, found, models: list, planned: dict, arguments: argparse.Namespace, batch) -> tuple[dict, dict]:
    """Write the requested files, and return what to report, and the volume of each class in mL."""
    from dataclasses import asdict

    import nibabel as nib
    import numpy as np

    from meshnet.cohort.lines import class_names, class_volumes, trust
    from meshnet.errors import decoration
    from meshnet.files import whole_file
    from meshnet.inference.scan import timed
    from meshnet.scans.mask import voxel_volume_mm3
    from meshnet.scans.ours import replaced_remarks

    mask, like, parts, written = planned["mask"], case.images[0], case.parts, ["mask"]
    if found.probabilities is not None:
        written.append("probability")
        with whole_file(planned["probability"]) as temporary:
            nib.save(found.probabilities, temporary)
    result = {"scan": [str(path) for path in planned["scans"]], **{name: str(planned[name]) for name in written},
              "volume_ml": found.volume_ml, "lesions": found.lesions, "largest_ml": found.largest_ml,
              "quality": found.quality, "quality_from": {"learned": found.learned, **found.evidence.rounded()},
              "contrast": found.contrast, "expect": trust(models[0].card, found.contrast),
              **{key: value for key, value in asdict(found.decision).items() if key != "also" or value},
              **({"beside": found.beside} if found.beside else {}),
              "warnings": case.remarks, "remarks": list(found.remarks[len(case.remarks):]), "parts": parts}
    batch.before(planned, case, found, result)
    if not arguments.overwrite:
        result["warnings"] = [*result["warnings"], *replaced_remarks(mask, found.mask)]
    with timed(parts, "write"), whole_file(mask) as temporary:
        nib.save(found.mask, temporary)  # before it is drawn: an existing mask is a finished case
    if arguments.picture:
        from meshnet.scans.overlay import draw_overlay

        picture = planned["picture"]
        with timed(parts, "picture"), decoration(f"{picture}: not drawn", "the mask is written"):
            draw_overlay(np.asanyarray(like.dataobj), np.asanyarray(found.mask.dataobj), picture, affine=like.affine,
                         caption=picture_caption(result, arguments), names=class_names(models[0].card))
            result["picture"] = str(picture)
    volumes = class_volumes(models[0].card, np.asanyarray(found.mask.dataobj), voxel_volume_mm3(like.affine))
    if len(volumes) > 1:
        result["classes_ml"] = {name: round(volume, 3) for name, volume in volumes.items()}
    return result, volumes


def picture_caption(result: dict, arguments: argparse.Namespace) -> str:
    """The line under a picture: the scan, its volume, the model, and what is doubtful."""
    from meshnet.cohort.lines import called

    model = called([shown_path(name) for name in arguments.model])
    volume = in_ml(result["volume_ml"]) + " with " * bool(result.get("also")) + " and ".join(result.get("also", ()))
    words = [Path(result["scan"][0]).name, volume, model]
    return printable("; ".join([", ".join(words), *result["warnings"]]))


if __name__ == "__main__":
    run_script(main)
