"""A matrix on disk that is written tile by tile: a ``.npy`` file or a Zarr array.

While it is written, ``matrix.npy`` is called ``matrix.npy.part``; ``matrix.npy.tiles`` tells what it is and which tiles
are finished (`Ledger`). A tile is brought to the disk before its line is. So whatever stops the process, a tile that
is marked is there, and one that is not is written again, to the same bytes.
"""

import contextlib
import errno
import os
import shutil

import numpy as np

from cusink._ledger import Ledger, differences, write

__all__ = ["TileStore"]

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class TileStore:
    """The store at `path` for the job that a manifest describes; use it in a ``with`` statement.

    `finished` maps the first row and column of each finished tile to how many of its pairs missed their tolerance and
    the worst error among them.
    """

    names = ("distances",)

    def __init__(self, path, job, to_host):
        self.path, self.job, self.to_host = path, job, to_host
        self.part = path.with_name(path.name + ".part")
        self.ledger = Ledger(path.with_name(path.name + ".tiles"))
        self.draft = (ZarrDraft if path.suffix == ".zarr" else NpyDraft)(self.part)
        self.finished = {}

    def __enter__(self):
        with self._failures():
            if not self.ledger.path.exists():
                self._keep_off()
            self.ledger.open()
            try:
                found, finished = self.ledger.read()
                if found is None or not (self.path.exists() or self.part.exists()):
                    self._begin()
                else:
                    self._go_on(found, finished)
            except BaseException:
                self.ledger.close()
                raise
        return self

    def __exit__(self, kind, error, traceback):
        if error is not None and not self.finished:
            self._clear()
        self.draft.close()
        self.ledger.close()

    def write(self, rows, columns, solved, missed, worst):
        """Keep a tile, and its mirror image if it has one; on return it outlasts whatever may happen."""
        block = self.to_host(solved["distances"])
        with self._failures():
            self.draft.write(rows, columns, block)
            if self.job["symmetric"]:
                self.draft.write(columns, rows, np.ascontiguousarray(block.T))
            self.draft.sync()
            self.ledger.add(rows, columns, missed, worst)
        self.finished[rows.start, columns.start] = missed, worst

    def finish(self):
        """Give the complete matrix its name, and return it, opened for reading."""
        with self._failures():
            self.draft.close()
            if self.part.exists():
                self._keep_off(self.path)
                os.replace(self.part, self.path)
                sync_folder(self.path.parent)
            return self.draft.read(self.path)

    def _keep_off(self, *paths):
        """Raise if something is there that no ledger tells of."""
        for path in paths or (self.path, self.part):
            if path.exists():
                raise FileExistsError(
                    f"'out' would overwrite '{path}', which no unfinished job accounts for. Delete it, or choose "
                    "another name"
                )

    def _begin(self):
        """Make an empty matrix and write down what it is for; clear up if that fails."""
        try:
            self._keep_off(self.path)
            self._remove()  # of a process that was stopped right here
            self.draft.create(self.job)
            self.ledger.begin(self.job)
            sync_folder(self.path.parent)
        except BaseException:
            self._clear()
            raise

    def _clear(self):
        """Leave nothing behind."""
        self._remove()
        self.ledger.path.unlink(missing_ok=True)

    def _remove(self):
        self.draft.close()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.part) if self.part.is_dir() else self.part.unlink()

    def _go_on(self, found, finished):
        """Take up a job where it was left."""
        for what, here, there in differences(self.job, found):
            raise ValueError(_of_another_job(self.path, what, here, there))
        self.finished = finished
        if self.part.exists():
            self._keep_off(self.path)
        elif len(finished) < self.job["tiles"]:
            os.replace(self.path, self.part)
        if self.part.exists():
            self.draft.open(self.job)

    @contextlib.contextmanager
    def _failures(self):
        """Say what a failure of the disk means for the job."""
        try:
            yield
        except OSError as error:
            if error.errno is None:  # one of ours
                raise
            reason, where = error.strerror or str(error), error.filename or self.path
            kept = f"{len(self.finished)} finished tiles are kept: call again to go on" if self.finished else ""
            if error.errno in FULL:
                what = f"the disk is full or the file may not grow ({reason})"
                fix = f"Free some space{'; ' + kept if kept else ''}"
            else:
                what, fix = reason, f"See to it{'; ' + kept if kept else ', or choose another name'}"
            failure = type(error)(error.errno, f"'out' cannot be written: {what}. {fix}", str(where))
        else:
            return
        raise failure


class NpyDraft:
    """A ``.npy`` file, all of whose space is taken at once."""

    def __init__(self, path):
        self.path, self.file = path, None

    def create(self, job):
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

    def open(self, job):
        """Open the file to write more tiles."""
        matrix = self.read(self.path)
        if matrix.shape != tuple(job["shape"]) or matrix.dtype != job["dtype"]:
            raise ValueError(f"'{self.path}' is not what '{job['dtype']}' of shape {job['shape']} needs. Delete it")
        self.columns, self.itemsize, self.start = matrix.shape[1], matrix.itemsize, matrix.offset
        self.file = open(self.path, "r+b", buffering=0)

    def write(self, rows, columns, block):
        """Write a tile row by row: through a memory map, a failing disk would kill the process."""
        for row, values in zip(range(rows.start, rows.stop), block, strict=True):
            self.file.seek(self.start + (row * self.columns + columns.start) * self.itemsize)
            write(self.file, np.ascontiguousarray(values))

    def sync(self):
        """Bring what was written to the disk."""
        os.fsync(self.file.fileno())

    def close(self):
        """Close the file."""
        if self.file is not None:
            self.file.close()

    @staticmethod
    def read(path):
        """Open for reading."""
        return np.load(path, mmap_mode="r", allow_pickle=False)


class ZarrDraft:
    """A Zarr array of format 3 with a chunk for each tile; what is missing reads as NaN."""

    def __init__(self, path):
        try:
            import zarr
        except ImportError:
            raise ImportError(
                "'out' with the ending .zarr needs Zarr; install it with pip install 'cusink[zarr]', or choose .npy"
            ) from None
        self.zarr, self.path, self.written = zarr, path, []

    def create(self, job):
        """Make the array, and no chunk of it."""
        (queries, documents), (height, width) = job["shape"], job["tile"]
        self.array = self.zarr.create_array(
            self.path,
            shape=tuple(job["shape"]),
            dtype=job["dtype"],
            chunks=(min(height, queries), min(height if job["symmetric"] else width, documents)),
            fill_value=float("nan"),
            compressors=None,  # distances are all digits: a tenth of the space for much of the time
            attributes={"cusink": job},
            dimension_names=("query", "document"),
            config={"write_empty_chunks": True},
            zarr_format=3,
        )
        self.written.append(self.path / "zarr.json")
        self.sync()

    def open(self, job):
        """Open the array to write more tiles, and clear away what a killed process had half written."""
        for rest in self.path.rglob("*.partial"):
            rest.unlink(missing_ok=True)
        self.array = self.zarr.open_array(self.path, mode="r+", config={"write_empty_chunks": True})

    def write(self, rows, columns, block):
        """Write a tile: whole chunks."""
        self.array[rows, columns] = block
        for row, column in self._chunks(rows, columns):
            self.written.append(self.path / self.array.metadata.encode_chunk_key((row, column)))

    def _chunks(self, rows, columns):
        height, width = self.array.chunks
        for row in range(rows.start // height, -(-rows.stop // height)):
            for column in range(columns.start // width, -(-columns.stop // width)):
                yield row, column

    def sync(self):
        """Bring what was written to the disk: the files, and the folders that name them."""
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

    def close(self):
        """Zarr keeps no file open."""

    def read(self, path):
        """Open for reading."""
        return self.zarr.open_array(path, mode="r")


def sync_folder(folder):
    """Bring the names in a folder to the disk, where folders can be synced."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _of_another_job(path, what, here, there):
    """The message for a store that holds something else than the call asks for."""
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
