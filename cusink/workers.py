"""Threads of the whole library: how many, one pool for all of them, and BLAS on one thread inside.

The thread that calls is one of the workers, so that a single worker needs no other thread. What the workers do does not
depend on how many there are: results have the same bytes for any number. Work inside a worker is not shared out again.
"""

import contextlib
import contextvars
import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from cusink.checks.arrays import kind
from cusink.checks.scalars import integer, shown
from cusink.errors import deferred_warnings, warn

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

__all__ = ["set_workers"]

P = ParamSpec("P")
R = TypeVar("R")

QUOTA = Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")  # of version 2 and 1
VARIABLE = "CUSINK_WORKERS"

_wanted: contextvars.ContextVar[int | None] = contextvars.ContextVar("workers of the call under way", default=None)
_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("whether this is the work of a worker", default=False)
_held_here: contextvars.ContextVar[bool] = contextvars.ContextVar("whether BLAS has one thread here", default=False)
_setting: int | None = None
_lock = threading.Lock()
_pool: "tuple[int, ThreadPoolExecutor] | None" = None
_holders = 0  # of BLAS on one thread
_held: Any = None


def set_workers(workers: int | None) -> None:
    """Set how many threads the functions use whose `workers` is None.

    Parameters
    ----------
    workers : int or None
        A number, -1 for all cores that the process may use, or None for the start: the environment variable
        ``CUSINK_WORKERS``, or else all cores.

    Returns
    -------
    None
        It holds for the process.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is 0 or below -1.

    Notes
    -----
    All cores are those that the process may run on, within the quota of its control group. A task on a worker of
    ``dask.distributed`` uses one thread, for Dask runs as many tasks as there are cores. So does, unless a number is
    given, work on small histograms, of which operations on arrays are so short that threads wait for each other.

    Examples
    --------
    >>> import cusink
    >>> cusink.set_workers(2)
    >>> cusink.set_workers(None)
    """
    global _setting
    _setting = check_workers(workers)


def check_workers(workers: object) -> int | None:
    """Check a number of workers: None for the setting, -1 for all cores, or a positive number."""
    if workers is None:
        return None
    number = integer(workers)
    if number is None:
        raise TypeError(f"'workers' must be an integer or None; got {kind(workers)}")
    if number < -1 or number == 0:
        raise ValueError(f"'workers' must be positive, or -1 for all cores; got {shown(workers)}")
    return cores() if number == -1 else number


def workers(wanted: int | None = None) -> int:
    """Return how many threads the work here may be shared out to: one inside a worker, or those `wanted`."""
    if _inside.get():
        return 1
    wanted = wanted or _wanted.get()
    return (_setting or _start()) if wanted is None else wanted


def inside() -> bool:
    """Return whether this is the work of a worker, which is not shared out again."""
    return _inside.get()


def asked_for() -> bool:
    """Return whether somebody said how many workers there are to be: the call, `set_workers` or the environment."""
    return _wanted.get() is not None or _setting is not None or VARIABLE in os.environ


@contextlib.contextmanager
def working(wanted: int | None) -> Iterator[None]:
    """Let `each` use so many workers, as `check_workers` returned them, and BLAS one thread."""
    token = _wanted.set(wanted)
    try:
        with one_blas_thread():
            yield
    finally:
        _wanted.reset(token)


def shares_out(function: Callable[P, R]) -> Callable[P, R]:
    """Let the keyword `workers` of a public function say how many threads its work is shared out to."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **keywords: P.kwargs) -> R:
        wanted = check_workers(keywords.get("workers"))
        with contextlib.nullcontext() if wanted is None else working(wanted):
            return function(*args, **keywords)

    return wrapped


def alone(task: Callable[P, R]) -> Callable[P, R]:
    """Return a function that works in its own thread alone, for tasks that somebody else shares out."""

    @functools.wraps(task)
    def wrapped(*args: P.args, **keywords: P.kwargs) -> R:
        token = _inside.set(True)
        try:
            with one_blas_thread():
                return task(*args, **keywords)
        finally:
            _inside.reset(token)

    return wrapped


def each(run: Callable[..., R], calls: Iterable[tuple[Any, ...]], at_most: int | None = None) -> list[R]:
    """Return ``run(*call)`` for all calls, in order; on threads, `at_most` so many, if there are several.

    BLAS has one thread meanwhile, for any number of ours: a product that it cuts up itself may have other digits.
    Warnings are given in the order of the calls, in the thread of the caller.
    """
    todo = list(calls)
    count = min(workers(), len(todo), len(todo) if at_most is None else max(1, at_most))
    results: list[Any] = [None] * len(todo)
    warned: list[list[tuple[str, type[Warning]]]] = [[] for _ in todo]
    numbers, failed = itertools.count(), threading.Event()  # `next` of a count is one step to other threads

    def work() -> None:
        token = _inside.set(True)
        try:
            while not failed.is_set() and (k := next(numbers)) < len(todo):
                with deferred_warnings(warned[k]):
                    results[k] = run(*todo[k])
        except BaseException:
            failed.set()
            raise
        finally:
            _inside.reset(token)

    with contextlib.ExitStack() as held:
        if len(todo) > 1 and not _inside.get():
            held.enter_context(one_blas_thread())
        if count < 2:
            work()
        else:
            pool = _threads(count - 1)
            others = [pool.submit(contextvars.copy_context().run, work) for _ in range(count - 1)]
            try:
                work()
            finally:
                # Those that have not begun, as other callers keep the pool busy, have nothing left to do.
                running = [other for other in others if not other.cancel()]
                errors = [error for other in running if (error := other.exception()) is not None]
            if errors:
                raise errors[0]
    for message, category in itertools.chain.from_iterable(warned):
        warn(message, category)
    return results


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread while anybody is inside; its own threads wait for each other when a core is busy."""
    global _holders, _held
    with _lock:
        _holders += 1
        if _holders == 1:
            _held = _blas().limit(limits=1, user_api="blas")
    token = _held_here.set(True)
    try:
        yield
    finally:
        _held_here.reset(token)
        with _lock:
            _holders -= 1
            if _holders == 0:
                _held.restore_original_limits()


def blas_has_threads() -> bool:
    """Return whether BLAS may use threads of its own in the work here: whatever other callers do meanwhile."""
    return not _held_here.get()


def cores() -> int:
    """Return how many cores the process may use: those that it may run on, within the quota of its control group."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = _quota()
    return count if quota is None else max(1, min(count, int(quota)))


def _quota() -> float | None:
    """Return the cores' worth of time that the control group allows, None for any."""
    try:
        if QUOTA[0].exists():
            quota, period = QUOTA[0].read_text().split()
            return None if quota == "max" else float(quota) / float(period)
        quota = QUOTA[1].read_text()
        return None if float(quota) < 0 else float(quota) / float(QUOTA[1].with_name("cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None


def _start() -> int:
    """Return how many workers there are if nobody has set their number."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        try:
            number = check_workers(int(given))
        except ValueError:
            raise ValueError(f"the environment variable {VARIABLE} must be a positive integer; got {given!r}") from None
        return number or 1
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        with contextlib.suppress(ValueError, AttributeError):  # where there is no worker
            distributed.get_worker()
            return 1
    return cores()


def _threads(count: int) -> "ThreadPoolExecutor":
    """Return the pool, with `count` threads at least."""
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and not needed by small problems

    global _pool
    with _lock:
        if _pool is None or _pool[0] < count:
            _pool = count, ThreadPoolExecutor(count, "cusink")  # an old pool ends with the calls that hold it
        return _pool[1]


@functools.cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _forget() -> None:
    """Forget, in a process that was forked, the threads that stayed in its parent."""
    global _pool, _lock, _holders
    _pool, _lock, _holders = None, threading.Lock(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
