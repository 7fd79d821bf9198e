"""One problem between two clouds under way in NumPy, with one pass over its kernel for each iteration.

While a block of rows of the kernel is in the cache it serves two sums: the sums over its columns, which give the block
its next f, and with this f its part of the sums over the rows, which the next g-update needs.
"""

import numpy as np

from cusink.backends.numpy.clouds.kernel import CostSums, PlanKernel
from cusink.backends.numpy.clouds.layout import SortedClouds
from cusink.backends.numpy.clouds.reductions import hardmin_of, softmin_of
from cusink.convergence.marginals import marginal_error
from cusink.convergence.rules import overrelaxed, overrelaxed_log
from cusink.types import Axis, HostArray

LOG_SLACK = 12.0  # log of how far below 1 a sum may fall before the columns left out of it show
LOG_SLACK_IF_LOST = 4.0  # the same, where a loss is counted; a kernel that proves too small is made again
MOST_LOG_SLACK = 40.0  # up to which that is tried before all pairs are looked at
MOST_REPAIRED = 1 / 16  # of the bins, that are repaired one by one
OUTLYING = 1e3  # a sum that large is far from 1, too
SHORT_LIVED_ITERATIONS = 5  # a kernel that serves no more had too little slack


class StabilisedProblem:
    """A problem as potentials in float64, which its kernel A holds, and scalings u, v by which they have moved since.

    Where sums cannot be certified, A absorbs the potentials; where that does not help, the iteration is taken
    as log-sum-exp. Bins of weight zero have no part until the end. All vectors are in the order of the side.
    """

    def __init__(
        self,
        clouds: SortedClouds,
        a: HostArray,
        b: HostArray,
        f: HostArray,
        g: HostArray,
        eps: float,
        budget: int,
        loss: float = 0.0,
    ) -> None:
        self.clouds, self.eps, self.dtype, self.budget = clouds, eps, a.dtype, budget
        self.loss = loss if clouds.celled else 0.0
        self.filled = a > 0, b > 0
        self.side, self.turned = clouds.side(1, *self.filled), clouds.side(0, *self.filled[::-1])
        order, columns = self.side.order, self.side.columns
        self.a, self.b = a[order], b[columns]
        self.mass = float(self.b.sum(dtype=np.float64))
        self.f, self.g = f[order].astype(np.float64), g[columns].astype(np.float64)
        self.u, self.v = np.ones_like(self.a), np.ones_like(self.b)
        self.cold = not (f.any() or g.any())  # far from the solution, where a kernel would be of no use
        self.row_error, self.slack, self.age = np.inf, LOG_SLACK, 0
        if self.loss:
            self.slack = LOG_SLACK_IF_LOST
        self.kernel: PlanKernel | None = None  # A
        self.S: HostArray | None = None  # A' (a u)
        self.scratch = np.empty(max(self.side.shape), self.dtype)
        self.omitted = 0.0, 0.0, 0.0  # see `cusink.costs.operators.Iteration`, once it is finished

    def advance(self, omega: float, count: int) -> float:
        """Take `count` iterations; return a bound on the marginal error after one more plain f-update."""
        if self.S is None and not self.cold:
            self._absorb(self.f, self.g)
            if self.loss:
                self._repair(only_if_seen=True)
        for _ in range(count):
            if not (self._iterate(omega - 1) or self._absorb_and_iterate(omega - 1)):
                self._iterate_log(omega - 1)
        return self._column_error(self.S) + (self.row_error if omega > 1 else 0.0)

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # infinities and NaN: no certificate accepts them
    def _iterate(self, excess: float) -> bool:
        """Take one iteration by products with A; return False, and change nothing, if one of them is not certified."""
        kernel, S = self.kernel, self.S
        if kernel is None or S is None or not self._certified(kernel, S, self.a * self.u):
            return False
        v, u = self.v.copy(), self.u.copy()
        self._relax(v, np.divide(1, S), excess)
        q = self.b * v

        def weigh(rows: slice, sums: HostArray) -> HostArray:
            self._relax(u[rows], np.divide(1, sums), excess, rows)
            return self.a[rows] * u[rows]

        T, S = kernel.sums(q, weigh)
        if not self._certified(kernel, T, q):
            return False
        if excess:
            self.row_error = float(np.abs(self.a * (u * T - 1)).sum(dtype=np.float64)) / self.mass
        self.u, self.v, self.S = u, v, S
        self.age += 1
        return True

    def _absorb_and_iterate(self, excess: float) -> bool:
        """Absorb the potentials, then `_iterate`; return False at once if A has them already."""
        if self.age == 0:
            return self.kernel is not None and self.loss > 0 and self._repair_and_iterate(excess)
        if self.age < SHORT_LIVED_ITERATIONS:
            self.slack *= 2
        self._absorb(*self.potentials())
        return self._iterate(excess)

    def _repair_and_iterate(self, excess: float) -> bool:
        """Repair the start, then `_iterate` with as much slack as it takes; return False where none is enough."""
        self._repair()
        while not self._iterate(excess):
            if self.slack > MOST_LOG_SLACK:
                return False
            self.slack *= 3
            self._absorb(self.f, self.g)
        return True

    def _repair(self, only_if_seen: bool = False) -> None:
        """Give the few bins whose sums are far from 1 potentials of their own softmin.

        A start from coarse levels is far off for points that share a cell with another cluster. One of them with too
        large a potential shows in the sums of all of its partners: the side with fewer such bins has the wrong ones.
        """
        for _ in range(2):
            kernel, S = self.kernel, self.S
            assert kernel is not None
            assert S is not None
            if only_if_seen and not self._outlying(S).any():  # spares a pass over all pairs that count
                return
            wrong = [self._outlying(sums) for sums in (S, kernel.row_sums(self.b))]
            counts = [int(np.count_nonzero(w)) or len(w) for w in wrong]
            axis: Axis = 1 if counts[1] < counts[0] else 0
            if counts[axis] > MOST_REPAIRED * len(wrong[axis]):
                return
            f, g = self.f.copy(), self.g.copy()
            own, other, weights = (g, f, self.a) if axis == 0 else (f, g, self.b)
            places, filled = (self.side.columns, self.filled) if axis == 0 else (self.side.order, self.filled[::-1])
            chosen, place = np.zeros(len(filled[1]), bool), np.empty(len(filled[1]), np.intp)
            chosen[places[wrong[axis]]] = True
            place[places] = np.arange(len(places))
            side = self.clouds.side(axis, chosen, filled[0])
            logits = np.log(weights, dtype=np.float64) + other / self.eps
            own[place[side.order]] = softmin_of(side, logits, self.eps)
            self._absorb(f, g)

    def _outlying(self, sums: HostArray) -> HostArray:
        """Return which sums are far from 1."""
        near: HostArray = (sums >= np.exp(-self.slack)) & (sums <= OUTLYING)  # NaN is not
        return ~near

    def _iterate_log(self, excess: float) -> None:
        """Take one iteration whose sums may be of any size: log-sum-exp for g, then a kernel with all sums in range.

        It absorbs the new g, and for f the same softmin with the largest term for the sum.
        """
        eps, (old, g) = self.eps, self.potentials()
        after = softmin_of(self.turned, np.log(self.a, dtype=np.float64) + old / eps, eps)
        g = overrelaxed_log(np, g, after, excess, eps)
        f = hardmin_of(self.side, np.log(self.b, dtype=np.float64) + g / eps, eps)
        kernel = self._start_kernel(f, g)
        plain, new = np.empty_like(f), np.empty_like(f)

        def weigh(rows: slice, sums: HostArray) -> HostArray:  # between 1 and the number of columns
            plain[rows] = f[rows] - eps * np.log(sums, dtype=np.float64)
            new[rows] = overrelaxed_log(np, old[rows], plain[rows], excess, eps)
            self.u[rows] = np.exp((new[rows] - f[rows]) / eps)
            return self.a[rows] * self.u[rows]

        _, self.S = kernel.sums(self.b, weigh)
        if excess:
            self.row_error = float(marginal_error(np, self.a[None], new[None], plain[None], eps)[0])

    def potentials(self) -> tuple[HostArray, HostArray]:
        """Return f and g with the scalings."""
        return (
            self.f + self.eps * np.log(self.u, dtype=np.float64),
            self.g + self.eps * np.log(self.v, dtype=np.float64),
        )

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")
    def finish(self) -> tuple[HostArray, HostArray, float, float]:
        """Return ``(f, g, cost, error)`` after one plain f-update, in the caller's order."""
        kernel = self.kernel or self._absorb(self.f, self.g)
        sums, q = self._plain_update(kernel), self.b * self.v
        if not self._certified(kernel, sums.T, q):
            _, g = self.potentials()
            f = softmin_of(self.side, np.log(self.b, dtype=np.float64) + g / self.eps, self.eps)
            sums = self._plain_update(self._absorb(f, g))
        f, p = self.f - self.eps * np.log(sums.T, dtype=np.float64), self.a / sums.T
        _, g = self.potentials()
        cost = float(p @ sums.TC)
        self.omitted = self._lost(p) / self.mass, *(self.kernel or kernel).shares()
        f, g = self._with_empty(1, f, self.b, g), self._with_empty(0, g, self.a, f)
        return f, g, cost, self._column_error(sums.S, p)

    def _plain_update(self, kernel: PlanKernel) -> CostSums:
        """Return ``T = A q``, and after a plain f-update the sums over the rows and those with the cost."""
        return kernel.cost_sums(self.b * self.v, lambda rows, sums: self.a[rows] / sums, columns=False)

    def _with_empty(self, axis: Axis, own: HostArray, weights: HostArray, potential: HostArray) -> HostArray:
        """Return the potential `own` for all bins of one side: a bin without weight has its own softmin."""
        filled, others = self.filled if axis == 1 else self.filled[::-1]
        full = np.empty(len(filled))
        full[self.side.order if axis == 1 else self.side.columns] = own
        if not filled.all():
            side = self.clouds.side(axis, ~filled, others)
            logits = np.log(weights, dtype=np.float64) + potential / self.eps
            full[side.order] = softmin_of(side, logits, self.eps)
        return full

    def _column_error(self, S: HostArray | None, p: HostArray | None = None) -> float:
        """Return the error of sums over the rows with weights p, those of u if not given."""
        error = float(np.abs(self.b * (self.v * S - 1)).sum(dtype=np.float64))
        return (error + self._lost(self.a * self.u if p is None else p)) / self.mass

    def _lost(self, p: HostArray) -> float:
        """Return the mass that both marginals may lack by the pairs left out of A, for the weights p of the rows."""
        if not self.loss or self.kernel is None:
            return 0.0
        q = (self.b * self.v).sum(dtype=np.float64)
        lost = self.kernel.least * float(p.sum(dtype=np.float64) * q)
        return 2 * (lost + (self.kernel.share * 2 * self.mass if self.kernel.inexact else 0))

    def _relax(self, old: HostArray, plain: HostArray, excess: float, rows: slice = slice(None)) -> None:
        """Move the scaling `old` of some rows to its plain update, or past it."""
        if excess:
            scratch = self.scratch[rows][: len(old)]
            overrelaxed(np, old, plain, self.dtype.type(excess), scratch=scratch, out=old)
        else:
            old[...] = plain

    def _absorb(self, f: HostArray, g: HostArray) -> PlanKernel:
        """Make A from these potentials, and its sums over the rows."""
        kernel = self._start_kernel(f, g)
        self.S = kernel.column_sums(self.a)
        return kernel

    def _start_kernel(self, f: HostArray, g: HostArray) -> PlanKernel:
        """Begin a new A, of which no block is made yet."""
        self.f, self.g, self.age = f, g, 0
        self.u, self.v = np.ones_like(self.a), np.ones_like(self.b)
        least = max(float(np.finfo(self.dtype).eps), self.loss) * np.exp(-self.slack) / self.mass
        self.kernel = None  # so that there is never memory for two
        self.kernel = PlanKernel(self.side, f, g, self.eps, self.budget, least, self.loss)
        return self.kernel

    def _certified(self, kernel: PlanKernel, sums: HostArray, factor: HostArray) -> bool:
        """Return whether no entry of the sums of A times `factor` has lost more than rounding.

        An entry of A that was raised to tiny, or left out, costs a sum at most tiny or `least` times the factor, and a
        product below tiny at most tiny.
        """
        info = np.finfo(self.dtype)
        tiny, total = float(info.tiny), float(factor.sum(dtype=np.float64))
        share = max(float(info.eps), self.loss)
        floor = tiny * (total + len(factor)) / float(info.eps) + kernel.least * total / share
        return bool(sums.min() >= floor and sums.max() <= info.max and factor.min() >= tiny)
