"""Warnings and error messages that several subjects share."""

import functools
import warnings

__all__ = [
    "ConvergenceWarning",
]


class ConvergenceWarning(UserWarning):
    """Some problems did not reach the tolerance; which, and how far they are from it, is in the result."""


def warn_unconverged(missed, total, worst, tol, max_iter):
    """Warn once, in the name of the public function's caller, that `missed` of `total` problems missed `tol`."""
    warnings.warn(
        f"{missed} of {total} problems did not reach tol={tol:g} within max_iter={max_iter} iterations; the largest "
        f"marginal error is {worst:.2g}. Raise 'max_iter' or 'eps', or accept a larger 'tol'.",
        ConvergenceWarning,
        stacklevel=4,  # this function, the public one, its memory_advice
    )


def memory_advice(advice):
    """Let running out of memory, on the host or on a device, say which argument to change.

    CuPy's ``OutOfMemoryError`` is a `MemoryError`, as NumPy's is. The new error is raised outside the handler of the
    old one: chained to it, its traceback would keep every array of the failed call alive for as long as the caller
    holds the error.
    """

    def decorate(function):
        @functools.wraps(function)
        def wrapped(*args, **options):
            try:
                return function(*args, **options)
            except MemoryError as error:
                reason = str(error).rstrip(".")
            raise MemoryError(f"'{function.__name__}' ran out of memory{reason and f' ({reason})'}. {advice}")

        return wrapped

    return decorate
