"""What the loop of the solver hands on: solutions of many problems, and callbacks for a part of them."""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np

from cusink.placement import array_module
from cusink.types import Array, ArrayModule, HostArray

Callback = Callable[[int, HostArray], Any]
FoundLater = Callable[[], tuple[Array, Array, HostArray]]  # f (B, n), g (B, m), errors (B,)


class Stage(NamedTuple):
    """A start between the means of n and m cells, or at a larger `eps`."""

    n: int
    m: int
    eps: float
    n_iter: int


class Solution(NamedTuple):
    """Potentials f (B, n) and g (B, m), transport cost (B,); error, iterations, convergence (B,) in NumPy.

    `needed` (B,) estimates how many iterations a problem that ran out of them takes in all: inf where the error does
    not fall, NaN for other problems. `newton` (B,) are those of the iterations at `eps` itself that Newton's method
    took, `omitted` (B, 3) what `cusink.costs.operators.Iteration` calls so, and `stages` the starts from coarse to
    fine. `computed` is the dtype of the iterations. Where the potentials are left for `later`, f and g have no rows,
    and `error` bounds the errors.
    """

    f: Array
    g: Array
    cost: Array
    error: HostArray
    n_iter: HostArray
    converged: HostArray
    needed: HostArray
    newton: HostArray
    omitted: HostArray
    computed: Any
    later: FoundLater | None = None
    stages: tuple[Stage, ...] = ()

    @classmethod
    def empty(cls, xp: ArrayModule, a: Array, b: Array) -> Self:
        """Return room for the solutions of problems with weights a (B, n) and b (B, m)."""
        return cls.of_no_potentials(xp, a, b)._replace(f=xp.empty(a.shape), g=xp.empty(b.shape))

    @classmethod
    def of_no_potentials(cls, xp: ArrayModule, a: Array, b: Array) -> Self:
        """Return the same without room for potentials, which `ended` makes when there are some."""
        return cls(
            xp.empty((0, a.shape[1])),
            xp.empty((0, b.shape[1])),
            xp.empty(len(a), a.dtype),
            np.full(len(a), np.inf),
            np.zeros(len(a), np.int64),
            np.ones(len(a), bool),
            np.full(len(a), np.nan),
            np.zeros(len(a), np.int64),
            np.zeros((len(a), 3)),
            a.dtype,
        )

    def ended(self, at: HostArray | slice, f: Array, g: Array, cost: Array) -> Self:
        """Return the solution with potentials and costs of the problems `at`; a slice is all, whose arrays are kept."""
        if isinstance(at, slice):
            f, g = (x.astype(np.float64, order="C", copy=False) for x in (f, g))
            return self._replace(f=f, g=g, cost=cost.astype(self.cost.dtype, copy=False))
        out = self
        if not len(self.f):
            xp, count = array_module(f), len(self.error)
            out = self._replace(f=xp.empty((count, f.shape[1])), g=xp.empty((count, g.shape[1])))
        out.f[at], out.g[at], out.cost[at] = f, g, cost
        return out

    def put(self, at: HostArray, found: "Solution") -> None:
        """Take over the solutions of the problems `at`."""
        for target, result in zip(self[:9], found[:9], strict=True):
            target[at] = result


def later(callback: Callback | None, out: Solution, slow: HostArray) -> Callback | None:
    """Return the callback for the problems `slow` of `out`, which have iterated before."""
    if callback is None:
        return None

    def watch(iteration: int, error: HostArray) -> None:
        every = out.error.copy()
        every[slow] = error
        callback(int(out.n_iter[slow].max()) + iteration, every)

    return watch


def in_range(value: Array, dtype: Any) -> Array:
    """Return a value (B,) of the host with finite numbers within the range of float32, if that is the user's dtype.

    Those of potentials without digits may be of any size, and stay numbers beside an error that says so.
    """
    if dtype != np.float32 or not isinstance(value, np.ndarray) or value.dtype != np.float64:
        return value
    most = float(np.finfo(np.float32).max)
    return np.where(np.isfinite(value), np.clip(value, -most, most), value)
