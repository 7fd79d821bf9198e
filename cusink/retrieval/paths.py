"""Checks of paths that a matrix or an index is written to, or read from."""

import errno
import os
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from cusink.checks.scalars import shown
from cusink.retrieval.checks import DTYPES_ON_DISK


def is_path(out: object) -> TypeGuard[str | os.PathLike[str]]:
    """Say whether `out` names a store on disk."""
    return isinstance(out, (str, os.PathLike))


def usable_path(name: str, given: str | os.PathLike[Any]) -> Path:
    """Return a path that the file system takes, whatever it holds there."""
    text = os.fspath(given)
    if not isinstance(text, str):
        raise TypeError(f"'{name}' must be a path of text; got one of bytes. Convert it with os.fsdecode")
    wrong = "a null character" if "\0" in text else ""
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        wrong = f"the character {ascii(text[error.start])}, which the file system cannot write"
    if wrong:
        shown_text = shown(ascii(text)[1:-1])
        raise ValueError(
            f"'{name}' must be a path that the file system takes; got {shown_text} with {wrong}. Choose another name"
        )
    try:
        os.lstat(text)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
            raise
        raise ValueError(
            f"'{name}' must be a path that the file system takes; got {shown(text)}: {error.strerror}. Choose another "
            "name"
        ) from None
    return Path(text)


def output_path(out: str | os.PathLike[str], dtype: Any, full_output: bool) -> Path:
    """Return the path of a store that can be made, for the distances alone; a symbolic link is followed."""
    path = usable_path("out", out)
    if path.is_symlink():
        target = Path(os.path.realpath(path))
        if not target.exists():
            raise FileNotFoundError(
                f"'out' is a symbolic link to '{target}', which does not exist; got '{path}'. Pass the name that it "
                "leads to, or delete the link"
            )
        path = target
    if path.suffix not in (".npy", ".zarr"):
        raise ValueError(f"'out' must end in .npy or .zarr to be written to disk; got '{path}'")
    if full_output:
        raise ValueError(
            f"'full_output' must be False where the distances go to disk; got True with out='{path}'. Errors and "
            "iterations are kept for arrays in memory alone: pass an array as 'out', or leave 'full_output' out"
        )
    if np.dtype(dtype).name not in DTYPES_ON_DISK:
        raise TypeError(
            f"'out' on disk holds {', '.join(DTYPES_ON_DISK)}; got histograms of {dtype}. Convert them with .astype"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"'out' must lie in a folder that exists; there is no '{path.parent}'. Make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"'out' must lie in a folder that may be written to; '{path.parent}' may not")
    return path
