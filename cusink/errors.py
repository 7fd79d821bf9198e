"""Warnings and error messages that several subjects share."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np

from cusink.types import HostArray

__all__ = [
    "ConvergenceWarning",
]

# A warning names no line of these, which may stand between the user's code and the package: autograd, traced functions,
# cached properties, decorated functions.
SKIPPED = ("cusink", "torch", "jax", "functools", "numpy")

DEFAULT_ADVICE = "Raise 'max_iter' or 'eps', or accept a larger 'tol'"
MOST_ITERATIONS = 1e7  # nobody waits for more
HOPELESS = 0.1  # error beyond which nobody accepts a tolerance
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
def warned_once() -> Iterator[None]:
    """Let `warn` say a message once, in all that is done meanwhile."""
    token = _warned.set(set())
    try:
        yield
    finally:
        _warned.reset(token)


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


def _warn_stopped(missed: int, total: int, worst: float, tol: float, iterations: int, dtype: str) -> None:
    """Emit one `ConvergenceWarning` at the user's call: `missed` of `total` problems stopped at `dtype`'s rounding."""
    wider = "pass float64 arrays" if dtype == "float32" else "raise 'eps'"
    helps = f"{wider}, or accept a 'tol' of {2 * worst:.1g}"
    if worst >= HOPELESS:
        helps = "raise 'eps', or forbid pairs with +inf instead of a large number"
    warn(
        f"{missed} of {total} problems did not reach tol={tol:g}; the largest marginal error is {worst:.2g}. "
        f"They stopped after {iterations} iterations, at the rounding of {dtype}, so that a larger 'max_iter' does not "
        f"help: {helps}.",
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
    advice: str = "",
) -> None:
    """Emit one `ConvergenceWarning` at the user's call if a problem (B,) missed `tol`.

    `effort`, the iterations (B,) taken and an estimate of those needed, and the `dtype` of the computation make the
    advice fit the problem. `advice` is that of problems that ran out of iterations, where these tell nothing.
    """
    missed = ~converged
    if tol is None or not missed.any():
        return
    worst, count = float(error[missed].max()), int(missed.sum())
    if effort is None:
        warn_unconverged(count, len(missed), worst, tol, max_iter)
        return
    n_iter, needed = (x[missed] for x in effort)
    if (n_iter < max_iter).all() and np.isfinite(worst):
        _warn_stopped(count, len(missed), worst, tol, int(n_iter.max()), np.dtype(dtype).name)
    else:
        warn_unconverged(count, len(missed), worst, tol, max_iter, _advice(n_iter, needed, max_iter) or advice)


def _advice(n_iter: HostArray, needed: HostArray, max_iter: int) -> str:
    """Return what helps problems that ran out of iterations; nothing where not all of them did."""
    most = needed.max()
    if (n_iter < max_iter).any() or np.isnan(most):
        return ""
    if most > MOST_ITERATIONS:
        annealed = "" if max_iter >= ENOUGH else f", or 'max_iter' to {ENOUGH}, which leaves enough for annealing"
        return f"The error hardly falls at this 'eps': raise 'eps'{annealed}, or accept a larger 'tol'"
    about = float(f"{most:.1e}")
    lower_first = DEFAULT_ADVICE[0].lower() + DEFAULT_ADVICE[1:]
    return f"At the rate observed it takes about {about:.0f} iterations: {lower_first}"
