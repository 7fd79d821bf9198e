"""The operators of all kinds of cost, by array library. Only `cusink/__init__.py` imports this file."""

from typing import Any

from cusink.backends.numpy import dense, grid, points
from cusink.costs.kinds import Kind
from cusink.costs.operators import Operators


def numpy_operators() -> dict[Kind, Operators[Any]]:
    """Return the operators in NumPy."""
    return {"dense": dense.OPERATORS, "points": points.OPERATORS, "grid": grid.OPERATORS}


def cupy_operators() -> dict[Kind, Operators[Any]]:
    """Return the operators in CuPy, which must be installed; loaded at the first array that asks for them."""
    from cusink.backends.cupy import dense, grid, points

    return {"dense": dense.OPERATORS, "points": points.OPERATORS, "grid": grid.OPERATORS}
