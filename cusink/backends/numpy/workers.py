"""Threads of the NumPy backend: NumPy releases the GIL inside each operation."""

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from cusink import workers
from cusink.backends.numpy import limits

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

R = TypeVar("R")


def cores() -> int:
    """Return how many threads may run at the same time: one in the work of a worker of the whole library."""
    return limits.LIMITS.threads or workers.workers()


def thread_pool() -> "contextlib.AbstractContextManager[ThreadPoolExecutor | None]":
    """Return a pool of a thread per core, for `run_all`; None for one."""
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and not needed by small problems

    count = cores()
    return ThreadPoolExecutor(count) if count > 1 else contextlib.nullcontext()


def run_all(run: Callable[..., R], *arguments: Iterable[Any], pool: "ThreadPoolExecutor | None" = None) -> list[R]:
    """Return the results of ``run(*each)`` for all tuples of arguments, in order; on threads if there are several."""
    calls = list(zip(*arguments, strict=True))
    if len(calls) < 2 or (pool is None and cores() < 2):
        return [run(*each) for each in calls]
    if pool is not None:
        return list(pool.map(lambda each: run(*each), calls))
    with thread_pool() as pool:
        assert pool is not None
        return list(pool.map(lambda each: run(*each), calls))
