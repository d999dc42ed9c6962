"""Raw scans → a prepared dataset: find scan and mask pairs, conform them in parallel, divide the subjects into folds.

    python prepare.py ~/ds004884 --format bids --suffix T2w --exclude acq=tse3 --out data/arc
    python prepare.py --format synthetic --cases 12 --voxel_mm 4 --out data/tiny

The same command again goes on where it stopped and redoes only what changed. Exit code 0: all cases prepared; 1: some
failed, they are listed with their reasons and the others are ready; 2: nothing could be prepared, or a wrong flag.
"""

import argparse
import os
import sys

from meshnet.errors import UserError, run_script

FORMATS = ("bids", "msd", "kits", "nnunet", "table", "hub", "synthetic")
MEMORY_A_WORKER = 2 * 2**30  # bytes; a case of two channels at 256³ peaks at 1.1 GiB


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("path", nargs="?", help="the data set: a folder, a CSV file (table), a Hub name or folder (hub)")
    p.add_argument("--format", required=True, choices=FORMATS)
    p.add_argument("--out", help="folder of the prepared dataset")
    p.add_argument("--list", action="store_true", help="print the pairs found and why others were left out, and stop")

    g = p.add_argument_group("which cases")
    g.add_argument("--suffix", nargs="+", default=[], metavar="NAME",
                   help="scans to use, such as T2w; several become channels (bids, hub: required; table: image "
                        "columns; msd, nnunet: channels to keep, by name)")
    g.add_argument("--include", action="append", default=[], metavar="ENTITY=VALUE",
                   help="only files with this entity or column value; repeat it, or give VALUE,VALUE")
    g.add_argument("--exclude", action="append", default=[], metavar="ENTITY=VALUE", help="no files with this one")
    g.add_argument("--allow_empty", action="store_true", help="keep cases whose mask is empty (healthy controls)")

    g = p.add_argument_group("classes")
    g.add_argument("--labels", nargs="+", metavar="V[,V…][=CLASS]",
                   help="mask values to classes: '1,2,3' merges them into one class, '1 2' makes two, '1,2=1 4=2' says "
                        "which; other values become background. Without it everything > 0 is lesion")
    g.add_argument("--classes", nargs="+", metavar="NAME", help="names of classes 1, 2, … (default: lesion, or the "
                   "source's names)")
    g.add_argument("--marks", metavar="NAME", help="the one class that is the lesion and will be marked; the others "
                   "are learned to be told from it (default: all; lesion for the preset bright_fluid)")

    g = p.add_argument_group("what the model will see")
    g.add_argument("--voxel_mm", type=float, default=1.0, help="edge of a voxel (default 1)")
    g.add_argument("--shape", type=int, nargs=3, metavar="N", help="voxels on each axis (default 256 / voxel_mm)")
    g.add_argument("--orientation", default="LIA", help="axis codes (default LIA, as mri_convert and brainchop)")
    g.add_argument("--averaged", action="store_true", help="a voxel is the mean of what it covers, not the value at "
                   "its middle as mri_convert has it: for a --voxel_mm larger than the scans' voxels (masks are "
                   "taken at the middle, which keeps a lesion's volume)")
    g.add_argument("--scaling", default=None, help="intensities (default conform_uint8, as mri_convert)",
                   choices=("conform_uint8", "minmax", "quantile", "brainchop_quantile", "window"))
    g.add_argument("--window", type=float, nargs=2, metavar=("LOW", "HIGH"),
                   help="values that become 0 and 1, e.g. HU of a CT; implies --scaling window")

    g = p.add_argument_group("folds")
    g.add_argument("--group", nargs="*", metavar="COLUMN", default=None,
                   help="stratify by these columns and lesion volume (default: acq for bids where it is known; none: "
                        "--group alone)")
    g.add_argument("--outer", type=int, default=3, help="outer folds (default 3; 1: nobody is tested on)")
    g.add_argument("--inner", type=int, default=3, help="inner folds (default 3; 1: validate on the training subjects)")
    g.add_argument("--split_seed", type=int, default=0)

    g = p.add_argument_group("synthetic")
    g.add_argument("--cases", type=int, default=12, help="how many (default 12)")
    g.add_argument("--synthetic_seed", type=int, default=0, help="other cases with every number (default 0)")
    g.add_argument("--synthetic_preset", default="demo", metavar="NAME",
                   help="how varied they are: demo, train, bright or bright_fluid")

    p.add_argument("--workers", type=int, help="processes (default: CPU cores, fewer where memory is short)")
    return p


def main() -> int:
    args = parser().parse_args()
    check_flags(args)

    # ---- find the pairs ----------------------------------------------------------------------------------------
    from meshnet.data.sources.case import Filters
    from meshnet.data.sources.find import find_cases

    options = {}
    if args.format == "synthetic":
        options = {"cases": args.cases, "voxel_mm": args.voxel_mm, "seed": args.synthetic_seed,
                   "preset": args.synthetic_preset}
    listing = find_cases(args.format, args.path, args.suffix, Filters.parse(args.include, args.exclude), **options)
    if args.list:
        return print_listing(listing)
    if not listing.cases:
        print_faults(listing.failed)
        raise UserError(f"{args.path}: found no pair of scan and mask; --list says why")

    # ---- conform them, each into its own shard -----------------------------------------------------------------
    from meshnet.data.writer import finish, open_folder, prepare_cases

    settings, classes = settle(args, listing)
    subjects = {c.subject for c in listing.cases}
    if len(subjects) < args.outer:
        raise UserError(
            f"--outer {args.outer}: found {len(subjects)} subject(s), expected at least {args.outer}; ask for fewer "
            "folds (--outer 1 --inner 1 trains and validates on everybody) or add subjects"
        )
    out = open_folder(args.out)
    done, failed = prepare_cases(listing.cases, settings, out, args.workers or default_workers())
    failed = listing.failed + failed

    # ---- make one dataset of the shards, with splits -----------------------------------------------------------
    print_faults(failed)
    if not done:
        raise UserError(f"{args.path or args.format}: none of {len(failed)} case(s) could be prepared, see above")
    source = {"format": args.format, "path": args.path, "suffix": args.suffix, "include": args.include,
              "exclude": args.exclude, "labels": args.labels, **options}
    prepared = finish(out, done, settings, source, listing.channels, classes,
                      {"outer": args.outer, "inner": args.inner, "seed": args.split_seed})
    box = prepared["box"]
    print(f"{out}: {len(done)} case(s), {prepared['subjects']} subject(s), lesions {prepared['lesion_ml']}")
    print(f"head box {box[0]}:{box[1]} {box[2]}:{box[3]} {box[4]}:{box[5]}, {prepared['box_share']:.0%} of the grid")
    if failed:
        print(f"{len(failed)} case(s) failed, listed above", file=sys.stderr)
    return 1 if failed else 0


def check_flags(args: argparse.Namespace) -> None:
    """What can be wrong with the flags alone."""
    if (args.path is None) != (args.format == "synthetic"):
        raise UserError(
            f"--format {args.format}: found {'no PATH' if args.path is None else 'PATH ' + args.path}, expected "
            + ("PATH, the data set to read" if args.path is None else "none; synthetic cases are drawn, not read")
        )
    if not args.out and not args.list:
        raise UserError("--out: missing, expected the folder to write; or use --list to look only")
    if args.format in ("bids", "hub") and not args.suffix:
        raise UserError(f"--suffix: missing, expected which scans to use from {args.format}, such as --suffix T2w")
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers: found {args.workers}, expected at least 1")
    if args.window and args.scaling not in (None, "window"):
        raise UserError(f"--window: goes with --scaling window, found --scaling {args.scaling}; drop one of them")
    if args.scaling == "window" and not args.window:
        raise UserError("--scaling window: expected --window LOW HIGH beside it, such as --window 0 80")
    if args.window and not args.window[0] < args.window[1]:
        raise UserError(f"--window: found {args.window[0]:g} {args.window[1]:g}, expected LOW < HIGH, such as 0 80")


def settle(args: argparse.Namespace, listing) -> tuple:
    """The settings that rows depend on, and the names of the classes, background first."""
    from meshnet.data.labels import class_names, parse_labels
    from meshnet.data.row import Settings
    from meshnet.scans.grid import Grid

    fluid = args.format == "synthetic" and listing.classes is not None  # a preset that has more than the lesion
    labels = parse_labels(args.labels or (["1", "2"] if fluid else None))
    classes = class_names(labels, args.classes, listing.classes)
    marks = args.marks or ("lesion" if fluid and "lesion" in classes else None)
    if marks and marks not in classes[1:]:
        raise UserError(f"--marks {marks}: found the class(es) {', '.join(classes[1:])}, expected one of them")
    known = sorted({name for case in listing.cases for name in case.groups})
    groups = args.group if args.group is not None else listing.groups
    if args.format != "synthetic" and (unknown := [g for g in groups if g not in known]):
        raise UserError(f"--group: found {unknown[0]!r}, expected one of {', '.join(known) or '(no columns here)'}")
    settings = Settings(
        grid=Grid(args.voxel_mm, tuple(args.shape) if args.shape else None, args.orientation, averaged=args.averaged),
        scaling="window" if args.window else args.scaling or "conform_uint8",
        window=tuple(args.window) if args.window else None,
        labels=tuple(sorted(labels.items())) if labels else None,
        channels=len(listing.channels),
        groups=tuple(groups),
        allow_empty=args.allow_empty,
        marks=classes.index(marks) if marks and len(classes) > 2 else None,
    )
    return settings, classes


def default_workers() -> int:
    """CPU cores, or fewer where memory is short."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system says
        return cores
    return max(1, min(cores, free // MEMORY_A_WORKER))


def print_listing(listing) -> int:
    for case in listing.cases:
        print(f"{case.case}\t{' + '.join(case.images)}\t{case.mask}")
    for path, reason in listing.left_out:
        print(f"left out\t{path}\t{reason}")
    print_faults(listing.failed)
    print(f"{len(listing.cases)} pair(s), {len(listing.left_out)} left out, {len(listing.failed)} failed")
    return 1 if listing.failed else 0


def print_faults(failed: list[tuple[str, str]]) -> None:
    for path, reason in failed:
        line = reason if reason.startswith(path) else f"{path}: {reason}"
        print(f"failed\t{' '.join(line.split())}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
