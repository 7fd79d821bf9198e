"""Unfinished matrices on disk: `.npy` and Zarr."""

import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cusink.retrieval.storage.ledger import FORMAT, Job, write
from cusink.types import HostArray


class Draft(Protocol):
    """An unfinished matrix."""

    def create(self, job: Job) -> None:
        """Make an empty matrix."""

    def open(self, job: Job) -> None:
        """Open the matrix to write more tiles."""

    def write(self, rows: slice, columns: slice, block: HostArray) -> None:
        """Write a tile."""

    def sync(self) -> None:
        """Bring all that was written to the disk."""

    def close(self) -> None:
        """Close the files."""

    def read(self, path: Path) -> Any:
        """Open a finished matrix for reading: `numpy.memmap` or `zarr.Array`."""


class NpyDraft:
    """A ``.npy`` file, all of whose space is taken at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: FileIO | None = None

    def create(self, job: Job) -> None:
        """Make the file."""
        shape, dtype = tuple(job["shape"]), np.dtype(job["dtype"])
        with open(self.path, "wb", buffering=0) as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            size = file.tell() + dtype.itemsize * shape[0] * shape[1]
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            os.fsync(file.fileno())
        self.open(job)

    def open(self, job: Job) -> None:
        """Open the file to write more tiles."""
        matrix = self.read(self.path)
        if matrix.shape != tuple(job["shape"]) or matrix.dtype != job["dtype"]:
            raise ValueError(f"'{self.path}' is not what '{job['dtype']}' of shape {job['shape']} needs. Delete it")
        self.columns, self.itemsize, self.start = matrix.shape[1], matrix.itemsize, matrix.offset
        self.file = open(self.path, "r+b", buffering=0)

    def write(self, rows: slice, columns: slice, block: HostArray) -> None:
        """Write a tile row by row: through a memory map, a failing disk would kill the process."""
        file = self._opened()
        for row, values in zip(range(rows.start, rows.stop), block, strict=True):
            file.seek(self.start + (row * self.columns + columns.start) * self.itemsize)
            write(file, np.ascontiguousarray(values))

    def sync(self) -> None:
        """Bring all that was written to the disk."""
        os.fsync(self._opened().fileno())

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()

    def read(self, path: Path) -> Any:
        """Open for reading."""
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _opened(self) -> FileIO:
        assert self.file is not None
        return self.file


class ZarrDraft:
    """A Zarr array of format 3 with a chunk for each tile; missing chunks read as NaN."""

    def __init__(self, path: Path) -> None:
        try:
            import zarr
        except ImportError:
            raise ImportError(
                "'out' with the ending .zarr needs Zarr; install it with pip install 'cusink[zarr]', or choose .npy"
            ) from None
        self.zarr, self.path = zarr, path
        self.written: list[Path] = []

    def create(self, job: Job) -> None:
        """Make the array, and no chunk of it."""
        (rows, columns), (height, width) = job["shape"], job["tile"]
        self.array = self.zarr.create_array(
            self.path,
            shape=tuple(job["shape"]),
            dtype=job["dtype"],
            chunks=(min(height, rows), min(height if job["symmetric"] else width, columns)),
            fill_value=float("nan"),
            compressors=None,  # distances are all digits: a tenth of the space for much of the time
            attributes={"cusink": job},
            dimension_names=("query", "document"),
            config={"write_empty_chunks": True},
            zarr_format=3,
        )
        self.written.append(self.path / "zarr.json")
        self.sync()

    def open(self, job: Job) -> None:
        """Open the array to write more tiles, and delete files that a killed process had half written."""
        del job  # an array describes itself
        for rest in self.path.rglob("*.partial"):
            rest.unlink(missing_ok=True)
        self.array = self.zarr.open_array(self.path, mode="r+", config={"write_empty_chunks": True})

    def write(self, rows: slice, columns: slice, block: HostArray) -> None:
        """Write a tile: whole chunks."""
        self.array[rows, columns] = block
        for row, column in self._chunks(rows, columns):
            self.written.append(self.path / self.array.metadata.encode_chunk_key((row, column)))

    def _chunks(self, rows: slice, columns: slice) -> Iterator[tuple[int, int]]:
        height, width = self.array.chunks
        for row in range(rows.start // height, -(-rows.stop // height)):
            for column in range(columns.start // width, -(-columns.stop // width)):
                yield row, column

    def sync(self) -> None:
        """Bring all that was written to the disk: the files, and the folders that name them."""
        for file in self.written:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        folders = {
            self.path,
            *(folder for file in self.written for folder in file.parents if self.path in folder.parents),
        }
        for folder in folders:
            sync_folder(folder)
        self.written = []

    def close(self) -> None:
        """Zarr keeps no file open."""

    def read(self, path: Path) -> Any:
        """Open for reading."""
        return self.zarr.open_array(path, mode="r")


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where folders can be synced."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def of_another_layout(path: Path, part: Path, tiles: Path, found: Job) -> str:
    """Return the message for a store whose record has another layout."""
    age, version = "an older" if found["format"] < FORMAT else "a newer", found.get("version", "unknown")
    return (
        f"'out' was begun by {age} version of cusink ({version}), and '{tiles}' has a layout that this version does "
        f"not go on with. Finish it with that version, or delete '{tiles}' and '{part if part.exists() else path}' to "
        "begin again"
    )


def of_another_job(path: Path, what: str, here: object, there: object) -> str:
    """Return the message for a store that holds something else than the call asks for."""
    if what in ("A", "B", "C"):
        return (
            f"'out' holds another job: '{path}' was begun with another '{what}'. Choose another name, or delete it and "
            f"'{path}.tiles' to start anew"
        )
    hint = ", which 'memory_limit' sets" if what == "tile" else ""
    return (
        f"'out' holds another job: '{path}' was begun with {what} = {there}{hint}; this call has {here}. Pass the same "
        "to go on with it, or choose another name"
    )
