"""Warnings and error messages that several subjects share."""

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import numpy as np

from cusink.types import HostArray

__all__ = [
    "ConvergenceWarning",
]

P = ParamSpec("P")
R = TypeVar("R")

# A warning names no line of these, which may stand between the user's code and the package: autograd, traced functions,
# cached properties.
SKIPPED = ("cusink", "torch", "jax", "functools")

DEFAULT_ADVICE = "Raise 'max_iter' or 'eps', or accept a larger 'tol'"
MOST_ITERATIONS = 1e7  # nobody waits for more
ENOUGH = 5000  # iterations within which problems that hardly converge are annealed, whatever their eps

_deferred: ContextVar[list[tuple[str, type[Warning]]] | None] = ContextVar("where warnings wait", default=None)
_warned: ContextVar[set[str] | None] = ContextVar("messages of the public call under way", default=None)


class ConvergenceWarning(UserWarning):
    """Some problems did not reach the tolerance; which, and how far they are from it, is in the result."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that called the package, and once for each call of a public function."""
    deferred = _deferred.get()
    if deferred is not None:
        deferred.append((message, category))
        return
    warned = _warned.get()
    if warned is not None:
        if message in warned:
            return
        warned.add(message)
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in SKIPPED:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


@contextlib.contextmanager
def deferred_warnings(into: list[tuple[str, type[Warning]]]) -> Iterator[None]:
    """Let `warn` add to a list, in a thread that knows nothing of the user's line."""
    token = _deferred.set(into)
    try:
        yield
    finally:
        _deferred.reset(token)


def warn_unconverged(missed: int, total: int, worst: float, tol: float, max_iter: int, advice: str = "") -> None:
    """Emit one `ConvergenceWarning` at the user's call: `missed` of `total` problems missed `tol`.

    `advice` says what helps, where that is known.
    """
    warn(
        f"{missed} of {total} problems did not reach tol={tol:g} within max_iter={max_iter} iterations; the largest "
        f"marginal error is {worst:.2g}. {advice or DEFAULT_ADVICE}.",
        ConvergenceWarning,
    )


def warn_if_unconverged(
    converged: HostArray,
    error: HostArray,
    tol: float | None,
    max_iter: int,
    *,
    effort: tuple[HostArray, HostArray] | None = None,
    dtype: Any = None,
) -> None:
    """Emit one `ConvergenceWarning` at the user's call if a problem (B,) missed `tol`.

    `effort`, the iterations (B,) taken and an estimate of those needed, and the `dtype` of the computation make the
    advice fit the problem.
    """
    missed = ~converged
    if tol is None or not missed.any():
        return
    worst = float(error[missed].max())
    advice = "" if effort is None else _advice(missed, worst, max_iter, effort, np.dtype(dtype).name)
    warn_unconverged(int(missed.sum()), len(missed), worst, tol, max_iter, advice)


def _advice(missed: HostArray, worst: float, max_iter: int, effort: tuple[HostArray, HostArray], dtype: str) -> str:
    """Return what helps problems (B,) that missed the tolerance; all that did so for one reason, else the default."""
    n_iter, needed = effort
    early = n_iter[missed] < max_iter
    if early.all() and np.isfinite(worst):
        wider = "pass float64 arrays, or " if dtype == "float32" else "raise 'eps', or "
        return (
            f"They stopped after {n_iter[missed].max()} iterations, at the rounding of {dtype}, so that a larger "
            f"'max_iter' does not help: {wider}accept a 'tol' of {2 * worst:.1g}"
        )
    most = needed[missed].max()
    if early.any() or np.isnan(most):
        return ""
    if most > MOST_ITERATIONS:
        annealed = "" if max_iter >= ENOUGH else f", or 'max_iter' to {ENOUGH}, which leaves enough for annealing"
        return f"The error hardly falls at this 'eps': raise 'eps'{annealed}, or accept a larger 'tol'"
    about = float(f"{most:.1e}")
    lower_first = DEFAULT_ADVICE[0].lower() + DEFAULT_ADVICE[1:]
    return f"At the rate observed it takes about {about:.0f} iterations: {lower_first}"


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
