"""The record of a job on disk: its inputs and arguments, and which of its tiles are finished.

A file of lines of JSON. The first describes the job; each further one is a tile with the checksum of its distances,
written when these are safely on the disk. A process that is killed leaves at most one line torn, at the end, where it
is recognised.
"""

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cusink.checks.arrays import to_host
from cusink.costs.blockwise import BlockCosts
from cusink.costs.cells import EuclideanCosts, GridCosts
from cusink.costs.points import PointCosts
from cusink.retrieval.pairs import Pairs
from cusink.retrieval.tiles import Misses
from cusink.types import HostArray
from cusink.version import __version__

try:
    import fcntl
except ImportError:  # not on Windows: there, two processes must not write one store
    fcntl = None  # type: ignore[assignment]

FORMAT = 2  # raise it whenever a manifest or a fingerprint changes
HASHED_BYTES = 1 << 24  # at a time
BEGINNING = b'{"format": '  # of every record

Job = dict[str, Any]  # a manifest, in JSON's types

# How a cost that is not stored enters a fingerprint: a word and its attributes. Neither may follow a renamed class.
COSTS = {
    PointCosts: ("points", ("x", "y", "norm", "exponent", "factor", "terms", "memory_limit")),
    BlockCosts: ("blocks", ("x", "y", "formula", "labels", "table", "memory_limit")),
    GridCosts: ("grid", ("axes",)),
    EuclideanCosts: ("euclidean grid", ("squares", "unit", "memory_limit")),
}


def manifest(pairs: Pairs, tile: tuple[int, int], count: int, **arguments: object) -> Job:
    """Return the description of a job of `count` tiles that tells it from any other."""
    return {
        "format": FORMAT,
        "shape": list(pairs.shape),
        "dtype": np.dtype(pairs.dtype).name,
        "inputs": {name: fingerprint(x) for name, x in pairs.content().items()},
        "arguments": {"eps": float(pairs.eps)} | {name: _plain(value) for name, value in sorted(arguments.items())},
        "tile": list(tile),
        "tiles": count,
        "symmetric": pairs.symmetric,
        "library": pairs.xp.__name__,
        "version": __version__,
    }


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def fingerprint(thing: Any) -> str | None:
    """Return the SHA-256 of an array, a number or word, a cost, or a tuple of these; None of None."""
    if thing is None:
        return None
    digest = hashlib.sha256()
    for part in _parts(thing):
        digest.update(part)
    return digest.hexdigest()


def _parts(thing: Any) -> Iterator[Any]:
    if type(thing) in COSTS:
        word, names = COSTS[type(thing)]
        thing = (word, *(getattr(thing, name) for name in names))
    if isinstance(thing, tuple):
        for part in thing:
            yield from _parts(part)
    elif hasattr(thing, "dtype") and hasattr(thing, "shape"):
        yield f"{thing.dtype}{tuple(thing.shape)}".encode()
        flat = thing.reshape(-1)  # contiguous, as all checked arrays are
        step = max(HASHED_BYTES // thing.dtype.itemsize, 1)
        for start in range(0, len(flat), step):
            yield np.ascontiguousarray(to_host(flat[start : start + step])).view(np.uint8)
    else:
        yield repr(thing).encode()


class Mark(NamedTuple):
    """A finished tile in the record: how many of its pairs missed their tolerance, and the checksum."""

    misses: Misses
    checksum: int


def checksum(rows: slice, columns: slice, misses: Misses, block: HostArray) -> int:
    """Return the CRC-32 of a tile: of its line in the record, and of its distances (rows, columns)."""
    line = json.dumps([rows.start, columns.start, int(misses.count), float(misses.worst)])
    return zlib.crc32(np.ascontiguousarray(block).data, zlib.crc32(line.encode()))


class Ledger:
    """The open file of a job; one process at a time holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None

    @property
    def file(self) -> FileIO:
        """The file, which must be open."""
        assert self._file is not None
        return self._file

    def open(self) -> None:
        """Open or make the file and keep other processes out; an error if one is in."""
        if os.path.lexists(self.path) and not self.path.is_file():  # a folder, a pipe, a link to nothing
            raise self._foreign()
        self._open()
        while not self._current():
            self.close()
            self._open()

    def _current(self) -> bool:
        """Say whether the path still names the file: a process that gave up its job deletes it while another waits."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        self._file = open(self.path, "a+b", buffering=0)
        if fcntl is not None:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise BlockingIOError(
                    f"'out' is being written by another process, which holds '{self.path}'. Wait for it, or choose "
                    "another name"
                ) from None
            except OSError:  # a file system without locks
                pass

    def close(self) -> None:
        """Let other processes in."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self) -> tuple[Job | None, dict[tuple[int, int], Mark]]:
        """Return the job (None if none was begun) and its finished tiles, by their first row and column.

        Of a record of another format only the job is read.
        """
        self.file.seek(0)
        data = self.file.read()
        if not data.startswith(BEGINNING[: len(data)]):
            raise self._foreign()
        lines = data.split(b"\n")
        whole = lines[:-1]  # what follows the last line end is nothing, or torn
        if lines[-1]:
            self.file.truncate(sum(len(line) + 1 for line in whole))
        if not whole:
            return None, {}
        marks: dict[tuple[int, int], Mark] = {}
        number = 1
        try:
            job = json.loads(whole[0])
            if not all(isinstance(job[name], dict) for name in ("arguments", "inputs")):
                raise TypeError
            if type(job["format"]) is not int:
                raise TypeError
            for line in whole[1:] if job["format"] == FORMAT else ():
                number += 1
                tile = json.loads(line)
                row, column = map(int, tile["at"])
                marks[row, column] = Mark(Misses(int(tile["missed"]), float(tile["worst"])), int(tile["crc32"]))
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError):
            raise self.damaged(number) from None
        return job, marks

    def damaged(self, number: int) -> ValueError:
        """Return the error for line `number`, which cannot be read."""
        matrix = str(self.path).removesuffix(".tiles")
        return ValueError(
            f"'{self.path}' is damaged in line {number}; it tells which tiles of 'out' are finished. Delete it and "
            f"'{matrix}.part' or '{matrix}' to begin again, or choose another name"
        )

    def _foreign(self) -> FileExistsError:
        return FileExistsError(
            f"'out' would overwrite '{self.path}', which is not the record of a job. Delete it, or choose another name"
        )

    def begin(self, job: Job) -> None:
        """Forget what the file held, and write down the job."""
        self.file.truncate(0)
        self._line(job)

    def add(self, rows: slice, columns: slice, mark: Mark) -> None:
        """Write down that a tile is finished."""
        misses = mark.misses
        self._line(
            {
                "at": [rows.start, columns.start],
                "missed": int(misses.count),
                "worst": float(misses.worst),
                "crc32": mark.checksum,
            }
        )

    def _line(self, entry: Job) -> None:
        end = self.file.seek(0, os.SEEK_END)
        try:
            write(self.file, json.dumps(entry).encode() + b"\n")
            os.fsync(self.file.fileno())
        except OSError:  # a part of the line that got through must not stay
            with contextlib.suppress(OSError):
                self.file.truncate(end)
            raise


def write(file: FileIO, data: Any) -> None:
    """Write all of `data` to an unbuffered file: a disk that fills up may take a part of it before it is an error."""
    rest = memoryview(data).cast("B")
    while len(rest):
        rest = rest[file.write(rest) :]


def differences(job: Job, found: Job) -> Iterator[tuple[str, object, object]]:
    """Yield each entry in which two jobs differ, as (name, here, there)."""
    for name in ("arguments", "inputs"):
        here, there = job[name], found[name]
        for key in sorted(here | there):
            if here.get(key) != there.get(key):
                yield key, here.get(key), there.get(key)
    for name in job:
        if name not in ("arguments", "inputs") and job[name] != found.get(name):
            yield name, job[name], found.get(name)
