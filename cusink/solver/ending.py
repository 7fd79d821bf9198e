"""How problems end: potentials in their gauge, errors with what rounding adds, at once or when somebody asks."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cusink.costs.cost import Solvable
from cusink.costs.operators import Iteration
from cusink.solver import gauge
from cusink.solver.solution import Solution
from cusink.types import Array, HostArray

PLAN_ROUNDING = 1.5 * float(np.finfo(float).eps)  # of an exponent f / eps + log a + g / eps + log b - C / eps
LARGEST_EXPONENT = 700.0

Potentials = tuple[Array, Array]


class Spared:
    """Problems that end without potentials where a bound on the size of these will do.

    Of `keep` the potentials are to be had later, else nobody will ask. Bounds above `most` will not do.
    """

    def __init__(self, problems: int, most: float, keep: bool) -> None:
        self.most, self.keep = most, keep
        self.sizes = np.full(problems, np.nan)  # bounds; NaN for problems that end with their potentials
        self._parts: dict[int, tuple[HostArray | slice, Callable[[], Potentials]]] = {}
        self._part = np.full(problems, -1)  # the number of the part that has a problem, -1 for none

    def measure(
        self, iteration: Iteration, index: HostArray, at: HostArray | slice, may: bool
    ) -> tuple[Array, Array] | None:
        """Return cost and error of the problems at `index` of an iteration, which are those `at` of all.

        They end so if they `may`; None where they are to be finished with their potentials.
        """
        found = iteration.measure(index, self.keep) if may else None
        self.sizes[at], self._part[at] = np.nan, -1
        if found is None or (found.size > self.most).any():
            return None
        self.sizes[at] = found.size
        if found.potentials is not None:
            self._part[at] = number = len(self._parts)
            self._parts[number] = at, found.potentials
        return found.cost, found.error

    def put(self, out: Solution) -> Solution:
        """Return the solution with the potentials that were kept, in arrays that are not those of `out`."""
        out = out._replace(f=out.f.copy(), g=out.g.copy())
        for number, (at, potentials) in self._parts.items():
            own = self._part[at] == number
            if own.any():  # else all of them went on
                f, g = potentials()
                if isinstance(at, slice) and own.all():
                    out = out.ended(at, f, g, out.cost)
                else:
                    rows = np.arange(len(self._part))[at][own]
                    out = out.ended(rows, f[own], g[own], out.cost[rows])
        return out


@dataclass(frozen=True, eq=False, kw_only=True)
class Ending:
    """What solved problems with weights a (B, n) and b (B, m) still need, to be those that were given.

    Their masses were divided by `mass` (B,), if any. `of_plan` is the rounding of an exponent of the plan and
    `rounding` what an error has beside. Without `islands` a constant is all that may move from f to g; if they are
    `steep`, potentials have digits to lose, and where they were `begun` by others they may have lost some.
    """

    C: Solvable
    a: Array
    b: Array
    eps: float
    mass: Array | None
    rounding: float
    of_plan: float
    islands: bool
    steep: bool
    begun: bool

    @property
    def lift(self) -> Array:
        """By how much (B, 1) the potentials are too large."""
        assert self.mass is not None
        return (self.eps / 2 * np.log(2)) * self.C.xp.log2(self.mass)[:, None]

    def potentials(self, f: Array, g: Array, at: HostArray | slice = slice(None)) -> tuple[Array, Array, HostArray]:
        """Return the potentials of the problems `at`, and their sizes over eps."""
        C, eps, xp, a, b = self.C, self.eps, self.C.xp, self.a[at], self.b[at]
        if self.mass is not None:
            f, g = f - self.lift[at], g - self.lift[at]
        # Digits that potentials did not have then they do not have later.
        before = C.to_host(gauge.size(xp, a, b, f, g)) / eps if self.steep or self.begun else None
        if self.islands and len(f):
            f, g, largest = gauge.sized(C, a, b, f, g, eps)
        else:
            largest = gauge.size(xp, a, b, f, g)
        sizes = C.to_host(largest) / eps
        if before is not None:
            sizes = np.maximum(sizes, before)
        if self.steep:
            gauge.equalise(C, a, b, f, g, eps, gauge.DIGITS_IF_STEEP)
        return f, g, sizes

    def bounds(self, sizes: HostArray) -> HostArray:
        """Return bounds (B,) over eps on the sizes of the potentials from those before they were moved."""
        moved: HostArray = sizes if self.mass is None else sizes + self.eps * abs(np.log(self.C.to_host(self.mass)))
        return moved / self.eps

    def errors(self, error: HostArray, sizes: HostArray) -> HostArray:
        """Return marginal errors (B,) with what rounding may have done to them."""
        return with_rounding(error + self.rounding, self.of_plan * sizes)


def with_rounding(error: HostArray, of_plan: HostArray) -> HostArray:
    """Return marginal errors (B,) of plans whose exponents are off by `of_plan` (B,) beside."""
    total: HostArray = error + np.expm1(np.minimum(of_plan, LARGEST_EXPONENT))
    total[of_plan > LARGEST_EXPONENT] = np.finfo(float).max
    return total


def brought(
    C: Solvable, a: Array, b: Array, f: Array, g: Array, eps: float, error: Array
) -> tuple[Array, Array, HostArray]:
    """Return potentials that nobody solved for in their gauge, and their errors (B,) with what rounding may have done.

    Digits that they did not have before they do not have then.
    """
    before = gauge.size(C.xp, a, b, f, g)
    f, g, after = gauge.sized(C, a, b, f, g, eps)
    sizes = C.to_host(C.xp.maximum(before, after)) / eps
    return f, g, with_rounding(C.to_host(error), PLAN_ROUNDING * sizes)


class Later:
    """Potentials f (B, n) and g (B, m) and errors (B,) that are computed when somebody asks for them first."""

    def __init__(self, out: Solution, spared: Spared, ending: Ending) -> None:
        self._parts: tuple[Solution, Spared, Ending] | None = (out, spared, ending)
        self._found: tuple[Array, Array, HostArray] | None = None

    def found(self) -> tuple[Array, Array, HostArray]:
        """Return ``(f, g, error)``."""
        parts = self._parts  # read before `_found`: another thread writes that first
        if self._found is None:
            assert parts is not None
            out, spared, ending = parts
            out = spared.put(out)
            f, g, sizes = ending.potentials(out.f, out.g)
            self._found, self._parts = (f, g, ending.errors(out.error, sizes)), None
        return self._found


def ended(out: Solution, spared: Spared | None, ending: Ending, tol: float) -> Solution:
    """Return what problems ended with as it is handed on; if all are within `tol`, kept potentials are left for later.

    Then its errors are bounds, as are those of problems whose potentials nobody will ask for.
    """
    if spared is None or np.isnan(spared.sizes).all():  # as where the backend has no `measure`
        f, g, sizes = ending.potentials(out.f, out.g)
        return out._replace(f=f, g=g, error=ending.errors(out.error, sizes))
    known, sizes = np.isnan(spared.sizes), ending.bounds(spared.sizes)
    if not spared.keep:
        f, g = (x[known[: len(x)]] for x in (out.f, out.g))  # they have no rows if none are known
        f, g, sizes[known] = ending.potentials(f, g, known)
        return out._replace(f=f, g=g, error=ending.errors(out.error, sizes))
    later, error = Later(out, spared, ending).found, ending.errors(out.error, sizes)
    if known.any() or not (out.converged & (error <= tol)).all():
        f, g, error = later()
        return out._replace(f=f, g=g, error=error)
    return out._replace(error=error, later=later)
