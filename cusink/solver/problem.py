"""A checked problem, and a solved one."""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from cusink.checks.arrays import narrowed
from cusink.checks.regularisation import RelativeEps
from cusink.costs.cost import Cost
from cusink.costs.images import Cells, as_images
from cusink.costs.logits import logits
from cusink.deferred import Deferring
from cusink.solver.gauge import size
from cusink.types import Array, ArrayModule, Eps, HostArray, Reach

NO_MASS = 2000  # exponent below which the entries of a plan are zero, of weights of any size
NARROW = 1e-4  # relative rounding of the plan up to which gradients are taken in float32


@dataclass(frozen=True, eq=False, kw_only=True)
class ArrivedProblem:
    """Arrays of a call that have one library, dtype and fitting shapes; nobody has looked at their values.

    Weights a (n,) or (B, n) or None, b likewise; `init` the same for potentials; `size` is B.
    """

    a: Array | None
    b: Array | None
    init: tuple[Array, Array] | None
    C: Cost[Any]
    eps: Eps | RelativeEps
    dtype: Any
    size: int
    batched: bool
    batch_of_one: bool
    images: tuple[Cells, Cells]
    given: tuple[Any, Any]  # a and b as the caller gave them
    users: tuple[Any, ...]  # all arrays of the caller


@dataclass(frozen=True, eq=False, kw_only=True)
class CheckedProblem:
    """Weights a (B, n), b (B, m) and the cost in the dtype of the computation; `dtype` is the user's."""

    a: Array
    b: Array
    C: Cost[Any]
    dtype: Any
    batched: bool
    eps: Eps
    init: tuple[Array, Array] | None = None
    batch_of_one: bool = False  # C came as (1, n, m)
    images: tuple[Cells, Cells] = (None, None)  # the shapes of a and b beside a grid, if they came as images


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem(Deferring):
    """The solved problem in the precision it was computed in: a, f (B, n); b, g (B, m).

    Of unbalanced transport, with prices `reach`, the potentials are ``f + shift`` and ``g - shift`` with `shift` (B,)
    in float64, and the plan is that of f and g, see `cusink.solver.unbalanced`. A bin with weight that `C` forbids all
    partners has +inf there: all of its mass stays behind. f and g may be deferred.
    """

    a: Array
    b: Array
    C: Cost[Any]
    eps: Eps
    f: Array
    g: Array
    dtype: Any
    batched: bool
    reach: Reach | None = None
    shift: Array | None = None
    batch_of_one: bool = False  # C came as (1, n, m)
    proved: tuple[Array, Array] | None = None  # bounds (B,) as close as the caller asked for
    images: tuple[Cells, Cells] = (None, None)  # as in `CheckedProblem`

    @classmethod
    def of(cls, given: CheckedProblem, f: Array, g: Array, reach: Reach | None, shift: Array | None) -> Self:
        """Return a checked problem with its potentials."""
        return cls(
            a=given.a,
            b=given.b,
            C=given.C,
            eps=given.eps,
            f=f,
            g=g,
            dtype=given.dtype,
            batched=given.batched,
            reach=reach,
            shift=shift,
            batch_of_one=given.batch_of_one,
            images=given.images,
        )

    @property
    def xp(self) -> ArrayModule:
        """The array module."""
        return self.C.xp

    def eps_of(self, problems: slice | HostArray) -> Eps:
        """Return eps of some problems, as operators take it."""
        return self.eps[problems] if isinstance(self.eps, np.ndarray) else self.eps

    def eps_as(self, axes: int, problems: slice | HostArray = slice(None)) -> float | Array:
        """Return eps of some problems to calculate with arrays (B, ...) of so many axes."""
        eps = self.eps_of(problems)
        if not isinstance(eps, np.ndarray):
            return eps
        return self.xp.asarray(eps, self.f.dtype).reshape(-1, *(1,) * (axes - 1))

    def in_one_dtype(self) -> Self:
        """Return the same problem with the potentials in the dtype of the cost, or all in float64.

        A dtype serves if it has the digits of the exponents.
        """
        if self.C.dtype == np.float64 or float(self.rounding().max()) > NARROW:
            return self.in_float64()
        f, g = (x.astype(self.C.dtype) for x in (self.f, self.g))
        return replace(self, f=f, g=g)

    def in_float64(self) -> Self:
        """Return the same problem in float64."""
        double = {name: getattr(self, name).astype(np.float64, copy=False) for name in "abfg"}
        return replace(self, C=self.C.astype(np.float64), **double)

    def logits(self) -> tuple[Array, Array]:
        """Return ``p = log a + f / eps`` and ``q = log b + g / eps``, -inf where the weight is zero."""
        a, b = self.moving()
        eps = self.eps_as(2)
        return logits(self.xp, a, self.f, eps), logits(self.xp, b, self.g, eps)

    def moving(self) -> tuple[Array, Array]:
        """Return the weights without those of bins that `C` forbids all partners, whose mass stays behind."""
        if self.reach is None:
            return self.a, self.b
        a, b = (self.xp.where(self.xp.isfinite(x), w, 0) for w, x in ((self.a, self.f), (self.b, self.g)))
        return a, b

    def potentials(self) -> tuple[Array, Array]:
        """Return the dual potentials; those of unbalanced transport have the shift and are in float64."""
        if self.shift is None:
            return self.f, self.g
        return self.f + self.shift[:, None], self.g - self.shift[:, None]

    def shown_potentials(self) -> tuple[Array, Array]:
        """Return the potentials with finite values for bins that no weight can reach, which have +inf inside.

        Such a bin gets the value at which a pair of it and an empty bin of the other side would enter the plan, and 0
        if all its pairs are forbidden.
        """
        xp, (f, g) = self.xp, self.potentials()
        if bool(xp.isfinite(f).all()) and bool(xp.isfinite(g).all()):
            return f, g
        C = self.C.astype(f.dtype)
        through_g = C.c_transform(xp.where(xp.isfinite(g), g, -xp.inf), 1)
        through_f = C.c_transform(xp.where(xp.isfinite(f), f, -xp.inf), 0)
        f, g = (xp.where(xp.isfinite(x), x, other) for x, other in ((f, through_g), (g, through_f)))
        return xp.where(xp.isfinite(f), f, 0), xp.where(xp.isfinite(g), g, 0)

    def to_user(self, array: Array) -> Array:
        """Return `array` (B, ...) in the shape and the dtype of the user's arrays."""
        return self.one_or_all(narrowed(array, self.dtype, self.xp))

    def one_or_all(self, array: Array) -> Array:
        """Return `array` (B, ...), or the first of it if the user gave one problem."""
        return array if self.batched else array[0]

    def bins_to_user(self, array: Array, side: int) -> Array:
        """Return `array` (B, bins) of the side of a (0) or b (1) in the shape and the dtype of its weights."""
        return as_images(self.to_user(array), self.images[side])

    def rounding(self) -> Array:
        """Return a bound (B,) on the relative error of entries of the plan, taken in the dtype of this problem."""
        potentials = size(self.xp, *self.moving(), self.f, self.g)
        costs = self.xp.minimum(self.C.largest(), potentials + NO_MASS * self.eps_as(1))  # of pairs that carry mass
        return 8 * float(np.finfo(self.C.dtype).eps) * (1 + (potentials + costs) / self.eps_as(1))
