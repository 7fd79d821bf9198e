"""The record of a job on disk: what it computes, and which of its tiles are finished.

A file of lines of JSON. The first says what the job is; each further one is a tile, written when its distances are
safely on the disk. A process that is killed leaves at most one line torn, at the end, where it is recognised.
"""

import contextlib
import dataclasses
import hashlib
import json
import os

import numpy as np

from cusink.checks.arrays import to_host
from cusink.version import __version__

__all__ = [
    "Ledger",
    "differences",
    "manifest",
    "write",
]


try:
    import fcntl
except ImportError:  # not on Windows: two processes must then not be let loose on one store
    fcntl = None

FORMAT = 1
BLOCK = 1 << 24  # bytes hashed at a time


def manifest(pairs, tile, count, **arguments):
    """What tells one job, of `count` tiles, from another, in JSON's types."""
    arguments = {name: _plain(value) for name, value in sorted(arguments.items())}
    return {
        "format": FORMAT,
        "shape": list(pairs.shape),
        "dtype": np.dtype(pairs.dtype).name,
        "inputs": {name: fingerprint(x) for name, x in pairs.content().items()},
        "arguments": {"eps": float(pairs.eps)} | arguments,
        "tile": list(tile),
        "tiles": count,
        "symmetric": pairs.symmetric,
        "library": pairs.ops.xp.__name__,
        "version": __version__,
    }


def _plain(value):
    return value.item() if isinstance(value, np.generic) else value


def fingerprint(thing):
    """SHA-256 of an array, of a dataclass or a tuple of arrays, or of anything with a telling repr; None of None."""
    if thing is None:
        return None
    digest = hashlib.sha256()
    _digest(digest, thing)
    return digest.hexdigest()


def _digest(digest, thing):
    if dataclasses.is_dataclass(thing):
        digest.update(type(thing).__name__.encode())
        for field in dataclasses.fields(thing):
            _digest(digest, getattr(thing, field.name))
    elif isinstance(thing, (tuple, list)):
        for part in thing:
            _digest(digest, part)
    elif hasattr(thing, "dtype") and hasattr(thing, "shape"):
        digest.update(f"{thing.dtype}{tuple(thing.shape)}".encode())
        flat = thing.reshape(-1)  # contiguous, as all checked arrays are
        step = max(BLOCK // thing.dtype.itemsize, 1)
        for start in range(0, len(flat), step):
            digest.update(np.ascontiguousarray(to_host(flat[start : start + step])).view(np.uint8))
    else:
        digest.update(repr(thing).encode())


class Ledger:
    """The open file of a job; one process at a time holds it."""

    def __init__(self, path):
        self.path = path
        self.file = None

    def open(self):
        """Open or make the file and keep other processes out; an error if one is in."""
        self.file = open(self.path, "a+b", buffering=0)
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

    def close(self):
        """Let other processes in."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def read(self):
        """The job (None if none was begun) and its finished tiles, by their first row and column."""
        self.file.seek(0)
        lines = self.file.read().split(b"\n")
        whole = lines[:-1]  # what follows the last line end is nothing, or torn
        if lines[-1]:
            self.file.truncate(sum(len(line) + 1 for line in whole))
        if not whole:
            return None, {}
        try:
            job, *finished = (json.loads(line) for line in whole)
            return job, {tuple(tile["at"]): (tile["missed"], tile["worst"]) for tile in finished}
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"'{self.path}' is damaged; it tells which tiles of 'out' are finished. Delete it and what lies beside "
                "it, or choose another name"
            ) from None

    def begin(self, job):
        """Forget what the file held, and write down the job."""
        self.file.truncate(0)
        self._line(job)

    def add(self, rows, columns, missed, worst):
        """Write down that a tile is finished, and how many of its pairs missed their tolerance."""
        self._line({"at": [rows.start, columns.start], "missed": int(missed), "worst": float(worst)})

    def _line(self, entry):
        end = self.file.seek(0, os.SEEK_END)
        try:
            write(self.file, json.dumps(entry).encode() + b"\n")
            os.fsync(self.file.fileno())
        except OSError:  # what got through of the line must not stay
            with contextlib.suppress(OSError):
                self.file.truncate(end)
            raise


def write(file, data):
    """Write all of `data` to an unbuffered file: a disk that fills up may take a part of it before it is an error."""
    data = memoryview(data).cast("B")
    while len(data):
        data = data[file.write(data) :]


def differences(job, found):
    """Name what two jobs differ in, as (what, here, there)."""
    for name in ("arguments", "inputs"):
        here, there = job[name], found.get(name, {})
        for key in sorted(here | there):
            if here.get(key) != there.get(key):
                yield key, here.get(key), there.get(key)
    for name in job:
        if name not in ("arguments", "inputs") and job[name] != found.get(name):
            yield name, job[name], found.get(name)
