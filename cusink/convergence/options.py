"""The options of a solve, checked once and passed on as one value."""

from dataclasses import dataclass

from cusink.types import Method, Overrelaxation


@dataclass(frozen=True)
class Options:
    """Checked options of `cusink.sinkhorn`; hashable, so that it can be part of a key."""

    max_iter: int = 1000
    tol: float | None = 1e-6
    check_every: int = 10
    method: Method = "auto"
    overrelaxation: Overrelaxation = "auto"
