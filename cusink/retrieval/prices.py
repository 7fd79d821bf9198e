"""The prices of the marginals of a call."""

from typing import Any, get_args

from cusink.checks.scalars import one_of
from cusink.solver import checks
from cusink.types import MatrixValue, Method, Reach


def prices_of(reach: Any, method: Method, value: MatrixValue) -> Reach | None:
    """Check the prices of the marginals for a value, None where both are to be met."""
    one_of("value", value, get_args(MatrixValue))
    return checks.reach(reach, method)
