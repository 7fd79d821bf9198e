"""Unfinished matrices on disk: `.npy` and Zarr."""

import contextlib
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cusink.retrieval.storage.ledger import FORMAT, Job, write
from cusink.types import HostArray


class Draft(Protocol):
    """A matrix on disk, unfinished or finished."""

    def create(self, job: Job) -> None:
        """Make an empty matrix, where nothing may be, and open it to write tiles."""

    def open(self, path: Path, job: Job, writable: bool) -> None:
        """Open the matrix at `path`; raise `DamagedError` if it is not of the form that the job asks for."""

    def read_tile(self, rows: slice, columns: slice) -> HostArray:
        """Return a tile as it is on the disk."""

    def write(self, rows: slice, columns: slice, block: HostArray) -> None:
        """Write a tile."""

    def sync(self) -> None:
        """Bring all that was written to the disk."""

    def close(self) -> None:
        """Close the files."""

    def read(self, path: Path) -> Any:
        """Open a finished matrix for reading: `numpy.memmap` or `zarr.Array`."""


class DamagedError(Exception):
    """A matrix on disk is not what it was when it was written; the message says in what."""


class NpyDraft:
    """A ``.npy`` file, all of whose space is taken at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: FileIO | None = None

    def create(self, job: Job) -> None:
        """Make the file."""
        shape, dtype = tuple(job["shape"]), np.dtype(job["dtype"])
        with open(self.path, "xb", buffering=0) as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            size = file.tell() + dtype.itemsize * shape[0] * shape[1]
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            os.fsync(file.fileno())
        self.open(self.path, job, True)

    def open(self, path: Path, job: Job, writable: bool) -> None:
        """Open the file."""
        shape, dtype = tuple(job["shape"]), np.dtype(job["dtype"])
        try:
            matrix = np.lib.format.open_memmap(path, mode="r")
        except OSError:
            raise
        except Exception as error:  # a damaged header raises ValueError, SyntaxError, TokenError, ...
            raise DamagedError(f"it is no .npy file of numbers, or was cut ({' '.join(str(error).split())})") from None
        found = matrix.shape, matrix.dtype, "C" if matrix.flags.c_contiguous else "Fortran"
        self.columns, self.dtype, self.start = shape[1], dtype, matrix.offset
        del matrix
        if found != (shape, dtype, "C"):
            raise DamagedError(
                f"it holds {found[1]} of shape {found[0]} in {found[2]} order, not {dtype} of shape {shape} in C order"
            )
        if path.stat().st_size != self.start + dtype.itemsize * shape[0] * shape[1]:
            raise DamagedError("something follows the matrix in the file")
        self.file = open(path, "r+b" if writable else "rb", buffering=0)

    def read_tile(self, rows: slice, columns: slice) -> HostArray:
        """Return a tile, read row by row: pages of a memory map would stay in memory."""
        block = np.empty((rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        for row, values in zip(range(rows.start, rows.stop), block, strict=True):
            file = self._at(row, columns)
            rest = memoryview(values).cast("B")
            while len(rest):
                count = file.readinto(rest)
                if not count:
                    raise DamagedError("it ends too early")
                rest = rest[count:]
        return block

    def _at(self, row: int, columns: slice) -> FileIO:
        file = self._opened()
        file.seek(self.start + (row * self.columns + columns.start) * self.dtype.itemsize)
        return file

    def write(self, rows: slice, columns: slice, block: HostArray) -> None:
        """Write a tile row by row: through a memory map, a failing disk would kill the process."""
        for row, values in zip(range(rows.start, rows.stop), block, strict=True):
            write(self._at(row, columns), np.ascontiguousarray(values))

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
                "'out' with the ending .zarr needs Zarr; install it with pip install zarr, or choose .npy"
            ) from None
        self.zarr, self.path = zarr, path
        self.written: list[Path] = []

    def create(self, job: Job) -> None:
        """Make the array, and no chunk of it."""
        rows, columns = job["shape"]
        self.array = self.zarr.create_array(
            self.path,
            shape=(rows, columns),
            dtype=job["dtype"],
            chunks=self._chunk_shape(job),
            fill_value=float("nan"),
            compressors=None,  # distances are all digits: a tenth of the space for much of the time
            attributes={"cusink": job},
            dimension_names=("query", "document"),
            config={"write_empty_chunks": True},
            zarr_format=3,
        )
        self.written.append(self.path / "zarr.json")
        self.sync()

    def open(self, path: Path, job: Job, writable: bool) -> None:
        """Open the array, and to write delete the files that a killed process had half written."""
        if writable:
            for rest in path.rglob("*.partial"):
                rest.unlink(missing_ok=True)
        with _damage():
            array = self.zarr.open_array(
                path, mode="r+" if writable else "r", config={"write_empty_chunks": True}, zarr_format=3
            )
            found = tuple(array.shape), np.dtype(array.dtype), tuple(array.chunks), len(array.compressors)
            described = array.attrs.asdict().get("cusink")
        shape, dtype, chunks = tuple(job["shape"]), np.dtype(job["dtype"]), self._chunk_shape(job)
        if found != (shape, dtype, chunks, 0):
            raise DamagedError(
                f"it holds {found[1]} of shape {found[0]} in {'compressed ' if found[3] else ''}chunks of {found[2]}, "
                f"not {dtype} of shape {shape} in chunks of {chunks}"
            )
        if described != job:
            raise DamagedError("its attributes describe another job")
        self.array = array

    @staticmethod
    def _chunk_shape(job: Job) -> tuple[int, int]:
        (rows, columns), (height, width) = job["shape"], job["tile"]
        return min(height, rows), min(height if job["symmetric"] else width, columns)

    def read_tile(self, rows: slice, columns: slice) -> HostArray:
        """Return a tile; a chunk that is missing is NaN."""
        with _damage():
            block: HostArray = np.asarray(self.array[rows, columns])
        return block

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


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Raise `DamagedError` for all that Zarr raises over files, but for lack of permission or memory."""
    try:
        yield
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # JSON, keys, lengths of chunks, nodes that are missing: any class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedError(f"it is no Zarr array, or a part of it cannot be read ({reason})") from None


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where folders can be synced."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def of_damage(path: Path, tiles: Path, what: object) -> str:
    """Return the message for a matrix that is not as it was written."""
    return f"'{path}' is damaged: {what}. Delete it and '{tiles}' to begin again, or choose another name"


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
            f"'{path}.tiles' to begin again"
        )
    hint = ", which 'memory_limit' sets" if what == "tile" else ""
    return (
        f"'out' holds another job: '{path}' was begun with {what} = {there}{hint}; this call has {here}. Pass the same "
        "to go on with it, or choose another name"
    )
