"""The softmin of one problem near potentials that are known, of the pairs that count."""

from typing import Any

from cusink.costs.cost import Cost
from cusink.costs.operators import NearSoftmin
from cusink.types import Array


def near_softmin(C: Cost[Any], a: Array, b: Array, eps: float, *, many: bool) -> NearSoftmin | None:
    """Return a softmin as `cusink.costs.operators.StartNearSoftmin` does; None where all pairs are looked at."""
    start = C.ops.near_softmin
    return None if start is None else start(C.data, a, b, eps, many)
