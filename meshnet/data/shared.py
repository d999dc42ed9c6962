"""The cases of a data set that one process prepares, or several share."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from meshnet.data.schema import SHARDS
from meshnet.files import hash_of, write_json
from meshnet.runs.place import Place
from meshnet.runs.shares import Claims, Share


class Shared:
    """The cases of a command, one process's or shared by several: each is prepared once.

    ``names`` are those of the shards. A failure of a shared case lies beside the shards, for the process that writes
    the data set, and so that the others do not try the same case again.
    """

    def __init__(self, names: Sequence[str], out: Path, where: Place):
        self.out, self.where = out, where
        self.paths = {Path(name).stem: out / name for name in names}
        self.stems = list(self.paths)
        self.numbers = {stem: i for i, stem in enumerate(self.stems)}
        self.claims = Claims(out / SHARDS) if where.shared else None
        self.share = Share(self.stems, where, self.claims, self._is_over,
                           lambda: {path.stem for path in (out / SHARDS).glob("*.arrow")})
        self.failed: dict[int, tuple[str, str]] = {}

    def take_all(self) -> Iterator[int | None]:
        """The number of one case after another that no other process prepares; None where the others still work."""
        while True:
            while stem := self.share.take():
                yield self.numbers[stem]
            yield None
            if not self.share.wait():
                return

    def finished(self, number: int, fault: tuple[str, str] | None) -> None:
        """A case is prepared, or has failed for the reason ``fault``."""
        stem = self.stems[number]
        if fault:
            self.failed[number] = fault
        if fault and self.claims is not None:
            write_json(self._failure(stem), {"path": fault[0], "reason": fault[1], "command": self.where.command})
        elif not fault:
            self._failure(stem).unlink(missing_ok=True)
        self.share.finished(stem)

    def failures(self) -> dict[int, tuple[str, str]]:
        """(path, reason) of every case that failed, in whichever process, by number."""
        if self.claims is not None:
            for stem, path in self.paths.items():
                if not path.is_file() and (found := self._read(stem)):
                    self.failed[self.numbers[stem]] = found["path"], found["reason"]
        return self.failed

    def is_last(self) -> bool:
        """Whether this process is the one that writes the data set; the others leave it to it while it lives."""
        return self.share.is_last(self._state())

    def wrote(self) -> None:
        """The data set is written."""
        self.share.wrote(self._state(), bool(self.failed))

    def _state(self) -> str:
        return hash_of([stem for stem, path in self.paths.items() if path.is_file()])

    def close(self) -> None:
        """Give back what was taken."""
        if self.claims is not None:
            self.claims.close()

    def _failure(self, stem: str) -> Path:
        return self.out / SHARDS / f"{stem}.failed.json"

    def _read(self, stem: str) -> dict | None:
        try:
            return json.loads(self._failure(stem).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _is_over(self, stem: str) -> bool:
        if self.paths[stem].is_file():
            return True
        found = self._read(stem) if self.claims is not None else None
        return bool(found) and found.get("command") == self.where.command
