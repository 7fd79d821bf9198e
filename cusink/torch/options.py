"""Options that the functions here leave to the solver, known by name before anything is solved."""

import inspect
from typing import Any

from cusink.solver.sinkhorn import sinkhorn

OWN = ("eps", "normalise")  # arguments of the functions themselves
NAMES = tuple(  # made here, for code under torch.compile cannot look at signatures
    x.name for x in inspect.signature(sinkhorn).parameters.values() if x.kind is x.KEYWORD_ONLY and x.name not in OWN
)


def solver_options(function: str, options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return options of `cusink.sinkhorn` that a function of that name was given."""
    for name in options:
        if name not in NAMES:
            known = ", ".join(NAMES)
            raise TypeError(
                f"{function}() got an unexpected keyword argument '{name}'; options of the solver are {known}"
            )
    return tuple(options.items())
