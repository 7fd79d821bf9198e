"""One problem between two clouds under way in NumPy, with one pass over its kernel for each iteration.

A block of rows of the kernel serves both sums that it has a part in while it is in the cache: those over its columns,
which give the block its next f, and its part of those over the rows with that f, which the next g-update needs.
"""

import numpy as np

from cusink.backends.numpy.certificate import relax
from cusink.backends.numpy.clouds.kernel import PlanKernel
from cusink.backends.numpy.clouds.reductions import hardmin_of, softmin_of
from cusink.backends.numpy.forms.log import marginal_error, relax_log

SLACK = 12.0  # log of how far below 1 a sum may fall before what is left out of it shows
YOUNG = 5  # iterations of a kernel; one that serves no more was too short of slack


class AbsorbedProblem:
    """A problem as potentials in float64, which its kernel A holds, and scalings u, v by which they have moved since.

    Where sums cannot be certified, the potentials are absorbed anew; where that does not help, the iteration is taken
    as log-sum-exp. Bins of weight zero take no part before the end. All vectors are in the order of the side.
    """

    def __init__(self, pairs, a, b, f, g, eps, budget):
        self.pairs, self.eps, self.dtype = pairs, eps, a.dtype
        self.filled = a > 0, b > 0
        self.side, self.turned = pairs.side(1, *self.filled), pairs.side(0, *self.filled[::-1])
        order, columns = self.side.order, self.side.columns
        self.a, self.b = a[order], b[columns]
        self.mass = float(self.b.sum(dtype=np.float64))
        self.f, self.g = f[order].astype(np.float64), g[columns].astype(np.float64)
        self.u, self.v = np.ones_like(self.a), np.ones_like(self.b)
        self.cold = not (f.any() or g.any())  # far from the solution, where a kernel would be no use
        self.row_error, self.slack, self.age = np.inf, SLACK, 0
        self.kernel = self.S = None  # A, and its sums over the rows: A' (a u)
        self.buffer, self.budget = np.empty(max(self.side.shape), self.dtype), budget

    def advance(self, omega, count, pool):
        """Take `count` iterations; return a bound on the marginal error after one more plain f-update."""
        if self.S is None and not self.cold:
            self._absorb(self.f, self.g, pool)
        for _ in range(count):
            if not (self._iterate(omega - 1, pool) or self._iterate_anew(omega - 1, pool)):
                self._iterate_log(omega - 1, pool)
        return self._column_error(self.S) + (self.row_error if omega > 1 else 0.0)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no certificate accepts them
    def _iterate(self, excess, pool):
        """One iteration by products with A; False, and nothing has moved, where one of them is not certified."""
        if self.S is None or not self._certified(self.S, self.a * self.u):
            return False
        v, u = self.v.copy(), self.u.copy()
        self._relax(v, np.divide(1, self.S), excess)
        q = self.b * v

        def weigh(rows, sums):
            self._relax(u[rows], np.divide(1, sums), excess, rows)
            return self.a[rows] * u[rows]

        T, S = self.kernel.sums(q, weigh, pool)
        if not self._certified(T, q):
            return False
        if excess:
            self.row_error = float(np.abs(self.a * (u * T - 1)).sum(dtype=np.float64)) / self.mass
        self.u, self.v, self.S = u, v, S
        self.age += 1
        return True

    def _iterate_anew(self, excess, pool):
        """As `_iterate` with potentials absorbed where they are now; False at once if they are already."""
        if self.age == 0:
            return False
        if self.age < YOUNG:
            self.slack *= 2
        self._absorb(*self.potentials(), pool)
        return self._iterate(excess, pool)

    def _iterate_log(self, excess, pool):
        """One iteration whose sums may lie anywhere: log-sum-exp for g; then a kernel in which all sums are in range.

        It absorbs the new g, and for f the same with the largest term in the place of the sum.
        """
        eps, (old, g) = self.eps, self.potentials()
        g = relax_log(g, softmin_of(self.turned, np.log(self.a, dtype=np.float64) + old / eps, eps, pool), excess, eps)
        f = hardmin_of(self.side, np.log(self.b, dtype=np.float64) + g / eps, eps, pool)
        self._forget(f, g)
        plain, new = np.empty_like(f), np.empty_like(f)

        def weigh(rows, sums):  # between 1 and the number of columns
            plain[rows] = f[rows] - eps * np.log(sums, dtype=np.float64)
            new[rows] = relax_log(old[rows], plain[rows], excess, eps)
            self.u[rows] = np.exp((new[rows] - f[rows]) / eps)
            return self.a[rows] * self.u[rows]

        _, self.S = self.kernel.sums(self.b, weigh, pool)
        if excess:
            self.row_error = float(marginal_error(self.a[None], new[None], plain[None], eps)[0])

    def potentials(self):
        """F and g as they are now."""
        return (
            self.f + self.eps * np.log(self.u, dtype=np.float64),
            self.g + self.eps * np.log(self.v, dtype=np.float64),
        )

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def finish(self, pool):
        """Return ``(f, g, cost, error)`` after one plain f-update, in the caller's order."""
        if self.kernel is None:
            self._absorb(self.f, self.g, pool)
        T, S, cost = self._priced(pool)
        if not self._certified(T, self.b * self.v):
            _, g = self.potentials()
            f = softmin_of(self.side, np.log(self.b, dtype=np.float64) + g / self.eps, self.eps, pool)
            self._absorb(f, g, pool)
            T, S, cost = self._priced(pool)
        f = self.f - self.eps * np.log(T, dtype=np.float64)
        _, g = self.potentials()
        return *self._with_empty(f, g, pool), cost, self._column_error(S)

    def _priced(self, pool):
        """``T = A q``, and the sums over the rows and the transport cost after a plain f-update."""
        q = self.b * self.v
        T, S, TC, _ = self.kernel.priced_sums(q, lambda rows, sums: self.a[rows] / sums, pool, columns=False)
        return T, S, float((self.a / T) @ TC)

    def _with_empty(self, f, g, pool):
        """Potentials of all bins: one without weight has its own softmin."""
        out = []
        for axis, own, weights, potential in ((1, f, self.b, g), (0, g, self.a, f)):
            filled, others = self.filled if axis == 1 else self.filled[::-1]
            place = self.side.order if axis == 1 else self.side.columns
            full = np.empty(len(filled))
            full[place] = own
            if not filled.all():
                side = self.pairs.side(axis, ~filled, others)
                logits = np.log(weights, dtype=np.float64) + potential / self.eps
                full[side.order] = softmin_of(side, logits, self.eps, pool)
            out.append(full)
        return out

    def _column_error(self, S):
        return float(np.abs(self.b * (self.v * S - 1)).sum(dtype=np.float64)) / self.mass

    def _relax(self, old, new, excess, rows=slice(None)):
        """Move `old` towards its plain update `new`."""
        if excess:
            relax(old, new, self.dtype.type(excess), self.buffer[rows])
        else:
            old[...] = new

    def _absorb(self, f, g, pool):
        """Make A anew from these potentials."""
        self._forget(f, g)
        _, self.S = self.kernel.sums(None, lambda rows, _: self.a[rows], pool)

    def _forget(self, f, g):
        """Begin with a new A, of which nothing is made yet."""
        self.f, self.g, self.age = f, g, 0
        self.u, self.v = np.ones_like(self.a), np.ones_like(self.b)
        least = float(np.finfo(self.dtype).eps) * np.exp(-self.slack) / self.mass
        self.kernel = None  # so that there is never memory for two
        self.kernel = PlanKernel(self.side, f, g, self.eps, self.budget, least)

    def _certified(self, sums, factor):
        """Whether no entry of the sums of A times `factor` has lost more than rounding.

        An entry of A that was raised to tiny, or left out, costs a sum at most tiny or `least` times the factor, and a
        product below tiny at most tiny.
        """
        info = np.finfo(self.dtype)
        tiny, total = float(info.tiny), float(factor.sum(dtype=np.float64))
        floor = ((tiny + self.kernel.least) * total + tiny * len(factor)) / float(info.eps)
        return bool(sums.min() >= floor and sums.max() <= info.max and factor.min() >= tiny)
