"""A matrix on disk that is written tile by tile: a ``.npy`` file or a Zarr array.

While it is written, ``matrix.npy`` is called ``matrix.npy.part``; ``matrix.npy.tiles`` describes the job and lists the
finished tiles (`Ledger`). A tile reaches the disk before its line does: wherever the process stops, a tile in the list
is there, and any other is written again, to the same bytes. The tiles of earlier processes are read and compared with
their checksums before anything is written or returned.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from cusink.retrieval.pairs import Field
from cusink.retrieval.storage.drafts import (
    DamagedError,
    Draft,
    NpyDraft,
    ZarrDraft,
    of_another_job,
    of_another_layout,
    of_damage,
    sync_folder,
)
from cusink.retrieval.storage.ledger import FORMAT, Job, Ledger, Mark, checksum, differences
from cusink.retrieval.tiles import Misses, Sizes, SolvedTile, tiles
from cusink.types import Array, HostArray

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class TileStore:
    """The store at `path` for the job that a manifest describes; use it in a ``with`` statement.

    `finished` maps the first row and column of each finished tile to how many of its pairs missed their tolerance and
    the worst error among them.
    """

    names: tuple[Field, ...] = ("distances",)

    def __init__(self, path: Path, job: Job, to_host: Callable[[Array], HostArray]) -> None:
        self.path, self.job, self.to_host = path, job, to_host
        self.part = path.with_name(path.name + ".part")
        self.ledger = Ledger(path.with_name(path.name + ".tiles"))
        self.draft: Draft = ZarrDraft(self.part) if path.suffix == ".zarr" else NpyDraft(self.part)
        self.finished: dict[tuple[int, int], Misses] = {}

    def __enter__(self) -> Self:
        with self._failures():
            if not os.path.lexists(self.ledger.path):
                self._keep_off()
            self.ledger.open()
            try:
                found, marks = self.ledger.read()
                if found is None:
                    self._keep_off()
                    self._begin()
                elif not (self.path.exists() or self.part.exists()):
                    self._begin()
                else:
                    self._go_on(found, marks)
            except BaseException:
                self.draft.close()
                self.ledger.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # An interrupt may come between a tile's line in the record and its entry here.
        if error is not None and not self.finished and not self.ledger.read()[1]:
            self._clear()
        self.draft.close()
        self.ledger.close()

    def write(self, rows: slice, columns: slice, tile: SolvedTile) -> None:
        """Keep a tile, and its mirror image if it has one; on return it is safe on the disk."""
        block = self.to_host(tile.fields["distances"])
        with self._failures():
            self.draft.write(rows, columns, block)
            if self.job["symmetric"]:
                self.draft.write(columns, rows, np.ascontiguousarray(block.T))
            self.draft.sync()
            self.ledger.add(rows, columns, Mark(tile.misses, checksum(rows, columns, tile.misses, block)))
        self.finished[rows.start, columns.start] = tile.misses

    def finish(self) -> Any:
        """Give the complete matrix its name, and return it, opened for reading."""
        with self._failures():
            self.draft.close()
            if self.part.exists():
                self._keep_off(self.path)
                os.replace(self.part, self.path)
                sync_folder(self.path.parent)
            return self.draft.read(self.path)

    def _keep_off(self, *paths: Path) -> None:
        """Raise if a file is there that no ledger accounts for."""
        for path in paths or (self.path, self.part):
            if os.path.lexists(path):
                raise FileExistsError(
                    f"'out' would overwrite '{path}', which no unfinished job accounts for. Delete it, or choose "
                    "another name"
                )

    def _begin(self) -> None:
        """Make an empty matrix and write down its job; clear up if that fails."""
        try:
            self._keep_off(self.path)
            self.ledger.begin(self.job)  # first: it accounts for the matrix, of which a killed process may leave a part
            self._remove()
            self.draft.create(self.job)
            sync_folder(self.path.parent)
        except BaseException:
            self._clear()
            raise

    def _clear(self) -> None:
        """Leave nothing behind."""
        self._remove()
        self.ledger.path.unlink(missing_ok=True)

    def _remove(self) -> None:
        self.draft.close()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.part) if self.part.is_dir() else self.part.unlink()

    def _go_on(self, found: Job, marks: dict[tuple[int, int], Mark]) -> None:
        """Go on with a job where it was left."""
        if found["format"] != FORMAT:
            raise ValueError(of_another_layout(self.path, self.part, self.ledger.path, found))
        for what, here, there in differences(self.job, found):
            raise ValueError(of_another_job(self.path, what, here, there))
        if not marks or self.part.exists():
            self._keep_off(self.path)
        if not marks:
            self._begin()
            return
        self._verify(marks)
        self.finished = {at: mark.misses for at, mark in marks.items()}
        if not self.part.exists() and len(marks) < self.job["tiles"]:
            os.replace(self.path, self.part)
            self.draft.close()
            self.draft.open(self.part, self.job, True)

    def _verify(self, marks: dict[tuple[int, int], Mark]) -> None:
        """Open the matrix and compare every finished tile, and its mirror image, with its checksum."""
        path, symmetric = (self.part if self.part.exists() else self.path), self.job["symmetric"]
        sizes = Sizes(tuple(self.job["shape"]), symmetric, 0, 0)
        every = {(rows.start, columns.start): (rows, columns) for rows, columns in tiles(sizes, *self.job["tile"])}
        if marks.keys() - every.keys():
            raise self.ledger.damaged(2 + next(k for k, at in enumerate(marks) if at not in every))
        try:
            self.draft.open(path, self.job, path == self.part)
            for at, mark in marks.items():
                rows, columns = every[at]
                kept = [(rows, columns, self.draft.read_tile(rows, columns))]
                if symmetric:
                    kept.append((columns, rows, self.draft.read_tile(columns, rows).T))
                for down, across, block in kept:
                    if checksum(rows, columns, mark.misses, block) != mark.checksum:
                        raise DamagedError(
                            f"rows {down.start} to {down.stop - 1} of columns {across.start} to {across.stop - 1} are "
                            "not as they were written"
                        )
        except DamagedError as damage:
            raise ValueError(of_damage(path, self.ledger.path, damage)) from None

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Say what a failure of the disk means for the job."""
        try:
            yield
        except OSError as error:
            if error.errno is None:  # one of ours
                raise
            reason, where = error.strerror or str(error), error.filename or self.path
            kept = f"{len(self.finished)} finished tiles are kept: call again to go on" if self.finished else ""
            if error.errno in DISK_FULL:
                what = f"the disk is full or the file may not grow ({reason})"
                fix = f"Free some space{'; ' + kept if kept else ''}"
            else:
                what, fix = reason, f"See to it{'; ' + kept if kept else ', or choose another name'}"
            failure = type(error)(error.errno, f"'out' cannot be written: {what}. {fix}", str(where))
        else:
            return
        raise failure
