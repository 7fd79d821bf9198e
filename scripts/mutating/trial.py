"""Run tests on a mutant: in a copy of the sources, in a process of its own, within a limit of processor time."""

import contextlib
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mutating.mutant import Mutant

KILLED, TIMEOUT, SURVIVED, INVALID = "killed", "timeout", "survived", "invalid"
# The emulator's builds of the kernels as they are take minutes; their names are hashes of all that they depend on.
COPIED = ("cusink", "kernels", "tests", ".cache/emulated", "pyproject.toml", "setup.cfg", "README.md")
PYTEST = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not gpu", "--no-header", "--tb=line", "--durations=0")
MEMORY = 12 << 30  # bytes of addresses; the emulator maps more than it uses
# g++ says so of sources that no compiler takes; a test did not find these.
NO_SOURCE = re.compile(r"\.cuh?:\d+:\d+: error: |launchers:\d+:\d+: error: |kernel\.cpp:\d+:\d+: error: ")


class Outcome(NamedTuple):
    """Whether tests passed, the processor time they took in seconds, and what they printed."""

    status: int  # 0: passed, 1: failed, -1: took too long
    seconds: float
    printed: str


class Workshop:
    """A copy of the sources, in which one mutant lives at a time."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, Path(tempfile.mkdtemp(prefix="mutants-"))
        for name in COPIED:
            source, target = root / name, self.folder / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy2(source, target)

    def close(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def baseline(self, tests: Iterable[str]) -> float:
        """Return the processor time in seconds that tests take on the sources as they are; they must pass."""
        outcome = self._run(tests, 3600, keep=True)
        if outcome.status:
            raise SystemExit(f"The tests fail before anything is mutated:\n{outcome.printed[-3000:]}")
        return outcome.seconds

    def trial(self, mutant: Mutant, tests: Iterable[str], seconds: float) -> tuple[str, str]:
        """Return what became of a mutant whose tests take `seconds` without it, and by which test."""
        file = self.folder / mutant.path
        text, times = file.read_text("utf-8"), file.stat()
        file.write_text(mutant.of(text), "utf-8")
        os.utime(file, (times.st_atime, times.st_mtime + 10))  # or Python would take its bytecode of the source before
        try:
            outcome = self._run(tests, 20 + 4 * seconds)
        finally:
            file.write_text(text, "utf-8")
            os.utime(file, (times.st_atime, times.st_mtime))
        if outcome.status == 0:
            return SURVIVED, ""
        if NO_SOURCE.search(outcome.printed):
            return INVALID, "does not compile"
        found = re.findall(r"^(?:FAILED|ERROR) (\S+)", outcome.printed, re.MULTILINE)
        return (TIMEOUT if outcome.status < 0 else KILLED), found[0] if found else ""

    def _run(self, tests: Iterable[str], limit: float, keep: bool = False) -> Outcome:
        """Fork a process that runs pytest in the copy; `keep` lets it write bytecode."""
        before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        with tempfile.TemporaryFile("w+") as printed:
            child = os.fork()
            if child == 0:
                _become_pytest(self.folder, tuple(tests), int(limit) + 1, printed.fileno(), keep)
            status = _wait(child, time.monotonic() + 10 * limit)
            printed.seek(0)
            seconds = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before
            if status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)):
                return Outcome(-1, seconds, printed.read())
            return Outcome(int(status != 0), seconds, printed.read())


def _become_pytest(folder: Path, tests: tuple[str, ...], limit: int, output: int, keep: bool) -> None:
    """Never return: the forked process runs pytest and ends."""
    status = 3
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = str(folder)  # of the processes that tests start
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # to load what is not used takes as long as some tests
        if not keep:
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = not keep
        import pytest

        status = int(pytest.main([*PYTEST, *tests], plugins=[_FromTheCopy(folder)]))
        status = 0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else status  # the options of a step fit other files
    except BaseException as error:  # noqa: BLE001
        print(repr(error))
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


class _FromTheCopy:
    """Stops a run that would test an installed package in the place of the copy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pytest_collection_finish(self) -> None:
        package = sys.modules.get("cusink")
        if package is None or not str(package.__file__).startswith(str(self.folder)):
            raise RuntimeError(f"cusink is not that of {self.folder}")


def _wait(child: int, until: float) -> int | None:
    """Return the status of a process, or None if its time was up; nothing that it started stays."""
    pause = 0.01
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        late = time.monotonic() > until
        if done or late:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            if not done:
                os.waitpid(child, 0)
            return status if done else None
        time.sleep(pause)
        pause = min(2 * pause, 0.2)
