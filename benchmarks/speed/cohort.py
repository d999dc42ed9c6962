"""What 100,000 scans cost beside computing: claims, records, the table and the page, on the disk of a folder.

    python benchmarks/speed/cohort.py --out cohort --scans 10000

Prints seconds for each scan, of the clock and of the processor, and what they make of 100,000 scans.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.cohort import bids
from meshnet.cohort.page import write_pages
from meshnet.cohort.records import Records, write_table
from meshnet.data.sources.bids import walk
from meshnet.data.sources.case import Filters
from meshnet.data.sources.kinds import Sidecars
from meshnet.runs.place import Place
from meshnet.runs.shares import Claims, Share

PICTURE = bytes(4600)  # as large as a small picture of a real head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="a new folder on the disk to measure; removed at the end")
    parser.add_argument("--scans", type=int, default=10_000)
    parser.add_argument("--fsynced", type=int, default=2_000, help="records that are written as infer.py writes them")
    parser.add_argument("--processes", type=int, default=8, help="that take claims at the same time")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out, number = Path(arguments.out), arguments.scans
    if arguments.worker is not None:
        work(out, number, Place(arguments.worker, arguments.processes, "a"))
        return
    out.mkdir()
    try:
        measure(out, number, arguments.fsynced, arguments.processes)
    finally:
        shutil.rmtree(out)


def work(out: Path, number: int, where: Place) -> None:
    """What each of several processes does with a list, but for computing: claim, mark as done, give back."""
    folder = out / "shared"
    claims = Claims(folder)
    share = Share(names_of(number), where, claims, lambda name: (folder / name).exists(),
                  lambda: {path.name for path in folder.iterdir()})
    while (name := share.take()) or share.wait():
        if name:
            (folder / name).touch()
            share.finished(name)
    claims.close()


def names_of(number: int) -> list[str]:
    return [f"{i:024x}" for i in range(number)]


def measure(out: Path, number: int, fsynced: int, processes: int) -> None:
    """Each part once, for ``number`` scans."""
    names = names_of(number)
    records, result = Records(out / "masks"), {
        "scan": ["sub-1/anat/sub-1_T2w.nii.gz"], "volume_ml": 12.5, "lesions": 2, "largest_ml": 10.0, "side": "left",
        "head": {"head_mm": [150.0, 190.0, 170.0], "grey": 0.5, "middle_mm": 0.0}, "warnings": [], "remarks": []}
    for i in range(number):
        folder = out / "tree" / f"sub-{i:06d}" / "anat"
        folder.mkdir(parents=True)
        (folder / f"sub-{i:06d}_T2w.nii.gz").touch()

    def part(what: str, work, number: int = number) -> None:
        clock, processor = time.perf_counter(), sum(os.times()[:4])
        work()
        clock, processor = time.perf_counter() - clock, sum(os.times()[:4]) - processor
        print(f"{what:55s} {clock / number * 1e3:8.3f} ms  {processor / number * 1e3:8.3f} ms of the processor;  "
              f"100,000: {clock / number * 1e5:6.0f} s", flush=True)

    part("a BIDS tree is walked (every process)", lambda: walk(str(out / "tree"), Sidecars()))
    found: list = []
    choose = lambda: found.append(bids.find_scans(out / "tree", ["T2w"], Filters()))
    part("its scans are chosen (every process)", choose)
    part("their masks are planned (every process)", lambda: bids.plan(found[0].cases, out / "tree", out / "masks"))
    done: set[str] = set()
    share = Share(names, Place(0, 2, "a"), Claims(records.folder), done.__contains__)

    def claim() -> None:
        while name := share.take():
            done.add(name)
            share.finished(name)

    part("a claim is made and given back (once a scan)", claim)
    share.claims.close()
    (out / "shared").mkdir()

    def many() -> None:
        command = [sys.executable, __file__, "--out", str(out), "--scans", str(number), "--processes", str(processes)]
        for worker in [subprocess.Popen([*command, "--worker", str(i)]) for i in range(processes)]:
            if worker.wait():
                raise SystemExit("a worker failed")

    part(f"{processes} processes claim all of a list together (once a scan)", many)
    assert sum(1 for _ in (out / "shared").iterdir()) == number
    few = names[:fsynced]
    part("a record is written, with fsync (once a scan)", lambda: [records.write(name, result) for name in few],
         len(few))
    text = (records.folder / f"{names[0]}.json").read_bytes()
    for name in names:
        (records.folder / f"{name}.json").write_bytes(text)
        (records.folder / f"{name}.jpg").write_bytes(PICTURE)
    part("the records are listed (every process, at its end)", records.names)
    read = lambda: [json.loads((records.folder / f"{name}.json").read_text()) | {"key": name, "name": name, "mask": "m"}
                    for name in names]
    part("all records are read and the table is written (once)", lambda: write_table(out, read(), []))
    part("the pages are written (once)", lambda: write_pages(out, records, read(), [], "Cohort"))


if __name__ == "__main__":
    main()
