"""A solved barycenter: the scalings of its plans, from which its derivatives follow."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.costs.cost import Cost
from cusink.costs.each import groups
from cusink.costs.images import Cells, as_images
from cusink.types import Array, ArrayModule, Eps, HostArray


class Found(NamedTuple):
    """Errors and iterations (B,) of problems in NumPy, and logarithms of scalings.

    `v` (B, K, m) are those of the columns of the K plans, `log_p` (B, m), in float64, are those of the barycenters, and
    `d` (B, m) those of ``OT(p, p)`` if the barycenter is debiased.
    """

    error: HostArray
    n_iter: HostArray
    v: Array
    log_p: Array
    d: Array | None

    @classmethod
    def empty(cls, xp: ArrayModule, A: Array, bins: int, debiased: bool) -> "Found":
        """Return room for the solutions of problems with histograms A (B, K, n)."""
        size, dtype = len(A), A.dtype
        d = xp.empty((size, bins), dtype) if debiased else None
        v, log_p = xp.empty((*A.shape[:2], bins), dtype), xp.empty((size, bins))
        return cls(np.full(size, np.inf), np.zeros(size, np.int64), v, log_p, d)

    def put(
        self,
        at: HostArray,
        log_p: Array,
        error: HostArray,
        n_iter: int | HostArray,
        scalings: tuple[Array, Array | None],
    ) -> None:
        """Note that the problems `at` have stopped."""
        self.log_p[at], self.error[at], self.n_iter[at] = log_p, error, n_iter
        self.v[at] = scalings[0]
        if self.d is not None:
            self.d[at] = scalings[1]


@dataclass(frozen=True, eq=False, kw_only=True)
class SolvedBarycenter:
    """Checked problems and their solution, see `Found`. `total` (B,) are the sums of the weights as they came.

    eps is one for all or (B,). A (B, K, n) and `weights` (B, K), of sum 1, and the cost (n, m) are in the precision of
    the computation.
    """

    A: Array
    weights: Array
    total: Array
    C: Cost[Any]
    eps: Eps
    v: Array
    log_p: Array
    d: Array | None
    dtype: Any
    batched: bool
    image: Cells = None  # as in `BarycenterProblem`

    @property
    def xp(self) -> ArrayModule:
        """The array module."""
        return self.C.xp

    def at(self, problems: slice | HostArray) -> Self:
        """Return some of the problems, which have one eps."""
        return self._each(lambda x: x[problems])

    def of_one_eps(self) -> Iterator[tuple[HostArray, float, Self]]:
        """Iterate over the problems by their eps: their numbers, eps, and themselves."""
        if not isinstance(self.eps, np.ndarray):
            yield np.arange(len(self.A)), self.eps, self
            return
        for value, at in groups(self.eps):
            yield at, value, replace(self.at(at), eps=value)

    def in_float64(self) -> Self:
        """Return the same problems in float64."""
        return replace(self._each(lambda x: x.astype(np.float64, copy=False)), C=self.C.astype(np.float64))

    def in_unit(self) -> tuple[Self, Array]:
        """Return the same problems with masses of about 1, and the power of two (B,) that is the unit of each.

        Products of two masses of 1e-170 are no numbers.
        """
        xp, mass = self.xp, self.xp.exp(self.log_p).sum(axis=1)
        unit = xp.ldexp(xp.ones_like(mass), xp.rint(xp.log2(mass)).astype(np.int32))
        log = xp.log(unit)
        A, v, log_p = self.A / unit[:, None, None], self.v - log[:, None, None], self.log_p - log[:, None]
        return replace(self, A=A, v=v, log_p=log_p, d=None if self.d is None else self.d - log[:, None]), unit

    def _each(self, function: Callable[[Array], Array]) -> Self:
        names = ("A", "weights", "total", "v", "log_p", *(() if self.d is None else ("d",)))
        return replace(self, **{name: function(getattr(self, name)) for name in names})

    def to_user(self, array: Array) -> Array:
        """Return `array` (B, ...) in the shape and the dtype of the user's arrays."""
        array = narrowed(array, self.dtype, self.xp)
        return array if self.batched else array[0]

    def bins_to_user(self, array: Array) -> Array:
        """Return `array` (B, ..., bins) in the shape and the dtype of the user's histograms."""
        return as_images(self.to_user(array), self.image)
