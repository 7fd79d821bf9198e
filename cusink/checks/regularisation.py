"""Rules for eps: a number, one for each problem of a batch, or a share of a statistic of the cost."""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from cusink.checks.arrays import one_array, to_host
from cusink.checks.foreign import taken
from cusink.checks.scalars import one_of, positive_number, price_in_range, regularisation
from cusink.types import Eps, Statistic

__all__ = [
    "RelativeEps",
]

RELATIVE = "or a share of the costs, such as cusink.RelativeEps(0.05, 'mean')"


@dataclass(frozen=True)
class RelativeEps:
    """A regularisation relative to the costs: `share` times the largest, the mean or the median of them.

    It takes the place of the number `eps`. Each problem with a cost of its own has its own eps.

    Parameters
    ----------
    share : float
        The regularisation in units of the statistic.
    of : {"max", "mean", "median"}
        The statistic of the finite costs of the problem. All pairs of bins count the same, whatever their weights.

    Attributes
    ----------
    share, of
        As given.

    Raises
    ------
    TypeError, ValueError
        A share that is no positive number, a word that is none of these.

    Notes
    -----
    Of an array all statistics are exact, and so are the largest and the mean cost of a `cusink.Grid`. The costs of a
    `cusink.PointCloud` are looked at for up to 2**22 pairs of points; where there are more, for points that are evenly
    spaced in their order, the same in every call. So are those of a grid for the median.

    The eps that was taken is the attribute `eps` of the result. Gradients are those at that number: none goes through
    the statistic.

    Examples
    --------
    >>> import cusink
    >>> C = cusink.cost_matrix([0.0, 1.0, 3.0], metric="cityblock")
    >>> cusink.sinkhorn(None, None, C, eps=cusink.RelativeEps(0.1, "max")).eps
    0.30000000000000004
    """

    share: float
    of: Statistic = "mean"

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", positive_number("share", taken("share", self.share)))
        one_of("of", self.of, get_args(Statistic))


def in_units(eps: RelativeEps, size: Eps, costs: str = "'C'") -> Eps:
    """Return eps as numbers, given the statistic of the `costs` that it is relative to."""
    wrong = ~(np.isfinite(size) & (np.asarray(size) > 0))
    if wrong.any():
        at = f" in problem {int(wrong.argmax())}" if wrong.ndim else ""
        value = np.atleast_1d(size)[np.atleast_1d(wrong)][0]
        raise ValueError(
            f"'eps' is relative to the {eps.of} of {costs}, which must be positive; got {value:g}{at}. Pass a number"
        )
    return eps.share * size


def relative_or_numbers(eps: Any) -> Eps | RelativeEps:
    """Check the `eps` of a call."""
    return eps if isinstance(eps, RelativeEps) else regularisations(eps, f"a number, one for each problem, {RELATIVE}")


def regularisations(eps: Any, wanted: str = "a number") -> Eps:
    """Check a number, or an array (B,); return a float or a new NumPy array of float64."""
    if not isinstance(eps, (list, tuple)) and getattr(eps, "ndim", 0) == 0:
        return regularisation(eps, wanted)
    given = one_array("eps", eps)
    if given.ndim != 1 or not given.size:
        raise ValueError(
            f"'eps' must be a number, or an array of one for each problem, shape (B,); got shape {tuple(given.shape)}"
        )
    if given.dtype.kind == "b":
        raise TypeError("'eps' must hold numbers; got dtype bool")
    each = to_host(given).astype(np.float64)
    wrong = ~(np.isfinite(each) & (each > 0))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(f"'eps' must be positive and finite; got {each[at]:g} at [{at}]")
    return each


def for_problems(eps: Eps, size: int, batched: bool, dtype: Any) -> Eps:
    """Check that there is one eps for each of `size` problems, or one for all, in the range of the computation."""
    if not isinstance(eps, np.ndarray):
        price_in_range("eps", eps, dtype)
        return eps
    if not batched:
        raise ValueError(
            f"'eps' must be a number for one problem; got {len(eps)} of them. To solve it with each, pass 'a' with a "
            "batch axis: a[None]"
        )
    for value in (eps.min(), eps.max()):
        price_in_range("eps", float(value), dtype)
    return np.broadcast_to(eps, (size,)).copy()
