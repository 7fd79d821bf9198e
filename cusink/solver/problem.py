"""A checked problem, and a solved one."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink.backends.operators import ops_for
from cusink.checks.arrays import narrowed

__all__ = [
    "Problem",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Arrays:
    """Checked a (B, n), b (B, m), C (n, m) or (B, n, m) in the dtype of the computation; `dtype` is the user's.

    C may be a cost that is not stored, see `cusink.backends.operators`.
    """

    a: Any
    b: Any
    C: Any
    dtype: Any
    batched: bool
    init: Any = None
    batch_of_one: bool = False  # C came as (1, n, m)


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """The solved problem in the precision it was computed in: a, f (B, n); b, g (B, m); C (n, m) or (B, n, m).

    Of unbalanced transport, with prices `reach` (rho_a, rho_b), the potentials are ``f + shift`` and ``g - shift`` with
    `shift` (B,) in float64, and the plan is that of f and g, see `cusink.solver.unbalanced`.
    """

    a: Any
    b: Any
    C: Any
    eps: float
    f: Any
    g: Any
    dtype: Any
    batched: bool
    reach: tuple[float, float] | None = None
    shift: Any = None
    batch_of_one: bool = False  # C came as (1, n, m)

    @classmethod
    def of(cls, given, eps, f, g, reach, shift):
        """The problem of checked arrays, `cusink.solver.checks.Arrays`, with its potentials."""
        names = ("a", "b", "C", "dtype", "batched", "batch_of_one")
        return cls(**{name: getattr(given, name) for name in names}, eps=float(eps), f=f, g=g, reach=reach, shift=shift)

    def logits(self):
        """``p = log a + f / eps`` and ``q = log b + g / eps``, -inf where the weight is zero."""
        xp, sides = ops_for(self.C).xp, ((self.a, self.f), (self.b, self.g))
        with np.errstate(divide="ignore"):  # an empty bin that nothing may reach has the potential +inf
            return tuple(xp.log(w) + xp.where(w > 0, x, x.dtype.type(0)) / self.eps for w, x in sides)

    def potentials(self):
        """The dual potentials, which of unbalanced transport have the shift and are in float64."""
        if self.reach is None:
            return self.f, self.g
        return self.f + self.shift[:, None], self.g - self.shift[:, None]

    def outward(self, array):
        """`array` (B, ...) in the shape and the dtype of what the user passed."""
        array = narrowed(array, self.dtype, ops_for(array).xp)
        return array if self.batched else array[0]

    def rounding(self):
        """Bound (B,) on the relative error of entries of the plan, taken in the dtype of this problem."""
        ops, xp = ops_for(self.C), ops_for(self.C).xp
        sides = ((self.a, self.f), (self.b, self.g))
        exponent = sum(xp.where(w > 0, xp.abs(x), 0).max(axis=1) for w, x in sides) + max(
            map(abs, ops.cost_range(self.C))
        )
        return 8 * float(np.finfo(self.C.dtype.name).eps) * (1 + exponent / self.eps)
