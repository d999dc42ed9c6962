"""The scans of one call of ``infer.py``: planned, shared among processes, and what is written about all of them."""

import argparse
import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from meshnet.cohort import bids, call, lists
from meshnet.cohort.facts import head_facts, model_facts, side_of
from meshnet.cohort.faults import breaks_gpu, ends_all, failure_of
from meshnet.cohort.kept import where_of
from meshnet.cohort.lines import class_names, header, purpose, voxel_sizes
from meshnet.cohort.omissions import not_done, note_undecided, say_omissions
from meshnet.cohort.page import PAGE, write_pages
from meshnet.cohort.records import TABLE, Records, Work, label, progress, write_table
from meshnet.cohort.said import report_all
from meshnet.display import Live, count
from meshnet.errors import UserError, decoration, leave_word
from meshnet.inference.scan import Case, Segmentation, timed
from meshnet.networks.card import WEIGHTS
from meshnet.runs.folder import AVERAGED
from meshnet.runs.place import Place, place
from meshnet.runs.shares import FOLDER, key_of
from meshnet.scans.mask import lesion_volumes_mm3, voxel_volume_mm3
from meshnet.scans.naming import asks_for_another_model
from meshnet.scans.nifti import read_image


class Batch:
    """What ``infer.py`` does with each scan, and at the end.

    Args:
        cases: with ``scans``, ``mask``, ``picture`` and ``probability``; None: those of the BIDS data set.
        arguments: the parsed flags.
        models: from ``load_models``.
        names: what it was given; None for the built-in model.
    """

    def __init__(self, cases: list[dict] | None, arguments: argparse.Namespace, models: list,
                 names: Sequence[str | Path | None]):
        self.arguments, self.models, self.root, self.unclear = arguments, models, None, []
        self.lost: list[dict] = []  # records of DICOM exports and studies that gave no scan
        if arguments.format == "dicom":
            cases, self.lost, self.out = call.dicom_batch(arguments, models[0].card.channels)
        elif cases is None:
            cases, self.root, self.out = call.bids_cases(arguments, models[0].card.channels)
            self.unclear = arguments.found.failed
            say_omissions(arguments.found)
            for path, reason in self.unclear:
                print(f"error: {path}: {reason}", file=sys.stderr)
        else:
            self.out = output_folder(arguments.output, cases)
        here = place()
        together = here.lines or (here.command and self.out is not None)  # a table is of all tasks of an array
        self.alone = self.root is None and len(cases) == 1 and not (arguments.report or together or self.lost)
        if arguments.report and self.out is None:
            raise UserError("--report: needs -o FOLDER, the folder of the masks and of the page; add it")
        self.list = None  # the file of this list, where other tasks may have other ones
        if self.root is None and self.out is not None and here.command and not here.lines:
            cases = self.tell_list(cases)
        # One scan whose mask lies where a task of an array says is that task's own: nothing is shared.
        self.work = Work(cases, None if self.alone else self.out, arguments.overwrite or self.alone,
                         Place() if self.alone else None)
        self.earlier = earlier_records(self.out, cases[0]) if self.alone else None
        self.facts: dict[str, dict] = {}
        self.beside: dict[str, float] = {}  # classes that were seen and not marked
        self.taken, self.misfit = 0, False  # misfit: a scan's name says a kind that the model is not for
        # Several processes have a line of their own about all of them (records.py).
        self.live = Live(len(cases) > 1 and not self.work.where.shared, sys.stderr)
        if self.root is not None:
            weights = AVERAGED if arguments.ema else WEIGHTS
            self.model_facts = model_facts(names, [model.card for model in models], weights)
            bids.describe(self.out, self.root, self.model_facts)

    def tell_list(self, cases: list[dict]) -> list[dict]:
        """Tell the other tasks of an array of this one's list; the cases of it that are its own."""
        records = Records(self.out)
        for case in cases:
            case["key"] = key_of(case["mask"], self.out)
        self.list = lists.path_of(records, cases, self.lost)
        cases, self.lost = lists.tell(records, self.list, cases, self.lost)
        return cases

    def take(self) -> dict | None:
        """The next scan to segment; None where others do all that are left."""
        case = self.work.take()
        self.taken += case is not None
        return case

    def wait(self) -> bool:
        """Whether others still work; then it has waited a moment, and ``take`` may give what a killed process left."""
        return self.work.wait()

    def before(self, planned: dict, case: Case, found: Segmentation, result: dict) -> None:
        """Add to ``result`` what a table shows, and write what describes the mask, before the mask itself is written:
        an existing mask is a finished scan."""
        if "name" in planned:  # DICOM: no path that may name the patient
            result["scan"] = [planned["name"]]
            result["warnings"] = [*planned["remarks"], *result["warnings"]]
        if self.arguments.dicom_seg:
            from meshnet.cohort.seg import seg_remarks

            said = seg_remarks(found.mask, planned["source"], planned["seg"], str(self.models[0].card.name),
                               case.images[0])
            result |= {"warnings": [*result["warnings"], *said]} if said else {"dicom_seg": str(planned["seg"])}
        if self.arguments.agreement:
            self.look_again(case, found, result)
        if self.alone and not self.earlier:
            return
        volume, affine = case.inputs[0][0]
        facts = head_facts(np.asarray(volume[0]), affine)
        mask = np.asanyarray(found.mask.dataobj)
        result |= {"side": side_of(mask, found.mask.affine, facts["middle_mm"]), "head": facts}
        if self.arguments.report:
            draw(self.work.records, planned["key"], case.images[0], found.mask)
        if self.root is not None:
            settings = {"Threshold": found.decision.threshold, "SmallestLesionMM3": found.decision.min_lesion_mm3,
                        **({"Sure": found.decision.sure} if found.decision.sure else {}),
                        **({"CountedAsWell": list(found.decision.also)} if found.decision.also else {}),
                        **({"Veto": True} if found.veto else {}),
                        **({"LooksLike": found.contrast} if found.contrast else {})}
            bids.write_sidecars(planned, self.root, self.model_facts, result, settings)

    def look_again(self, case: Case, found: Segmentation, result: dict) -> None:
        """``--agreement``: how far the masks of a second look agree."""
        from meshnet.inference.agreement import agreement

        given = self.arguments
        with timed(result["parts"], "agreement"):
            result["agreement"] = agreement(
                case, self.models, np.asanyarray(found.mask.dataobj), threshold=given.threshold,
                min_lesion_mm3=given.min_lesion_mm3, also=given.also, crop=given.crop, max_memory=given.max_memory,
                threads=given.threads)

    def done(self, planned: dict, result: dict) -> None:
        """A scan is segmented, and all its files are written."""
        # By the model's name alone: the page is handed on, and a path may name its owner.
        names = [Path(os.path.abspath(name)).name if os.path.exists(name) else name for name in self.arguments.model]
        kept = {key: value for key, value in result.items() if key != "parts"} | {
            "model": purpose(names, self.models[0].card, voxel_sizes(self.models), self.arguments.also)}
        if "name" not in planned:  # of DICOM: no path that may name the patient
            kept["where"] = where_of(planned["scans"])
        self.beside.update(result.get("beside", {}))
        self.misfit |= any(map(asks_for_another_model, result["warnings"]))
        self.work.done(planned, kept)
        if self.earlier:
            renew(self.earlier, key_of(planned["mask"], self.out), kept)

    def record(self, planned: dict) -> dict | None:
        """What an earlier command has kept of a scan's mask; None where there is nothing."""
        records = self.work.records or self.earlier
        return records.read(key_of(planned["mask"], self.out)) if records else None

    @property
    def suspect(self) -> bool:
        """Whether the last scan taken was the end of a process before: no other is read beside it."""
        return self.work.suspect

    def fail(self, planned: dict, error: Exception) -> None:
        """A scan cannot be segmented; the others go on.

        Raises:
            Exception: the same, where they could not either, or there is no other.
        """
        if self.alone or ends_all(error):
            if breaks_gpu(error):
                self.work.keep(planned)
            raise error
        self.work.fail(planned, failure_of(planned, error))

    def show(self, planned: dict) -> None:
        """What is at hand, how many are done and how long the rest takes, in the line that is redrawn."""
        work = self.work
        done = work.did + work.failed + len(work.skipped)
        told = progress(done, len(work.cases), done - work.did, time.monotonic() - work.began)
        self.live.show(f"{told}; at {label(planned)}")

    def close(self) -> None:
        """Give back what was taken from other processes."""
        self.work.close()

    def end(self) -> int:
        """Say what was left out, write what is about all scans, and return the exit code."""
        work, failed = self.work, self.work.failed
        for case in work.skipped if self.root is None else ():
            print(f"{case['mask']}: exists, skipped; --overwrite replaces it", file=sys.stderr)
        if self.root is not None and work.skipped:
            print(f"{len(work.skipped)} of {len(work.cases)} masks exist, skipped; --overwrite replaces them",
                  file=sys.stderr)
        if work.where.shared and not (self.taken or failed or self.lost):
            print(f"nothing left to do of {len(work.cases)} scans; --overwrite does them again", file=sys.stderr)
        if failed:
            skipped = f" ({len(work.skipped)} skipped)" if work.skipped else ""
            print(f"{failed} of {work.did + failed + len(work.skipped)} scans could not be segmented{skipped}",
                  file=sys.stderr)
        if self.arguments.level == "participant" and self.arguments.report:
            print(f"note: {self.out / PAGE}: is written by the level 'group', with --report", file=sys.stderr)
        if self.arguments.level == "participant":
            note_undecided(work.records, self.arguments, self.root)
        elif not self.alone and work.merges():
            failed = self.merge() or failed
            work.merged(bool(failed or self.unclear))
        code = 1 if failed or self.unclear or self.lost else 0
        if code:
            leave_word(code, f"{failed or 'some'} of {len(work.cases)} scans could not be segmented; the lines above "
                       "that begin with 'error:' say why", ended=False)
        return code

    def merge(self) -> int:
        """Write the table of all scans; the number that failed, in whichever process."""
        records = self.work.records
        others, lost = lists.of_others(records, self.list, self.work.cases, self.lost, self.work.where.command
                                       ) if self.list else ([], [])
        done, failed = self.work.results(others)
        failed += [*self.lost, *lost]
        for at, record in reversed(list(enumerate(done))):
            try:
                done[at] = record if "volume_ml" in record else record | measured(record["mask"])
            except UserError as error:  # the others' table is written
                print(f"error: {error}", file=sys.stderr)
                failed.append(done.pop(at) | {"error": str(error)})
        if self.work.where.lines:
            given, cards = self.arguments, [model.card for model in self.models]
            report_all(header(given.model, cards, given.threshold, given.min_lesion_mm3, voxel_sizes(self.models),
                              given.also),
                       [record for record in done if not record.get("kept")], len(failed), self.work.where.command,
                       class_names(cards[0])[0])
        if self.root is not None:
            note_undecided(records, self.arguments, self.root)
            write_bids(self.out, self.root, records, self.arguments.report)
            return len(failed)
        table = write_table(self.out, done, failed)
        print(f"{table}: {count(len(done), 'scan')}, {len(failed)} failed", file=sys.stderr)
        if self.arguments.report:
            for record in [*done, *failed]:
                record["image"] = record["case"]["scans"][0]
                record["name"] = record["case"].get("shown", record["image"].name)
            often = Counter(record["name"] for record in [*done, *failed])
            for record in [*done, *failed]:  # of other tasks' lists
                record["name"] = record["name"] if often[record["name"]] == 1 else str(record["image"])
            write_report(self.out, records, done, failed)
        own = self.work.by_key.keys() | {record["key"] for record in self.lost}
        return sum(record["key"] in own for record in failed)


def earlier_records(out: Path | None, case: dict) -> Records | None:
    """Where an earlier command on several scans has told of the one scan of this command; None if none has."""
    if out is None or not (out / FOLDER).is_dir():
        return None
    records, key = Records(out), key_of(case["mask"], out)
    return records if records.has(key) or records.read_failure(key) else None


def renew(records: Records, key: str, result: dict) -> None:
    """Have the next table say what is now there of a scan that was done again by itself."""
    (records.folder / f"{key}.jpg").unlink(missing_ok=True)
    records.write(key, result | {"command": ""})
    if (records.out / TABLE).exists():
        print(f"note: {records.out / TABLE}: still has the scan's earlier row; the command that wrote it renews it",
              file=sys.stderr)


def write_report(out: Path, records: Records, done: list[dict], failed: list[dict]) -> None:
    """The page of all scans; pictures that no earlier command drew are drawn now.

    Args:
        done: records as ``write_pages`` takes them, with ``image``, the scan, and ``mask``.
    """
    for record in done:
        if not (record.get("kept") or (records.folder / f"{record['key']}.jpg").is_file()):  # of another scan
            with decoration(f"{record['mask']}: not drawn", "the page shows no picture of it"):
                draw(records, record["key"], read_image(record["image"]), nib.load(record["mask"]))
    what = "Masks" if any(record.get("classes_ml") for record in done) else "Lesions"
    pages = write_pages(out, records, done, failed, f"{what} of {count(len(done) + len(failed), 'scan')}")
    print(f"{pages[0]}: the page of {count(len(done), 'scan')}", file=sys.stderr)


def draw(records: Records, key: str, scan: nib.Nifti1Image, mask: nib.Nifti1Image) -> None:
    """The small picture of a scan for the page."""
    from meshnet.files import whole_file
    from meshnet.scans.overlay import thumbnail

    with whole_file(records.folder / f"{key}.jpg") as temporary:
        temporary.write_bytes(thumbnail(np.asanyarray(scan.dataobj), np.asanyarray(mask.dataobj), scan.affine))


def output_folder(output: str | None, cases: list[dict]) -> Path | None:
    """The folder that ``-o`` names; None where it names a file, or the masks lie beside their scans."""
    if output is None or (len(cases) == 1 and Path(output) == cases[0]["mask"]):
        return None
    return Path(output)


def write_bids(out: Path, root: Path, records: Records, report: bool) -> int:
    """``lesions.tsv`` of a derivative data set, the models that made its masks, and the page where there is to be a
    ``report``; the number of scans that were not segmented."""
    failed = not_done(records, root)
    rows = bids.rows_of(out, failed)
    bids.write_table(out, rows)
    bids.describe(out, root, None)
    print(f"{out / 'lesions.tsv'}: {count(len(rows), 'scan')}, {len(failed)} failed", file=sys.stderr)
    if report:
        done = []
        for row in rows:
            if row["mask"]:
                key = key_of(out / row["mask"], out)
                known = records.read(key) or {"warnings": [row["warnings"]] if row["warnings"] else []}
                done.append(row | known | {"key": key, "name": row["source"], "mask": str(out / row["mask"]),
                                           "image": root / row["source"]})
        write_report(out, records, done, [record | {"name": record["source"]} for record in failed])
    return len(failed)


def measured(path: str) -> dict:
    """Volume, number and largest lesion of a mask that an earlier version, or a killed process, left without a record.
    """
    try:
        image = nib.load(path)
        sizes = lesion_volumes_mm3(np.asanyarray(image.dataobj), voxel_volume_mm3(image.affine))
    except (OSError, ValueError, EOFError, zlib.error, nib.filebasedimages.ImageFileError) as error:
        raise UserError(f"{path}: cannot be read ({error}), expected a mask; remove it and run the same command again"
                        ) from None
    return {"volume_ml": round(sum(sizes) / 1000, 3), "lesions": len(sizes),
            "largest_ml": round(max(sizes, default=0) / 1000, 3)}


def group(arguments: argparse.Namespace) -> int:
    """The level ``group`` of a BIDS App: one table, and with ``--report`` a page, of what ``participant`` has written;
    exit code 1 where it could not segment some of the scans.

    Raises:
        UserError: where it has written nothing.
    """
    out, root = Path(arguments.output), Path(arguments.scans[0])
    if not (out / bids.DESCRIPTION).is_file():
        raise UserError(f"{out}: found no {bids.DESCRIPTION}, expected what 'participant' wrote; run that first")
    return 1 if write_bids(out, root, Records(out), arguments.report) else 0
