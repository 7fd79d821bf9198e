"""Warnings and error messages that several subjects share."""

import functools
import sys
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from cusink.types import HostArray

__all__ = [
    "ConvergenceWarning",
]

P = ParamSpec("P")
R = TypeVar("R")

# A warning names no line of these, which may stand between the user's code and the package: autograd, traced functions,
# cached properties.
SKIPPED = ("cusink", "torch", "jax", "functools")

_warned: ContextVar[set[str] | None] = ContextVar("messages of the public call under way", default=None)


class ConvergenceWarning(UserWarning):
    """Some problems did not reach the tolerance; which, and how far they are from it, is in the result."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that called the package, and once for each call of a public function."""
    warned = _warned.get()
    if warned is not None:
        if message in warned:
            return
        warned.add(message)
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in SKIPPED:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def warn_unconverged(missed: int, total: int, worst: float, tol: float, max_iter: int) -> None:
    """Emit one `ConvergenceWarning` at the user's call: `missed` of `total` problems missed `tol`."""
    warn(
        f"{missed} of {total} problems did not reach tol={tol:g} within max_iter={max_iter} iterations; the largest "
        f"marginal error is {worst:.2g}. Raise 'max_iter' or 'eps', or accept a larger 'tol'.",
        ConvergenceWarning,
    )


def warn_if_unconverged(converged: HostArray, error: HostArray, tol: float | None, max_iter: int) -> None:
    """Emit one `ConvergenceWarning` at the user's call if a problem (B,) missed `tol`."""
    missed = ~converged
    if tol is not None and missed.any():
        warn_unconverged(int(missed.sum()), len(missed), float(error[missed].max()), tol, max_iter)


def one_call(function: Callable[P, R]) -> Callable[P, R]:
    """Let a message be warned of once in all that a call of a public function does."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **options: P.kwargs) -> R:
        token = _warned.set(set())
        try:
            return function(*args, **options)
        finally:
            _warned.reset(token)

    return wrapped


def memory_advice(advice: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let running out of memory, on the host or on a device, say which argument to change; includes `one_call`.

    CuPy's ``OutOfMemoryError`` is a `MemoryError`, as NumPy's is. The new error is raised outside the handler of the
    old one: chained to it, its traceback would keep every array of the failed call alive for as long as the caller
    holds the error.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapped(*args: P.args, **options: P.kwargs) -> R:
            try:
                return function(*args, **options)
            except MemoryError as error:
                reason = str(error).rstrip(".")
            raise MemoryError(f"'{function.__name__}' ran out of memory{reason and f' ({reason})'}. {advice}")

        return one_call(wrapped)

    return decorate
