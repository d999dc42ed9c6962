"""The flags of ``infer.py`` for whole data sets, and the command line of a BIDS App."""

import argparse
import importlib.util
import itertools
import os
import sys
from pathlib import Path

from meshnet.data.sources.case import Filters
from meshnet.errors import UserError

LEVELS = ("participant", "group")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags for BIDS data sets, and for many scans."""
    g = parser.add_argument_group("BIDS data sets: a folder in, a derivative data set out (docs/cohorts.md)")
    g.add_argument("--format", choices=("files", "bids", "dicom"), default="files",
                   help="bids: SCAN is a BIDS data set, -o (default SCAN/derivatives/meshnet) a derivative data set; "
                        "dicom: folders or zips of DICOM files, which are known by themselves as well")
    g.add_argument("--suffix", nargs="+", default=[], metavar="NAME",
                   help="scans to segment, such as T2w; several are the channels of a case (default: the model's)")
    g.add_argument("--include", action="append", default=[], metavar="ENTITY=VALUE",
                   help="only scans with this value of an entity or of a column of participants.tsv")
    g.add_argument("--exclude", action="append", default=[], metavar="ENTITY=VALUE", help="no scans with this value")
    g.add_argument("--image_pattern", metavar="GLOB", help="only scans whose path or name is like this")
    g.add_argument("--desc", metavar="NAME", help="desc-NAME in the names of what is written")
    g.add_argument("--participant-label", "--participant_label", nargs="+", default=[], metavar="LABEL",
                   help="only these participants, with or without sub-")
    g.add_argument("--session-label", "--session_label", nargs="+", default=[], metavar="LABEL",
                   help="only these sessions")
    g = parser.add_argument_group("DICOM: folders, zips, exports of many series (docs/cohorts.md)")
    g.add_argument("--series", nargs="+", default=[], metavar="NAME",
                   help="the series for each channel, by number or as a pattern of the description such as '*t2_tse*'")
    g.add_argument("--dicom_seg", action="store_true", help="also write the mask as a DICOM SEG object, "
                   "NAME_lesion_seg.dcm, which names the patient as the series does")
    g = parser.add_argument_group("many scans (docs/cohorts.md)")
    g.add_argument("--report", action="store_true",
                   help="with a folder for -o: report.html, a page of all scans to look through, the odd ones first")
    g.add_argument("--agreement", action="store_true",
                   help="compute each scan once more, mirrored (of several models: by each of them alone), and say how "
                   "far the masks agree; takes about twice as long")


def scans_behind_flags(arguments: argparse.Namespace) -> None:
    """Take NIfTI files among the models and classes as scans: ``--model`` and ``--also`` take all that follows them,
    and nothing else ends so."""
    for flag in ("model", "also"):
        given = getattr(arguments, flag)
        behind = [name for name in given if name.lower().endswith((".nii", ".nii.gz"))]
        arguments.scans = [*arguments.scans, *behind]
        setattr(arguments, flag, [name for name in given if name not in behind])
        if flag == "also" and given and not arguments.also:
            raise UserError(f"--also: found {given[0]}, expected a class of the model before it, such as "
                            '"white matter disease"')


def as_bids_app(arguments: argparse.Namespace) -> None:
    """Take ``bids_dir output_dir participant|group`` as a BIDS App does; ``arguments.level`` is "" for any other call.

    Raises:
        UserError: for BIDS flags without a BIDS data set, or several of them.
    """
    arguments.level = ""
    if len(arguments.scans) == 3 and arguments.scans[2] in LEVELS and not Path(arguments.scans[2]).exists():
        arguments.format, arguments.level = "bids", arguments.scans[2]
        if arguments.output:
            raise UserError(f"-o {arguments.output}: found beside an output folder, expected only one of them")
        arguments.output, arguments.scans = arguments.scans[1], arguments.scans[:1]
    if arguments.format == "files" and not arguments.output:
        from meshnet.cohort.bids import DESCRIPTION

        for folder in (name for name in arguments.scans if os.path.isfile(os.path.join(name, DESCRIPTION))):
            print(f"note: {folder}: is a BIDS data set, and the masks go beside its scans; --format bids puts them "
                  "into a derivative", file=sys.stderr)
    if arguments.format == "files" and arguments.scans and all(map(is_export, arguments.scans)):
        arguments.format = "dicom"
    if arguments.format == "dicom":
        check_dicom(arguments)
    elif arguments.series or arguments.dicom_seg:
        raise UserError(f"--{'series' if arguments.series else 'dicom_seg'}: found without a folder or zip of DICOM "
                        "files; leave it out, or add --format dicom")
    if arguments.format != "bids":
        given = [name for name in ("suffix", "include", "exclude", "image_pattern", "desc", "participant_label",
                                   "session_label") if getattr(arguments, name)]
        if given:
            raise UserError(f"--{given[0].replace('_l', '-l')}: found without --format bids; add it, or leave the flag "
                            "out")
    elif len(arguments.scans) != 1:
        raise UserError(f"--format bids: found {len(arguments.scans)} paths, expected one BIDS data set")
    elif arguments.desc and not arguments.desc.isalnum():
        raise UserError(f"--desc: found {arguments.desc!r}, expected letters and digits")


def check_launch(arguments: argparse.Namespace, names: list[str | Path | None]) -> Path:
    """The folder that the jobs of this command write to. What can be wrong with it is looked for here, where it costs
    no wait in a queue.

    Raises:
        UserError: for a data set, a model or a flag that is wrong.
    """
    from meshnet.networks.card import check_also, read_card
    from meshnet.networks.folder import default_model, find_weights

    flag = "--workers" if arguments.workers > 1 else "--launcher"
    if arguments.json:
        raise UserError(f"--json: found beside {flag}, whose jobs write to logs, expected only one of them; the "
                        "table in the output folder holds the same")
    cards = [read_card(find_weights(name or default_model()).parent) for name in names]
    check_also(cards, arguments.also, "--also")
    if arguments.format == "bids":
        from meshnet.cohort.omissions import say_omissions

        out = bids_cases(arguments, cards[0].channels)[2]
        say_omissions(arguments.found)
        return out
    if arguments.format == "dicom":  # flags and messages may name the patient, and the output is handed on
        arguments.jobs_folder = jobs_beside(Path(arguments.output))
    if arguments.output is None or arguments.output.lower().endswith((".nii", ".nii.gz")):
        raise UserError(f"-o: expected a folder for the masks of a command with {flag}, such as -o masks")
    return Path(arguments.output)


def jobs_beside(out: Path) -> Path:
    """Where jobs keep what they print and are called with, apart from an output folder: beside it."""
    folder = out.absolute()
    folder = folder.resolve() if folder.name in ("", "..") else folder
    folder = folder.with_name(f"{folder.name}_jobs")
    print(f"note: {folder}: keeps what the jobs print, which may name patients, apart from the masks", file=sys.stderr)
    return folder


def is_export(name: str) -> bool:
    """Whether a path is a folder or a zip of DICOM files."""
    from meshnet.cohort.series import looks_like_dicom

    path = Path(name)  # not its exists or is_dir: a list of channels may be too long for a file name
    return (os.path.isdir(name) or (path.suffix.lower() == ".zip" and os.path.exists(name))) and (
        looks_like_dicom(path))


def check_dicom(arguments: argparse.Namespace) -> None:
    """Refuse a call with DICOM files that cannot be right."""
    if not arguments.output or arguments.output.lower().endswith((".nii", ".nii.gz", ".dcm")):
        raise UserError("-o: expected a folder for the masks and the converted scans of DICOM files, such as -o masks")
    if arguments.dicom_seg and importlib.util.find_spec("highdicom") is None:
        raise UserError("--dicom_seg: highdicom is not installed; pip install -r requirements-dicom.txt")
    for name in arguments.scans:
        if not os.path.exists(name):
            raise UserError(f"{name}: no such file or folder, expected one of DICOM files; check the path")


def dicom_batch(arguments: argparse.Namespace, channels: list[str]) -> tuple[list[dict], list[dict], Path]:
    """The scans of DICOM files, converted, records of what gave none, and the folder that is written to."""
    from meshnet.cohort.exports import dicom_cases

    out = Path(arguments.output)
    return *dicom_cases([Path(name) for name in arguments.scans], out, channels, arguments.series,
                        arguments.dicom_seg), out


def bids_cases(arguments: argparse.Namespace, channels: list[str]) -> tuple[list[dict], Path, Path]:
    """The scans of a BIDS data set and the files to write for each, the data set, and the derivative data set.

    ``channels`` are the model's, which are the suffixes where none are given.
    """
    from meshnet.cohort import bids
    from meshnet.data.sources.bids import MODALITIES
    from meshnet.scans.naming import kinds_of

    root = Path(arguments.scans[0])
    out = Path(arguments.output) if arguments.output else root / "derivatives" / "meshnet"
    known = {name.lower(): name for name in MODALITIES}
    taken = [[known.get(kind.lower(), kind) for kind in kinds_of(name)] for name in channels]
    if not arguments.suffix and (foreign := [kind for kinds in taken for kind in kinds if kind not in MODALITIES]):
        raise UserError(f"--suffix: missing, and the model's channel {foreign[0]!r} is no suffix of BIDS; expected the "
                        "scans to segment, such as --suffix T2w")
    filters = Filters.parse(arguments.include, arguments.exclude, arguments.image_pattern)
    choices = [arguments.suffix] if arguments.suffix else list(itertools.product(*taken))
    for last, suffixes in zip([*[False] * (len(choices) - 1), True], choices):
        try:
            found = bids.find_scans(root, suffixes, filters, arguments.participant_label, arguments.session_label)
        except bids.NoScan:
            if last:
                raise
            continue
        if len(choices) > 1:
            print(f"{root}: {', '.join(suffixes)} scans, of {'; '.join(channels)} (--suffix names others)",
                  file=sys.stderr)
        break
    arguments.found = found
    if out.resolve() == root.resolve():
        raise UserError(f"-o {out}: is the data set itself, expected a folder of its own, such as "
                        f"{root}/derivatives/meshnet")
    return bids.plan(found.cases, root, out, arguments.desc), root, out
