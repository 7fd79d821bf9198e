"""A folder of arrays: `.npy` files and one of JSON, which describes them and has a checksum of each and of itself."""

import errno
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cusink.retrieval.storage.replacing import OLD, own_folder, put_back, replaced
from cusink.types import HostArray

FORMAT = "cusink index"
VERSION = 2  # raise it whenever what the files mean changes
DESCRIPTION = "index.json"
ATTEMPTS = 100  # to give a finished folder its name, while other processes take it
BLOCK_BYTES = 1 << 24  # that are read or written at a time


class Parts(NamedTuple):
    """An array to be written, as blocks along its first axis."""

    blocks: Iterable[HostArray]
    shape: tuple[int, ...]
    dtype: Any


def write_folder(path: Path, description: Mapping[str, Any], arrays: Mapping[str, Parts], overwrite: bool) -> None:
    """Write arrays by name and what they are into a folder, which is complete or is not there."""
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"'path' must lie in a folder that exists; there is no '{path.parent}'. Make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(
            f"'path' must lie in a folder that may be written to; '{path.parent}' may not. Choose another"
        )
    put_back(path)
    _check_name(path, overwrite)
    try:
        _replace(path, description, arrays, overwrite)
    except OSError as error:
        if error.errno is None:  # one of ours
            raise
        reason = error.strerror or str(error)
        message = f"'path' cannot be written: {reason}. What was there stays; see to the disk, or choose another name"
        failure = type(error)(error.errno, message, str(path))
    else:
        return
    raise failure


def _replace(path: Path, description: Mapping[str, Any], arrays: Mapping[str, Parts], overwrite: bool) -> None:
    """Write a folder in one beside it, and give it its name."""
    with own_folder(path) as own:
        draft = own / "draft"
        draft.mkdir()
        files = {f"{name}.npy": _write(draft / f"{name}.npy", parts) for name, parts in arrays.items()}
        text = _with_checksum({"format": FORMAT, "version": VERSION} | dict(description) | {"files": files})
        with open(draft / DESCRIPTION, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        for attempt in range(ATTEMPTS):
            if _moved(draft, path, own / f"{OLD}-{attempt}", overwrite):
                break
        else:
            raise FileExistsError(
                f"'path' must be new or an index that nobody else writes; others replaced '{path}' {ATTEMPTS} times "
                "meanwhile. Save again, or choose another name"
            )


def _check_name(path: Path, overwrite: bool) -> None:
    """Check that a folder is new, or an index that may be replaced."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise FileExistsError(
            f"'path' must be new; '{path}' exists. Choose another name, or pass overwrite=True to replace an index"
        )
    look = _look(path)
    while (again := _look(path)) != look:  # another process may have put another index there between two questions
        look = again
    if look is None:  # moved away meanwhile
        return
    names, files = look
    if files is None:
        raise FileExistsError(
            f"'path' must be new or an index; '{path}' is something else, or its {DESCRIPTION} is damaged. Choose "
            "another name, or delete it"
        )
    if others := names - files:
        raise FileExistsError(
            f"'path' must be an index alone to be replaced; '{path}' also holds '{min(others)}', which is none of its "
            "files. Move that elsewhere, or choose another name"
        )


def _look(path: Path) -> tuple[set[str], set[str] | None] | None:
    """Return the names in a folder and those of the index that is there, if one is; None if there is no folder."""
    try:
        names = set(os.listdir(path))
        given = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        return names, {DESCRIPTION, *given["files"]} if given["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # the last of brackets without end
        return (set(), None) if os.path.lexists(path) else None


def _moved(draft: Path, path: Path, old: Path, overwrite: bool) -> bool:
    """Give a finished draft its name, False if another process took this meanwhile; after an error the old one has it.

    The index that is replaced is called `old` for a moment.
    """
    _check_name(path, overwrite)
    try:
        if overwrite:
            replaced(path, draft, old)
        else:
            os.rename(draft, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _write(path: Path, parts: Parts) -> dict[str, Any]:
    """Write an array; return its entry in the description."""
    dtype, checksum = np.dtype(parts.dtype), 0
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": parts.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in parts.blocks:
            data = np.ascontiguousarray(block, dtype)
            step = max(1, BLOCK_BYTES // max(1, data[:1].nbytes))
            for start in range(0, len(data), step):
                piece = data[start : start + step].data.cast("B") if data.size else b""
                checksum = zlib.crc32(piece, checksum)
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    return {"shape": list(parts.shape), "dtype": dtype.str, "bytes": size, "crc32": checksum}


def read_folder(path: Path, mmap: bool, verify: bool) -> tuple[dict[str, Any], dict[str, HostArray]]:
    """Return the description of a folder and its arrays by name, mapped into memory or read.

    Sizes and kinds are compared with the description, and with `verify` the checksums of the data too.
    """
    description = _description(path)
    arrays = {}
    for name, entry in description["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            found = f"has {file.stat().st_size} bytes, not {entry['bytes']}" if file.is_file() else "is missing"
            raise _damaged(path, f"{name} {found}")
        try:
            array = np.load(file, mmap_mode="r" if mmap else None, allow_pickle=False)
        except OSError:
            raise
        except Exception as error:  # a damaged header raises ValueError, SyntaxError, TokenError, ...
            raise _damaged(path, f"{name} is no array ({' '.join(str(error).split())})") from None
        if list(array.shape) != entry["shape"] or array.dtype.str != entry["dtype"]:
            raise _damaged(path, f"{name} holds {array.dtype} of shape {array.shape}")
        if verify and _checksum(file, int(entry["bytes"]) - array.nbytes) != entry["crc32"]:
            raise _damaged(path, f"the numbers in {name} are not those that were written")
        arrays[name.removesuffix(".npy")] = np.asarray(array)  # no subclass, which products would return
    return description, arrays


def _description(path: Path) -> dict[str, Any]:
    file = path / DESCRIPTION
    if not file.is_file():  # a process may have been killed between two renames
        put_back(Path(os.path.realpath(path)))
    if not file.is_file():
        raise FileNotFoundError(
            f"'path' must be a folder that cusink.Index.save wrote; there is no '{file}'. Save an index there first, "
            "as 'cusink index build' does"
        )
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        if given["format"] != FORMAT:
            raise KeyError
        version = given["version"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError, RecursionError):  # the last of brackets without end
        raise _damaged(path, f"{DESCRIPTION} cannot be read") from None
    if version != VERSION:
        raise ValueError(
            f"'path' must be an index of version {VERSION}; '{path}' is one of version {version}. Build it again with "
            "this release, or load it with the one that wrote it"
        )
    checksum = given.pop("checksum", None)
    if json.loads(_with_checksum(given))["checksum"] != checksum:
        raise _damaged(path, f"{DESCRIPTION} is not what was written")
    return dict(given)


def canonical(description: Mapping[str, Any]) -> str:
    """Return the one text that equal descriptions have."""
    return json.dumps(description, sort_keys=True, allow_nan=False)


def _with_checksum(description: dict[str, Any]) -> str:
    """Return a description as JSON with the checksum of all else that it holds."""
    checksum = zlib.crc32(canonical(description).encode())
    return json.dumps(description | {"checksum": checksum}, indent=1, allow_nan=False)


def _checksum(path: Path, start: int) -> int:
    """Return the CRC-32 of a file from byte `start` on, through a buffer: a map would fill the memory."""
    checksum = 0
    with open(path, "rb") as file:
        file.seek(start)
        while piece := file.read(BLOCK_BYTES):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"'path' must be a whole index; '{path}' is damaged: {what}. Save the index again")
