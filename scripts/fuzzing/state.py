"""The file of a run: a line of JSON for each case that is done, so that a run goes on where it was stopped."""

import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import cusink


def code() -> str:
    """Return a hash of the sources that outcomes depend on: of the package and of these scripts."""
    digest = hashlib.sha256()
    for folder in (Path(cusink.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class State:
    """Outcomes by subject, and the failures; kept in a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path, self._file = path, None
        self.counts: dict[str, Counter[str]] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self.done: set[tuple[str, int]] = set()
        self.failures: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        if self.path is not None:
            self._read(self.path)
            self._file = self.path.open("a")
            if not self.done and self.path.stat().st_size == 0:
                self._line({"code": code()})
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, entry: dict[str, Any]) -> None:
        """Count a case, and write it down."""
        self._count(entry)
        if self._file is not None:
            self._line(entry)

    def _count(self, entry: dict[str, Any]) -> None:
        name = entry["subject"]
        self.counts.setdefault(name, Counter())[entry["outcome"]] += 1
        self.seconds[name] += entry["seconds"]
        self.done.add((name, entry["seed"]))
        if entry["findings"]:
            self.failures.append(entry)

    def _read(self, path: Path) -> None:
        if not path.exists():
            return
        text = path.read_text()
        whole, _, torn = text.rpartition("\n")
        if torn:  # a line that was being written when the run was stopped
            path.write_text(whole + "\n" if whole else "")
        lines = whole.splitlines()
        if lines and json.loads(lines[0]).get("code") != code():
            raise SystemExit(
                f"'{path}' is the state of a run of other sources. Remove it, or name another with --state"
            )
        for line in lines[1:]:
            self._count(json.loads(line))

    def _line(self, entry: dict[str, Any]) -> None:
        file: IO[str] = self._file  # type: ignore[assignment]
        file.write(json.dumps(entry) + "\n")
        file.flush()
