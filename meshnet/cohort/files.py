"""The files of one call of ``infer.py``: which scans and channels make a case, and where each mask is written."""

import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from meshnet.display import count
from meshnet.errors import UserError
from meshnet.files import walk
from meshnet.scans.naming import ALIASES, kinds_of

WRITTEN = (".nii", ".nii.gz")
UNWRITTEN = (".mgz", ".mgh", ".nrrd", ".nhdr", ".img", ".hdr", ".mha", ".mhd", ".mnc", ".dcm", ".gz", ".zip", ".png",
             ".jpg", ".tif", ".tiff", ".npy", ".npz", ".json", ".csv", ".txt", ".h5")
MASKS = ("_lesion", "_lesion_probability")  # endings of what this program writes
# Names of other programs' masks: their endings, and BIDS's entity for what a mask is of.
FOREIGN = re.compile(r"(^|[_-])((lesion)?mask|msk|roi|d?seg|probseg|labels?)$|(^|_)label-.*$", re.IGNORECASE)
MASK_END = re.compile(rf"{FOREIGN.pattern}|({'|'.join(MASKS)})$", re.IGNORECASE)
NAMED = re.compile(r"([A-Za-z][\w+.-]*)=(.+)", re.DOTALL)  # FLAIR=a.nii.gz
TABLES = (".csv", ".tsv", ".txt")
SHOWN = 3  # files that a note names


def find_scans(names: list[str], channels: Callable[[], list[str]]) -> tuple[list[list[Path]], dict[Path, Path]]:
    """The cases to segment, each a list of its channels' files, and where in a given folder each file lies.

    Args:
        names: files, folders, channels joined by commas, or ``CHANNEL=FILE`` once for each channel of a case.
        channels: called for the names of the model's channels, where they decide.

    Folders are searched with those below them; masks are left out, of files given one by one as well. For a model of
    several channels the files of a folder or a list are put together by the channel at the end of their names.

    Raises:
        UserError: where there is no scan, or a channel is unknown, missing or in another's place.
    """
    if not names:
        raise UserError("no scan given; try: python infer.py scan.nii.gz")
    cases, below, named, single = [], {}, {}, []
    for name in names:
        path, pairs = Path(name), channel_files(name)
        if named and (not pairs or named.keys() & pairs.keys()):
            cases.append(in_order(named, channels()))
            named = {}
        if pairs:
            named |= pairs
        elif os.path.isdir(name):  # not Path.is_dir: a list of channels may be too long for a file name
            files = scans_in(path)
            found = [[p] for p in files] if len(channels()) == 1 else together(path, files, channels())
            cases += found
            below = {scans[0]: scans[0].parent.relative_to(path) for scans in found} | below
        else:
            files = [path] if os.path.exists(name) else [Path(part) for part in name.split(",")]
            if len(files) == 1 and name.lower().endswith(TABLES):
                raise UserError(f"{name}: found a table or a list, expected scans; give the files that it names, or "
                                "their folder")
            if len(files) > 1:
                check_order(files, channels())
            else:
                single += files
            cases.append(files)
    if masks := masks_among(single):
        cases = [case for case in cases if case[0] not in masks]
        if not cases and not named:
            raise UserError(f"{listed(masks, whole=True)}: found a mask or probability map that this program wrote, "
                            "expected a scan; give the scan that it was made from")
    alone = [case for case in cases if len(case) == 1 and case[0] in single]
    if len(alone) > 1 and len(channels()) > 1:
        cases = [case for case in cases if case not in alone] + cases_of_list(alone, channels())
    return cases + ([in_order(named, channels())] if named else []), below


def stem(path: Path) -> str:
    """The file's name without ``.nii`` or ``.nii.gz``."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def scans_in(folder: Path) -> list[Path]:
    """The scans of a folder and those below it, without masks, of which those of others are said.

    Raises:
        UserError: where there is none.
    """
    from meshnet.scans.ours import carries_our_name

    below = sorted(Path(here, name) for here, _, names in walk(folder) for name in names
                   if name.lower().endswith(WRITTEN))
    below = [p for p in below if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    masks = {p for p in below if stem(p).endswith(MASKS)}
    scans = {(p.parent, stem(p)) for p in below if p not in masks}
    others = {p for p in masks if not any((p.parent, stem(p).removesuffix(end)) in scans for end in MASKS)}
    own = [p for p in below if carries_our_name(p)]  # whatever they are called
    foreign = [p for p in below if p not in own and (FOREIGN.search(stem(p)) or p in others)]
    masks.update(own, foreign)
    found = [p for p in below if p not in masks]
    say_left_out(own, foreign, folder)
    if not found:
        but = f" but {count(len(below), 'mask')}" if below else ""
        raise UserError(f"{folder}: found no .nii or .nii.gz file{but} in this folder and those below it, expected "
                        "scans")
    return found


def masks_among(files: list[Path]) -> list[Path]:
    """Which of ``files``, given one by one as a shell does for ``folder/*.nii.gz``, are masks: those that this program
    wrote, and those whose names end as a mask's do, as in folders; where all do, only those that bear the name of
    another one with such an ending. Says so, unless all are."""
    from meshnet.scans.ours import carries_our_name

    scans = {(path.parent, stem(path)) for path in files}
    own = [path for path in files if carries_our_name(path)]
    named = [path for path in files if path not in own and MASK_END.search(stem(path))]
    foreign = named if len(own) + len(named) < len(files) else [
        path for path in named if (path.parent, MASK_END.sub("", stem(path))) in scans]
    if len(own) + len(foreign) < len(files):
        say_left_out(own, foreign, "the files given")
    return own + foreign


def say_left_out(own: list[Path], foreign: list[Path], folder: Path | str) -> None:
    """One line each on files of a folder or a list that are taken for masks: those of this program, and of others."""
    if own:
        print(f"note: {folder}: left out, as {count(len(own), 'file')} that this program wrote: {listed(own)}",
              file=sys.stderr)
    if foreign:
        print(f"note: {folder}: passed over as masks by their names: {listed(foreign)}; give a file by itself to "
              "segment it", file=sys.stderr)


def listed(paths: list[Path], whole: bool = False) -> str:
    """The names of the first few files, with their folders if ``whole``, and how many more there are."""
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(str(path) if whole else path.name for path in paths[:SHOWN]) + more


# ---------------------------------------------------------------------- channels

def channel_files(name: str) -> dict[str, Path]:
    """``{"FLAIR": a, "T2w": b}`` of ``FLAIR=a,T2w=b``; empty for any other argument, and for a file of that name."""
    found = [NAMED.fullmatch(part) for part in name.split(",")]
    if os.path.exists(name) or not all(found):
        return {}
    if twice := [key for key, times in Counter(match[1] for match in found).items() if times > 1]:
        raise UserError(f"{name}: names {twice[0]} twice, expected each channel once; leave one of them out")
    return {match[1]: Path(match[2]) for match in found}


def in_order(named: dict[str, Path], channels: list[str]) -> list[Path]:
    """The files of a case in the order of the model's channels.

    Raises:
        UserError: for a channel that the model does not have, or one that is missing.
    """
    left, files = dict(named), []
    for channel in channels:
        name = next((name for name in left if is_channel(name, channel)), None)
        if name is None:
            raise UserError(f"{' '.join(f'{key}={path}' for key, path in named.items())}: found no channel {channel}, "
                            f"expected {', '.join(channels)} as the model has them; write NAME=FILE for each")
        files.append(left.pop(name))
    if left:
        name, path = next(iter(left.items()))
        raise UserError(f"{name}={path}: found the channel {name}, expected {', '.join(channels)} as the model has "
                        "them; leave it out")
    return files


def is_channel(name: str, channel: str) -> bool:
    """Whether ``name`` is one of the kinds of scan that the model takes for a channel."""
    return name.lower() in {channel.lower(), *map(str.lower, kinds_of(channel))} or (
        kinds_of(name)[0] in kinds_of(channel))


def ending(path: Path, channels: list[str]) -> int | None:
    """Which channel the last part of a file's name says; None for none or several."""
    last = re.split(r"[_-]", stem(path))[-1]
    found = [place for place, channel in enumerate(channels) if is_channel(last, channel)]
    return found[0] if len(found) == 1 else None


def check_order(files: list[Path], channels: list[str]) -> None:
    """Refuse channels in the place of others, as far as the files' names tell."""
    said = [ending(path, channels) for path in files]
    wrong = [place for place, channel in enumerate(said) if channel not in (None, place)]
    if len(files) == len(channels) and wrong:
        raise UserError(f"{files[wrong[0]]}: given as channel {channels[wrong[0]]}, but its name says "
                        f"{channels[said[wrong[0]]]}; expected the order {','.join(channels)}, or "
                        f"{' '.join(f'{channel}=FILE' for channel in channels)}")


def grouped(files: list[Path], channels: list[str]) -> tuple[list[list[Path]], list[Path]]:
    """The cases of several channels: files of one folder with the same name but for the channel at its end; and the
    files that have no such name, or lack a channel."""
    groups: dict[tuple, dict[int, Path]] = {}
    alone = []
    for path in files:
        place = ending(path, channels)
        key = (path.parent, re.sub(r"[^_-]*$", "", stem(path)))
        if place is None or place in groups.setdefault(key, {}):
            alone.append(path)
        else:
            groups[key][place] = path
    whole = [[found[k] for k in range(len(channels))] for found in groups.values() if len(found) == len(channels)]
    alone += [path for found in groups.values() if len(found) < len(channels) for path in found.values()]
    return whole, alone


def together(folder: Path, files: list[Path], channels: list[str]) -> list[list[Path]]:
    """The cases of several channels in a folder, as ``grouped``; what is of none is said and left out.

    Raises:
        UserError: where no case has all channels.
    """
    whole, alone = grouped(files, channels)
    if not whole:
        raise UserError(f"{folder}: found no case with the channels {', '.join(channels)} of the model, expected names "
                        f"such as sub-1_{channels[0]}.nii.gz; or write {' '.join(f'{c}=FILE' for c in channels)}")
    if alone:
        print(f"note: {folder}: left out, as none or not all of the channels {', '.join(channels)}: {listed(alone)}",
              file=sys.stderr)
    return whole


def cases_of_list(alone: list[list[Path]], channels: list[str]) -> list[list[Path]]:
    """The cases among files that were given one by one, as ``grouped``. One that is of none is a case by itself: it may
    hold all channels, and where it does not it fails, as who names a file wants its mask."""
    files = [path for path, in alone]
    whole, left = grouped(files, channels)
    return whole + [[path] for path in sorted(left, key=files.index)]


def named_channels(files: list[Path], channels: list[str]) -> str:
    """One line on which file is which channel."""
    return ", ".join(f"{channel} = {path}" for channel, path in zip(channels, files))


# ---------------------------------------------------------------------- masks

def case_name(scans: list[Path]) -> str:
    """What the mask of a case is named after: the scan, or what the names of its channels have in common (their folder
    where they are named by the channel alone)."""
    first = stem(scans[0])
    if len(scans) == 1:
        return first
    parts = zip(*(re.findall(r"[^_-]+[_-]?", stem(path)) for path in scans))
    common = "".join(each[0] for each in itertools.takewhile(lambda each: len(set(each)) == 1, parts)).rstrip("_-")
    if common:
        return common
    return scans[0].resolve().parent.name or first if first.lower() in ALIASES else first


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are one file, by whatever spelling."""
    return os.path.realpath(one) == os.path.realpath(other)


def plan_masks(cases: list[list[Path]], below: dict[Path, Path], output: str | None) -> list[dict]:
    """The mask file of each case, and what its scan is called among the others; an output folder has the subfolders
    that ``below`` gives for the scans.

    Raises:
        UserError: if the output cannot be written, or two cases would write the same mask.
    """
    if output == "":
        raise UserError("-o: found nothing, expected a file or a folder; is a variable of the shell empty?")
    target = Path(output) if output else None
    names_a_file = target is not None and target.name.endswith(WRITTEN)
    if target and not names_a_file and not target.is_dir() and target.name.lower().endswith((*WRITTEN, *UNWRITTEN)):
        raise UserError(f"-o {target}: names a file of a format that is not written, expected an ending of .nii.gz or "
                        ".nii, or a folder")
    if names_a_file and len(cases) > 1:
        raise UserError(f"-o {target}: names one mask for {len(cases)} scans; give a folder")
    folders = [target / below.get(scans[0], "") if target else scans[0].parent for scans in cases]
    names = [case_name(scans) for scans in cases]
    often = Counter(zip(folders, names))
    planned: dict[str, dict] = {}
    for scans, folder, name in zip(cases, folders, names):
        if often[folder, name] > 1 and scans[0].parent.name:  # sub-1/FLAIR and sub-2/FLAIR into one folder
            name = f"{scans[0].parent.name}_{name}"
        mask = target if names_a_file else folder / f"{name}{MASKS[0]}.nii.gz"
        real = os.path.realpath(mask)
        if real in planned and all(map(same_file, planned[real]["scans"], scans)):
            raise UserError(f"{mask}: is the mask of both {planned[real]['scans'][0]} and {scans[0]}, one scan that is "
                            "given twice; leave one of them out")
        if real in planned:
            raise UserError(f"{mask}: is the mask of both {planned[real]['scans'][0]} and {scans[0]}; segment "
                            "them in two commands with different -o")
        if mask.is_dir():
            raise UserError(f"-o {mask}: is a folder, expected a file to write; give another name")
        if real in [os.path.realpath(path) for path in scans]:
            raise UserError(f"-o {mask}: is the scan itself; give another file")
        planned[real] = {"scans": scans, "mask": mask, "picture": mask.with_name(f"{stem(mask)}.png"),
                         "probability": mask.with_name(f"{stem(mask)}_probability.nii.gz"),
                         "shown": (below.get(scans[0], Path()) / scans[0].name).as_posix()}
    shown = Counter(case["shown"] for case in planned.values())
    for case in planned.values():  # of files that are given one by one, two may have the same name
        case["shown"] = case["shown"] if shown[case["shown"]] == 1 else str(case["scans"][0])
    for folder in {case["mask"].parent for case in planned.values()}:
        if target is None and not folder.is_dir():
            continue  # a missing scan, which is reported when it is read
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be created ({error.strerror}); give another folder with -o") from None
        if not os.access(folder, os.W_OK):
            raise UserError(f"{folder}: cannot be written to; give another folder with -o")
    return list(planned.values())
