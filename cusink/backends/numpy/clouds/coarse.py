"""Coarse levels of two large clouds in NumPy."""

from cusink.backends import coarse
from cusink.backends.numpy import limits
from cusink.costs.points import PointCosts
from cusink.types import HostArray


def levels(C: PointCosts, a: HostArray, b: HostArray) -> list[coarse.Level]:
    """Return the levels of one problem between clouds, see `cusink.costs.operators.CoarseLevels`."""
    sizes = limits.LIMITS
    return coarse.levels(
        C,
        a,
        b,
        coarse.Sizes(
            pairs=sizes.cloud_cell_pairs,
            points=sizes.cloud_coarse_points,
            ratio=sizes.cloud_level_ratio,
            least_run=sizes.cloud_least_run,
        ),
    )
