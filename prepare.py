"""Raw scans → a prepared dataset: find scan and mask pairs, conform them in parallel, divide the subjects into folds.

    python prepare.py ~/ds004884 --format bids --suffix T2w --exclude acq=tse3 --out data/arc
    python prepare.py --format synthetic --cases 24 --voxel_mm 8 --averaged --out data/tiny

The same command again continues where it stopped and prepares only what changed. Exit code 0: all cases are prepared;
1: some failed, which are listed with their reasons, and the others are ready; 2: nothing was prepared, or a wrong flag.
"""

import argparse
import contextlib
import sys
from dataclasses import replace
from pathlib import Path

from meshnet.config import SCALINGS
from meshnet.data.flags import add_corrections, add_synthetic
from meshnet.data.sources.case import FORMATS, Filters
from meshnet.display import command, count, say_next
from meshnet.errors import OneLineParser, UserError, decoration, run_script
from meshnet.flags import show_first
from meshnet.numbers import plain
from meshnet.runs import shards

# What the model will see, where nothing else is said, by the names of the flags and of a model's card.
SEEN = {"voxel_mm": 1.0, "shape": None, "orientation": "LIA", "centre": "n/2", "averaged": False, "mirror": False,
        "scaling": None, "window": None}
ALIKE = "orientation", "scaling", "window", "mirror"  # without which --init refuses a model


def make_parser() -> argparse.ArgumentParser:
    p = OneLineParser(prog="prepare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("path", nargs="?", help="the data set: a folder, a CSV file (table), a Hub name or folder (hub)")
    p.add_argument("--format", choices=FORMATS, help="how the data set is laid out (default for a CSV file: table)")
    p.add_argument("--out", help="folder of the prepared dataset")
    p.add_argument("--list", action="store_true", help="only print the pairs found, and why the others were left out")

    g = p.add_argument_group("which cases")
    g.add_argument("--suffix", nargs="+", default=[], metavar="NAME",
                   help="scans to use, such as T2w; several become channels (bids, hub: required; table: image "
                        "columns; msd, nnunet: channels to keep, by name)")
    g.add_argument("--include", action="append", default=[], metavar="ENTITY=VALUE",
                   help="only files with this value of a BIDS entity or column; repeat it, or give VALUE,VALUE")
    g.add_argument("--exclude", action="append", default=[], metavar="ENTITY=VALUE", help="no files with this value")
    g.add_argument("--allow_empty", action="store_true", help="keep cases whose mask is empty (healthy controls)")

    g = p.add_argument_group("classes")
    g.add_argument("--labels", nargs="+", metavar="V[,V…][=CLASS]",
                   help="mask values to classes: '1,2,3' merges them into one class, '1 2' makes two, '1,2=1 4=2' says "
                        "which; other values become background. Without it everything > 0 is lesion")
    g.add_argument("--classes", nargs="+", metavar="NAME", help="names of classes 1, 2, … (default: lesion, or the "
                   "source's names)")
    g.add_argument("--marks", metavar="NAME", help="the one class that the network should mark; the others only "
                   "teach it what is not a lesion (default: all; lesion for the presets bright_fluid and every)")

    g = p.add_argument_group("what the model will see")
    g.add_argument("--like", metavar="MODEL", help="as this model sees scans: all of this group where no flag says "
                   "otherwise, to start a training from its weights (train.py --init MODEL)")
    g.add_argument("--first", metavar="MODEL", help="for the second network of a cascade: this one's probabilities "
                   "become further channels (default: the first network of a cascade in --like); without --like "
                   "orientation, centre and scaling are this one's")
    g.add_argument("--mirror", action=argparse.BooleanOptionalAction, help="with --first: all channels also mirrored")
    g.add_argument("--voxel_mm", type=float, help="edge of a voxel (default 1)")
    g.add_argument("--shape", type=int, nargs=3, metavar="N", help="voxels on each axis (default 256 / voxel_mm)")
    g.add_argument("--orientation", help="axis codes (default LIA, as mri_convert and brainchop)")
    g.add_argument("--averaged", action=argparse.BooleanOptionalAction, default=None,
                   help="average the scan over each voxel instead of sampling it at the centre, as mri_convert does: "
                   "for a --voxel_mm larger than the scans' (masks are sampled, which keeps a lesion's volume)")
    g.add_argument("--scaling", choices=SCALINGS, help="intensities (default conform_uint8, as mri_convert)")
    g.add_argument("--window", type=float, nargs=2, metavar=("LOW", "HIGH"),
                   help="values that become 0 and 1, e.g. HU of a CT; implies --scaling window")

    g = p.add_argument_group("folds")
    g.add_argument("--group", nargs="*", metavar="COLUMN", default=None,
                   help="stratify by these columns and lesion volume (default: acq for bids where it is known; "
                        "--group without a column: by lesion volume alone)")
    g.add_argument("--outer", type=int, default=3, help="outer folds (default 3; 1: no test subjects)")
    g.add_argument("--inner", type=int, default=3, help="inner folds (default 3; 1: validate on the training subjects)")
    g.add_argument("--split_seed", type=int, default=0, help="of the folds (default 0)")

    add_corrections(p)
    add_synthetic(p)
    p.add_argument("--pictures", action=argparse.BooleanOptionalAction, default=True,
                   help="write cases.html, a page with every case and its mask to look at")
    p.add_argument("--workers", type=int, help="processes (default: CPU cores, fewer where memory is short)")
    shards.add_flags(p)
    show_first(p, "--format --out --list --suffix --exclude --labels --like --voxel_mm --outer --inner --cases")
    return p


def main() -> int:
    arguments = make_parser().parse_args()
    fill_in(arguments)
    check_flags(arguments)

    # ---- find the pairs ----------------------------------------------------------------------------------------
    from meshnet.data.sources.find import find_cases

    options = {}
    if arguments.format == "synthetic":
        options = {"cases": arguments.cases, "voxel_mm": arguments.voxel_mm, "seed": arguments.synthetic_seed,
                   "preset": arguments.synthetic_preset, "anatomy": arguments.anatomy, "lesions": arguments.lesions}
    filters = Filters.parse(arguments.include, arguments.exclude, arguments.image_pattern, arguments.mask_pattern,
                            arguments.same)
    listing = find_cases(arguments.format, arguments.path, arguments.suffix, filters, arguments.subject,
                         arguments.apart, **options)
    print_notes(listing.notes)
    if arguments.list:
        return print_listing(arguments, listing)
    if not listing.cases:
        print_faults(listing.failed)
        raise UserError(f"{arguments.path}: found no pair of scan and mask; use --list to see why")

    # ---- conform them, each into its own shard -----------------------------------------------------------------
    from meshnet.data.writer import open_folder, prepare_cases

    settings, classes = make_settings(arguments, listing)
    see = None
    if arguments.first:
        from meshnet.inference.prepared import first_of, see

        settings = replace(settings, first=first_of(arguments.first, settings.scaling, listing.channels,
                                                    arguments.wanted, arguments.mirror))
    check_folds(arguments, listing)
    out = open_folder(arguments.out)
    if shards.drives(arguments):
        return shards.run_shards("prepare.py", out, arguments, gpus=0, thing="case")
    done, failed, shared = prepare_cases(listing.cases, settings, out, arguments.workers, see)
    failed = listing.failed + failed
    with contextlib.closing(shared):
        if not shared.is_last():
            print(f"{out}: all cases are looked at; another process of this command makes the data set of them")
            return 1 if failed else 0
        make_dataset(arguments, options, listing, settings, classes, out, done, failed)
        shared.wrote()
    return 1 if failed else 0


def make_dataset(arguments: argparse.Namespace, options: dict, listing, settings, classes: list[str], out, done: list,
                 failed: list) -> None:
    """Make one data set of the shards ``done``, with splits, and say what it holds and what failed."""
    from meshnet.data.sources.patients import join_rows
    from meshnet.data.writer import PREPARED, small_columns, write_dataset
    from meshnet.networks.cascade import drop_first, keep_first

    print_faults(failed)
    if not done:
        raise UserError(f"{arguments.path or arguments.format}: none of {count(len(failed), 'case')} could be "
                        "prepared; see the reasons above")
    given = ("format", "path", "suffix", "include", "exclude", "labels")
    said = ("image_pattern", "mask_pattern", "same", "subject", "apart")
    source = {**{name: getattr(arguments, name) for name in given}, **options,
              **{name: getattr(arguments, name) for name in said if getattr(arguments, name)}}
    if arguments.format == "hub" and not arguments.apart:
        print_notes(join_rows(listing, [small_columns(out / name) for name in done]))
    keep_first(arguments.first, out, listing.channels) if arguments.first else drop_first(out, PREPARED)
    prepared = write_dataset(out, done, settings, source, listing.channels, classes,
                             {"outer": arguments.outer, "inner": arguments.inner, "seed": arguments.split_seed,
                              "together": listing.together})
    if failed:
        print(f"{count(len(failed), 'case')} failed, listed above", file=sys.stderr)
    say_prepared(arguments, out, prepared)


def say_prepared(arguments: argparse.Namespace, out: Path, prepared: dict) -> None:
    """What came out, the folds, the page to look at, and what to type next."""
    from meshnet.data.cases_page import PAGE, write_page
    from meshnet.data.schema import SPLITS
    from meshnet.data.splits import fold_subjects, load_splits
    from meshnet.recipe import recipe_for

    print(f"{out}: {count(prepared['cases'], 'case')}, {count(prepared['subjects'], 'subject')}, lesions "
          f"{prepared['lesion_ml']}")
    print(f"the head's box has {prepared['box_share']:.0%} of the grid's voxels; training reads that part")
    splits = load_splits(out / SPLITS)
    for fold in range(splits["outer"]):
        train, val, test = (set(fold_subjects(splits, fold, 0)[name]) for name in ("train", "val", "test"))
        own = " (on the training cases: an upper bound)" if train & val else ""
        print(f"fold {fold}: {len(train)} to train on, {len(val)} to validate{own}, {len(test)} to test"
              + ("" if fold or splits["inner"] == 1 else f" (inner fold 0 of {splits['inner']})"))
    if arguments.pictures:
        with decoration(f"{out / PAGE}: not written", "nothing else depends on it"):
            write_page(out)
            print(f"{out / PAGE}: every case to look at, the odd ones first")
    begin = ("--recipe", recipe_for(prepared))
    if arguments.alike:
        begin = ("--init", arguments.like, "--recipe", "recipes/finetune.yaml")
    elif arguments.like:
        print(f"note: {arguments.like} sees scans otherwise than they are here, so train.py --init would refuse it")
    say_next(f"{command('python', 'train.py', *begin, '--data', out)} --run_dir runs/NAME")


def fill_in(arguments: argparse.Namespace) -> None:
    """Set what no flag says: the format by the file's name, and what the model will see as --like has it."""
    if not (arguments.format or (arguments.path or "").lower().endswith((".csv", ".tsv"))):
        raise UserError(f"--format: missing, expected one of {', '.join(FORMATS)}")
    arguments.format = arguments.format or "table"
    known = SEEN | (theirs := seen_by(arguments))
    if arguments.voxel_mm not in (None, known["voxel_mm"]):
        known["shape"] = None  # it is one of the model's voxels
    if arguments.scaling or arguments.window:
        known["scaling"] = known["window"] = None
    for name, value in known.items():
        if getattr(arguments, name, None) is None:
            setattr(arguments, name, value)
    ours = vars(arguments) | {"scaling": arguments.scaling or ("window" if arguments.window else None)}
    arguments.alike = bool(arguments.like) and bool(arguments.first) == bool(arguments.wanted) and all(
        ours[name] == theirs[name] for name in ALIKE)


def seen_by(arguments: argparse.Namespace) -> dict:
    """How the models of --like and --first see scans, by the names of the flags; a cascade in --like sets --first."""
    from meshnet.networks.card import read_card
    from meshnet.networks.cascade import FIRST, read_first
    from meshnet.networks.folder import find_folder, find_weights
    from meshnet.sharing.published import find

    known, arguments.wanted = {}, None
    if arguments.like:
        card = read_card(folder := find_folder(find(arguments.like)))
        print(f"as {arguments.like} sees scans: {plain(card.voxel_mm)} mm, {('sampled', 'averaged')[card.averaged]}, "
              f"{card.orientation}, {card.scaling}, channels {', '.join(card.channels)}")
        known, arguments.wanted = {name: getattr(card, name) for name in SEEN}, card.first
        if read_first(folder, card) and not arguments.first:
            arguments.first = str(folder / FIRST)
    if arguments.first:
        arguments.first = find_weights(find(arguments.first))
        card = read_card(arguments.first.parent, arguments.first.name)
        if card.first:
            raise UserError(f"--first {arguments.first.parent}: is a cascade, expected a single network; its own first "
                            f"one is {arguments.first.parent / FIRST}")
        known = {name: getattr(card, name) for name in ("orientation", "centre", "scaling")} | known
    elif arguments.mirror:
        raise UserError("--mirror: found no --first, expected a cascade's first network; leave --mirror out")
    return known


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags that are wrong by themselves or contradict each other."""
    if arguments.path is None and arguments.format != "synthetic":
        raise UserError(f"--format {arguments.format}: found no PATH, expected PATH, the data set to read")
    if arguments.path is not None and arguments.format == "synthetic":
        raise UserError(f"--format synthetic: found PATH {arguments.path}, expected none; synthetic cases are drawn, "
                        "not read")
    files = tuple(f for f in FORMATS if f not in ("hub", "synthetic"))
    for flag, formats in (("same", ("bids",)), ("image_pattern", files), ("mask_pattern", (*files, "hub")),
                          ("subject", (*files, "hub"))):
        if getattr(arguments, flag) and arguments.format not in formats:
            raise UserError(f"--{flag}: found --format {arguments.format}, expected one of {', '.join(formats)}; leave "
                            "the flag out")
    if arguments.format != "synthetic" and (arguments.anatomy or arguments.lesions):
        raise UserError(f"--anatomy, --lesions: found --format {arguments.format}, expected synthetic; leave them out")
    if arguments.lesions and not arguments.anatomy:
        raise UserError("--lesions: found no --anatomy, expected the folder of label maps that they are laid on")
    if not arguments.out and not arguments.list:
        raise UserError("--out: missing, expected the folder to write; or use --list to write nothing")
    if arguments.format in ("bids", "hub") and not arguments.suffix:
        raise UserError(f"--suffix: missing, expected which scans to use from {arguments.format}, such as --suffix T2w")
    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers: found {arguments.workers}, expected at least 1")
    if arguments.window and arguments.scaling not in (None, "window"):
        raise UserError(f"--window: needs --scaling window, found --scaling {arguments.scaling}; leave one of them out")
    if arguments.scaling == "window" and not arguments.window:
        raise UserError("--scaling window: expected --window LOW HIGH beside it, such as --window 0 80")
    if arguments.window and not arguments.window[0] < arguments.window[1]:
        raise UserError(f"--window: found {' '.join(map(plain, arguments.window))}, expected LOW < HIGH, such as 0 80")


def check_folds(arguments: argparse.Namespace, listing) -> None:
    """Refuse more folds than there are patients, before anything is prepared."""
    from meshnet.data.splits import check_number, fewer_folds, shown_units, units_of

    units = units_of([c.subject for c in listing.cases], listing.together)
    if len(units) < arguments.outer:
        raise UserError(
            f"--outer {arguments.outer}: found {count(len(units), 'subject')}{shown_units(units)}, expected at least "
            f"{arguments.outer}; {fewer_folds(len(units))}"
        )
    check_number(units, arguments.outer, arguments.inner)


def make_settings(arguments: argparse.Namespace, listing) -> tuple:
    """The settings that rows depend on, and the names of the classes, background first."""
    from meshnet.data.labels import class_names, parse_labels
    from meshnet.data.row import Settings
    from meshnet.scans.grid import Grid

    fluid = arguments.format == "synthetic" and listing.classes is not None  # a preset that labels fluid as well
    every = [str(number) for number in range(1, len(listing.classes) + 1)] if fluid else None
    labels = parse_labels(arguments.labels or every)
    classes = class_names(labels, arguments.classes, listing.classes)
    marks = arguments.marks or ("lesion" if fluid and "lesion" in classes else None)
    if marks and marks not in classes[1:]:
        raise UserError(f"--marks {marks}: found the class(es) {', '.join(classes[1:])}, expected one of them")
    known = sorted({name for case in listing.cases for name in case.groups})
    groups = arguments.group if arguments.group is not None else listing.groups
    if arguments.format != "synthetic" and (unknown := [g for g in groups if g not in known]):
        raise UserError(f"--group: found {unknown[0]!r}, expected one of {', '.join(known) or '(no columns here)'}")
    shape = tuple(arguments.shape) if arguments.shape else None
    settings = Settings(
        grid=Grid(arguments.voxel_mm, shape, arguments.orientation, arguments.centre, averaged=arguments.averaged),
        scaling="window" if arguments.window else arguments.scaling or "conform_uint8",
        window=tuple(arguments.window) if arguments.window else None,
        labels=tuple(sorted(labels.items())) if labels else None,
        channels=len(listing.channels),
        groups=tuple(groups),
        allow_empty=arguments.allow_empty,
        marks=classes.index(marks) if marks and len(classes) > 2 else None,
    )
    return settings, classes


def print_listing(arguments: argparse.Namespace, listing) -> int:
    """What ``--list`` prints: a line for each pair, and for each scan or mask left out, whether the folds are too many
    for them, and what comes next. Returns the exit code."""
    for case in listing.cases:
        print(f"{case.case}\t{' + '.join(case.images)}\t{case.mask}")
    for words, cases in listing.guesses.items():
        shown = ", ".join(cases[:3]) + (", …" if len(cases) > 3 else "")
        print(f"guessed for {count(len(cases), 'case')} ({shown}): {words}")
    for path, reason in listing.left_out:
        print(f"left out\t{path}\t{reason}")
    print_faults(listing.failed)
    print(f"{len(listing.cases)} pair(s), {len(listing.left_out)} left out, {len(listing.failed)} failed")
    if listing.cases:
        try:
            check_folds(arguments, listing)
        except UserError as error:
            print(f"warning: nothing would be prepared: {error}", file=sys.stderr)
        else:
            given = [word for word in sys.argv[1:] if word != "--list"]
            say_next(command("python", "prepare.py", *given, *([] if arguments.out else ["--out", "data/NAME"])))
    return 1 if listing.failed else 0


def print_notes(notes: list[str]) -> None:
    """A line on stderr for each thing that the user should know though no case has failed."""
    for note in notes:
        print(f"note\t{' '.join(note.split())}", file=sys.stderr)


def print_faults(failed: list[tuple[str, str]]) -> None:
    """A line on stderr for each case that failed: its path and the reason."""
    for path, line in failed:
        print(f"failed\t{' '.join((line if line.startswith(path) else f'{path}: {line}').split())}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main, continues=True)
