"""What every call of a public function does, whatever it computes."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from cusink.checks.foreign import any_array
from cusink.errors import warned_once
from cusink.placement import placed, undisturbed

P = ParamSpec("P")
R = TypeVar("R")


def one_call(function: Callable[P, R]) -> Callable[P, R]:
    """Let a public function take arrays of any library, and compute on their device; it warns of a message once."""

    @undisturbed
    @any_array
    @functools.wraps(function)
    def wrapped(*args: P.args, **options: P.kwargs) -> R:
        with warned_once(), placed((*args, *options.values())):
            return function(*args, **options)

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
