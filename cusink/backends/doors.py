"""The operators of all kinds of cost, by array library. Only `cusink/__init__.py` imports this file.

The backends are loaded by the first call that needs them: `import cusink` stays fast, and needs no CuPy.
"""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cusink.costs.kinds import Kind
    from cusink.costs.operators import Operators


@functools.cache
def numpy_operators() -> "dict[Kind, Operators[Any]]":
    """Return the operators in NumPy."""
    from cusink.backends.numpy import blocks, cells, dense, grid, points

    kinds: dict[Kind, Operators[Any]] = {"dense": dense.OPERATORS, "points": points.OPERATORS}
    return kinds | {"blocks": blocks.OPERATORS, "grid": grid.OPERATORS, "cells": cells.OPERATORS}


def cupy_operators() -> "dict[Kind, Operators[Any]]":
    """Return the operators in CuPy, which must be installed."""
    from cusink.backends.cupy import blocks, cells, dense, grid, points

    kinds: dict[Kind, Operators[Any]] = {"dense": dense.OPERATORS, "points": points.OPERATORS}
    return kinds | {"blocks": blocks.OPERATORS, "grid": grid.OPERATORS, "cells": cells.OPERATORS}
