"""What 100,000 scans cost beside computing: claims, records, the table and the page, on the disk of a folder.

    python benchmarks/speed/cohort.py --out cohort --scans 10000

Prints seconds for each scan, of the clock and of the processor, and what they make of 100,000 scans.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.cohort.page import write_pages
from meshnet.cohort.records import Records, write_table
from meshnet.data.sources.bids import walk
from meshnet.data.sources.kinds import Sidecars
from meshnet.runs.place import Place
from meshnet.runs.shares import Claims, Share

PICTURE = bytes(4600)  # as large as a small picture of a real head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="a new folder on the disk to measure; removed at the end")
    parser.add_argument("--scans", type=int, default=10_000)
    arguments = parser.parse_args()
    out, number = Path(arguments.out), arguments.scans
    out.mkdir()
    try:
        measure(out, number)
    finally:
        shutil.rmtree(out)


def measure(out: Path, number: int) -> None:
    """Each part once, for ``number`` scans."""
    names = [f"{i:024x}" for i in range(number)]
    records, result = Records(out / "masks"), {
        "scan": ["sub-1/anat/sub-1_T2w.nii.gz"], "volume_ml": 12.5, "lesions": 2, "largest_ml": 10.0, "side": "left",
        "head": {"head_mm": [150.0, 190.0, 170.0], "grey": 0.5, "middle_mm": 0.0}, "warnings": [], "remarks": []}
    for i in range(number):
        folder = out / "tree" / f"sub-{i:06d}" / "anat"
        folder.mkdir(parents=True)
        (folder / f"sub-{i:06d}_T2w.nii.gz").touch()

    def part(what: str, work) -> None:
        clock, processor = time.perf_counter(), time.process_time()
        work()
        clock, processor = time.perf_counter() - clock, time.process_time() - processor
        print(f"{what:55s} {clock / number * 1e3:8.3f} ms  {processor / number * 1e3:8.3f} ms of the processor;  "
              f"100,000: {clock / number * 1e5:6.0f} s")

    part("a BIDS tree is walked (every process)", lambda: walk(str(out / "tree"), Sidecars()))
    done: set[str] = set()
    share = Share(names, Place(0, 2, "a"), Claims(records.folder), done.__contains__)

    def claim() -> None:
        while name := share.take():
            done.add(name)
            share.finished(name)

    part("a claim is made and given back (once a scan)", claim)
    share.claims.close()
    part("a record is written, with fsync (once a scan)", lambda: [records.write(name, result) for name in names])
    for name in names:
        (records.folder / f"{name}.jpg").write_bytes(PICTURE)
    part("the records are listed (every process, at its end)", records.names)
    read = lambda: [json.loads((records.folder / f"{name}.json").read_text()) | {"key": name, "name": name, "mask": "m"}
                    for name in names]
    part("all records are read and the table is written (once)", lambda: write_table(out, read(), []))
    part("the pages are written (once)", lambda: write_pages(out, records, read(), [], "Cohort"))


if __name__ == "__main__":
    main()
