"""Replace a file or a folder by a finished one; what killed processes left of that is put back or deleted."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: there, what killed processes left stays
    fcntl = None  # type: ignore[assignment]

PREFIX = ".cusink-"
OWNER = "owner"  # a file with the name that a folder is for; its process holds a lock on it, which ends with that
OLD = "old"  # what names begin with that replaced things have for a moment


@contextlib.contextmanager
def own_folder(path: Path) -> Iterator[Path]:
    """Give a folder beside `path`, with a short name, in which one call alone makes what is to have this path."""
    own = Path(tempfile.mkdtemp(prefix=PREFIX, dir=path.parent))
    try:
        with open(own / OWNER, "wb") as owner:
            _locked(owner.fileno())
            try:
                owner.write(os.fsencode(path.name))  # not before the lock: a folder without a name is left alone
                owner.flush()
                yield own
            finally:
                _clear(own)
    finally:
        with contextlib.suppress(OSError):  # it holds what could not be put back, with its owner's name
            own.rmdir()


def put_back(path: Path) -> None:
    """Put back what processes that were killed moved away from `path`, and delete the rest that they left.

    A folder whose process lives is locked, and stays.
    """
    for own in sorted(path.parent.glob(f"{PREFIX}*")) if fcntl is not None else ():
        with contextlib.suppress(OSError), open(own / OWNER, "rb") as owner:  # it may be done meanwhile
            if owner.read() == os.fsencode(path.name) and _locked(owner.fileno()):
                for old in sorted(own.glob(f"{OLD}*")):
                    _returned(old, path)
                _clear(own)
                own.rmdir()


def replaced(path: Path, draft: Path, old: Path) -> None:
    """Give a finished draft its path; after an error what it replaces has it again.

    A file takes the place of another at once. A folder cannot: what it replaces is called `old` for a moment.
    """
    if draft.is_file():
        os.replace(draft, path)
        return
    try:
        with contextlib.suppress(FileNotFoundError):  # there is none, or another process moved it
            os.rename(path, old)  # a process that has the files mapped keeps them
        os.rename(draft, path)
    finally:
        _returned(old, path)


def remove(path: Path) -> None:
    """Remove a file or a folder that may be there."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _returned(old: Path, path: Path) -> None:
    """Give `old` its path again, or delete it where the path has what replaced it."""
    if os.path.lexists(path):
        remove(old)
    elif os.path.lexists(old):
        os.rename(old, path)


def _clear(own: Path) -> None:
    """Delete all in a folder but what could not be put back, and then the name of its owner."""
    for part in own.iterdir():
        if part.name != OWNER and not part.name.startswith(OLD):
            remove(part)
    if [part.name for part in own.iterdir()] == [OWNER]:
        remove(own / OWNER)


def _locked(file: int) -> bool:
    """Lock a file, False where another process holds it or the file system has no locks."""
    with contextlib.suppress(OSError):
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False
