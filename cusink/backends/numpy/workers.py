"""Threads of the NumPy backend, those of `cusink.workers`: NumPy releases the GIL inside each operation."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from cusink import workers
from cusink.backends.numpy import limits

R = TypeVar("R")


def cores() -> int:
    """Return how many threads may run at the same time: one in the work of a worker of the whole library."""
    return workers.workers(limits.LIMITS.threads)


def run_all(run: Callable[..., R], *arguments: Iterable[Any]) -> list[R]:
    """Return the results of ``run(*each)`` for all tuples of arguments, in order; on threads if there are several."""
    calls = list(zip(*arguments, strict=True))
    if len(calls) < 2 or workers.inside():
        return [run(*each) for each in calls]
    with workers.working(cores()):  # what `Limits.threads` says
        return workers.each(run, calls)
