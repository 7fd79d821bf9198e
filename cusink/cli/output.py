"""Write files that are complete or are not there, and report on the work."""

import contextlib
import json
import os
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np

from cusink.cli.files import InputError, line, split_name
from cusink.errors import ConvergenceWarning
from cusink.retrieval.paths import usable_path
from cusink.retrieval.storage.replacing import OLD, own_folder, put_back, remove, replaced

__all__ = [
    "DiskError",
    "OutputError",
    "Report",
    "abandon",
    "check_output",
    "followed",
    "note",
    "sidecar",
    "target",
    "tell",
    "write_npz",
]


class DiskError(Exception):
    """The disk failed in the middle of the work."""


class OutputError(Exception):
    """Standard output took no more: `closed` says that nobody reads it."""

    def __init__(self, reason: str, closed: bool) -> None:
        super().__init__(reason)
        self.closed = closed


def tell(text: str) -> None:
    """Print to standard output, now: at the end of the process a failure could no longer be told."""
    if sys.stdout is None:
        raise OutputError("it is closed", False)
    try:
        print(text, flush=True)
    except OSError as error:
        abandon(sys.stdout)
        raise OutputError(error.strerror or line(error), isinstance(error, BrokenPipeError)) from None


def note(text: str) -> None:
    """Print to standard error; if it takes nothing, there is nowhere to say so."""
    if sys.stderr is not None:
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            abandon(sys.stderr)


def abandon(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere, for Python would write it again when the process ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def followed(path: Path) -> Path:
    """Return the file that a symbolic link leads to, or the path itself if it is none."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if not target.exists():
        raise InputError(f"--output: {path} is a symbolic link to {target}, which does not exist; delete the link")
    return target


def check_name(output: Path) -> None:
    """Raise if the file system does not take the name of the output."""
    try:
        usable_path("output", output)
    except ValueError as error:
        raise InputError("--output: " + str(error).removeprefix("'output' ")) from None


def check_output(given: Namespace, endings: Sequence[str]) -> None:
    """Raise if the output cannot be written, before any work is done."""
    check_name(given.output)
    output = followed(given.output)
    if output.suffix not in endings:
        raise InputError(f"--output: must be a {' or '.join(endings)} file; got '{output}'")
    if output.is_dir() and output.suffix != ".zarr":
        raise InputError(f"--output: {output} is a folder; name a file in it")
    if given.force and output.is_dir() and not _is_array(output):
        raise InputError(
            f"--output: {output} is a folder and no Zarr array, which is all that --force replaces; choose another name"
        )
    if not output.parent.is_dir():
        raise InputError(f"--output: there is no folder {output.parent}; make it first")
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"--output: the folder {output.parent} may not be written to; choose another")
    put_back(output)
    names = [given.queries, given.corpus, given.cost, *(given.points or ()), getattr(given, "candidates", None)]
    inputs = [split_name(name)[0] for name in names if name is not None]
    if output.exists() and any(path.exists() and path.samefile(output) for path in inputs):
        raise InputError(f"--output: {output} is one of the inputs; choose another name")
    begun = sidecar(output, ".tiles").exists()
    if (output.exists() or sidecar(output, ".part").exists()) and not begun and not given.force:
        raise InputError(f"--output: {output} exists; choose another name or pass --force to overwrite it")


def _is_array(folder: Path) -> bool:
    """Return whether a folder is one Zarr array, of format 2 or 3, and no group."""
    if (folder / ".zarray").is_file():
        return True
    try:
        return bool(json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["node_type"] == "array")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def sidecar(path: Path, ending: str) -> Path:
    """Return the file that belongs to the matrix at `path`."""
    return path.with_name(path.name + ending)


@contextlib.contextmanager
def target(given: Namespace) -> Iterator[Path]:
    """Give the path to write a matrix to: its own, or with --force one that replaces the existing file in the end."""
    path = followed(given.output)
    if not path.exists() or not given.force:
        if given.force:
            remove(sidecar(path, ".part"))
            remove(sidecar(path, ".tiles"))
        yield path
        return
    with own_folder(path) as own:
        draft = own / f"draft{path.suffix}"
        yield draft
        remove(sidecar(path, ".tiles"))  # first: a matrix without a record is whole, one with that of another is not
        replaced(path, draft, own / OLD)
        os.replace(sidecar(draft, ".tiles"), sidecar(path, ".tiles"))
        remove(sidecar(path, ".part"))


def write_npz(path: Path, **arrays: Any) -> None:
    """Write arrays under the name `path` when they are complete."""
    path = followed(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(draft, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise DiskError(f"--output: {path} cannot be written: {error.strerror or line(error)}") from None
    finally:
        draft.unlink(missing_ok=True)


class Report:
    """Runs the work in a ``with`` statement, and reports on it: its errors as one line, its warnings, its time."""

    def __init__(self, given: Namespace) -> None:
        self.given = given
        self._stack = contextlib.ExitStack()
        self._caught: list[warnings.WarningMessage] = []
        self._start = self._seconds = 0.0

    def __enter__(self) -> Self:
        self._caught = self._stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._seconds = time.perf_counter() - self._start
        self._stack.close()
        if isinstance(error, MemoryError):
            raise InputError(f"out of memory ({line(error)}); pass a lower --memory-limit") from None
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, PermissionError):
            at = "--output" if self.given.output is not None else getattr(self.given, "index", "--output")
            raise DiskError(f"{at}: {line(error)}") from None
        if isinstance(error, (TypeError, ValueError, ImportError, OSError)):
            raise InputError(line(error)) from None

    def finish(
        self, shape: tuple[int, int], device: str, text: str, more: dict[str, Any], summarise: bool = False
    ) -> int:
        """Print the outcome, and return the exit status; `more` is for JSON.

        With `summarise` the text is the result, and a line about the work goes to standard error.
        """
        given = self.given
        for warning in self._caught:
            note(f"cusink: warning: {line(warning.message)}")
        missed = any(issubclass(warning.category, ConvergenceWarning) for warning in self._caught)
        took = f"{self._seconds:.1f} s on {device}"
        if given.json:
            tell(
                json.dumps(
                    {
                        "shape": shape,
                        "dtype": given.dtype,
                        "value": given.value,
                        "eps": given.eps,
                        "tol": given.tol,
                        "converged": not missed,
                        "warnings": [line(warning.message) for warning in self._caught],
                        "seconds": self._seconds,
                        "pairs_per_second": shape[0] * shape[1] / self._seconds,
                        "device": device,
                    }
                    | more,
                    allow_nan=False,
                )
            )
        elif not summarise:
            tell(f"{text}, {took}")
        else:
            tell(text)
            note(f"cusink: {shape[0]} queries among {shape[1]}, {given.value}, eps {given.eps:g}, {took}")
        return 3 if missed else 0
