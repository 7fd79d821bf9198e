"""Options of solvers as constants of what is traced: hashable, known by name, and no arrays."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np

from cusink.checks.arrays import kind
from cusink.checks.scalars import flag, positive_bytes
from cusink.solver import checks

REFUSED = ("init", "callback")
Options = tuple[tuple[str, Any], ...]


def solver_options(solver: Callable[..., Any], options: dict[str, Any]) -> Options:
    """Return options of a solver as pairs that can be hashed; `reach` may hold arrays."""
    for name, x in options.items():
        if name in REFUSED:
            raise TypeError(f"'{name}' is not taken here: JAX may call the solver at any time. Use cusink.sinkhorn")
        if name not in _names(solver):
            known = ", ".join(_names(solver))
            raise TypeError(f"unexpected keyword argument '{name}'; options of the solver are {known}")
        if name != "reach" and (isinstance(x, jax.Array) or (isinstance(x, np.ndarray) and x.ndim)):
            raise TypeError(
                f"'{name}' must be no array, as what is compiled depends on it; got {kind(x)}. Pass a number, such as "
                f"float({name}); mark it with static_argnames under jit"
            )
    chosen = {name: _constant(name, x) for name, x in options.items()}
    _check(**{name: x for name, x in chosen.items() if name != "reach"})
    return tuple(chosen.items())


def _check(
    max_iter: Any = 1, tol: Any = "auto", memory_limit: Any = None, gap: Any = None, check: Any = True, **more: Any
) -> None:
    """Check values as the solver does: JAX hides an error of what it calls back in one of its own."""
    checks.options(max_iter, None if isinstance(tol, str) and tol == "auto" else tol, **more)
    checks.gap(gap, None)
    flag("check", check)
    if memory_limit is not None:
        positive_bytes(memory_limit)


@cache
def _names(solver: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the options of a solver that the losses leave to it."""
    own = ("eps", "C_aa", "C_bb", "debiased", "normalise", *REFUSED)
    given = inspect.signature(solver).parameters.values()
    return tuple(x.name for x in given if x.kind is x.KEYWORD_ONLY and x.name not in own)


def _constant(name: str, x: Any) -> Any:
    """Return an option that can be hashed: a tuple in place of a list, a number in place of an array without axes."""
    if isinstance(x, list):
        return tuple(x)
    return x.item() if name != "reach" and isinstance(x, np.ndarray) else x
