"""What every kind of cost must offer in every array library: the operators that the solver is written over.

All arrays of a call are C-contiguous, of one library, one device and one dtype (float32 or float64); every array of
problems has the batch axis first. The cost of an operator is what the operand of its kind calls ``data``: an array
``(n, m)``, shared by all problems, or ``(B, n, m)``, whose entries may be +inf ("forbidden"); `PointCosts`; or
`GridCosts`.

Operators take the weights and the potentials of one side as one array of *logits*,

    p = log a + f / eps   (B, n)        q = log b + g / eps   (B, m)

so that a zero weight is a true -inf and ``P_ij = exp(p_i + q_j - C_ij / eps)``. ``axis`` is the axis of one cost matrix
that is summed over: 1 sums over j and gives ``(B, n)``, 0 sums over i and gives ``(B, m)``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from cusink.convergence.rules import StopState
from cusink.costs.at_once import PullAtOnce, SolveAtOnce
from cusink.costs.means import Means
from cusink.costs.ragged import PullRagged, SolveRagged
from cusink.types import Array, ArrayModule, Axis, HostArray, Method, Reach

Data = TypeVar("Data")
DataIn = TypeVar("DataIn", contravariant=True)
DataOut = TypeVar("DataOut", covariant=True)


class Softmin(Protocol[DataIn]):
    """``-eps * log(sum_j exp(q_j - C_ij / eps))``; +inf where every term is zero."""

    def __call__(self, C: DataIn, logits: Array, eps: float, axis: Axis) -> Array: ...


class RepeatedSoftmin(Protocol[DataIn]):
    """A function ``(logits, axis)`` that is the softmin of one cost and eps, prepared for many calls."""

    def __call__(self, C: DataIn, eps: float) -> Callable[[Array, Axis], Array]: ...


class Plan(Protocol[DataIn]):
    """``(B, n, m)``: the plans themselves."""

    def __call__(self, C: DataIn, p: Array, q: Array, eps: float) -> Array: ...


class ApplyPlan(Protocol[DataIn]):
    """``P v`` (axis 1, v ``(B, m)``) or ``P' v`` (axis 0, v ``(B, n)``), v of any sign, without ``B*n*m`` memory."""

    def __call__(self, C: DataIn, p: Array, q: Array, v: Array, eps: float, axis: Axis) -> Array: ...


class TransportCost(Protocol[DataIn]):
    """``(B,)``: ``sum_ij P_ij C_ij`` with ``0 * inf = 0``, without ``B*n*m`` memory."""

    def __call__(self, C: DataIn, p: Array, q: Array, eps: float) -> Array: ...


class CTransform(Protocol[DataIn]):
    """``min_j (C_ij - potential_j)``: the softmin at eps = 0; a potential of -inf takes its bin out of the minimum."""

    def __call__(self, C: DataIn, potential: Array, axis: Axis) -> Array: ...


class CostRange(Protocol[DataIn]):
    """Numbers between which all finite costs lie."""

    def __call__(self, C: DataIn) -> tuple[float, float]: ...


class CostBlock(Protocol[DataIn]):
    """The costs ``(rows, m)`` or ``(problems, rows, m)`` as an array."""

    def __call__(self, C: DataIn, problems: slice | HostArray, rows: slice | HostArray) -> Array: ...


class Bilinear(Protocol[DataIn]):
    """``(B,)``: ``sum_ij x_i C_ij y_j`` of non-negative x and y, +inf only where a forbidden pair meets mass."""

    def __call__(self, C: DataIn, x: Array, y: Array) -> Array: ...


class Measured(NamedTuple):
    """Problems that have ended: a bound (B,) on the `size` of their potentials, transport cost and marginal error (B,).

    The size is at least ``max |f_i| + max |g_j|`` over bins with weight, where f and g have equal sums. `potentials`
    returns f (B, n) and g (B, m) as they are after `Iteration.finish`, where they were kept.
    """

    size: Array
    cost: Array
    error: Array
    potentials: Callable[[], tuple[Array, Array]] | None = None


class Iteration(Protocol):
    """B problems under way."""

    # Whether `advance_until_converged` can be called: the backend then runs several checks without the host.
    stops_itself: bool

    def advance(self, omega: HostArray, count: int) -> Array:
        """Take `count` iterations (one g-update, one f-update each), over-relaxed by `omega` (B,) in [1, 2).

        Returns an upper bound ``(B,)`` of each problem's marginal error after one more plain f-update, which for
        omega = 1 is the error itself, and inf for a problem that left the range of ``method="scaling"``.
        """

    def advance_until_converged(
        self, state: StopState, tol: float, count: int, checks: int
    ) -> tuple[StopState, HostArray, HostArray, HostArray]:
        """Take `count` iterations, check, and choose omega, `checks` times or until a problem stops.

        Returns the state of the rules, bounds, iterations taken, and which problems stopped (B,), all in NumPy.
        """

    def finish(self, index: HostArray) -> tuple[Array, Array, Array, Array]:
        """Return ``(f, g, cost, error)`` of the problems at `index` after one more plain f-update.

        A zero weight gets the potential of its own softmin.
        """

    def measure(self, index: HostArray, keep: bool = False) -> Measured | None:
        """Return cost and error as if by `finish`, and the potentials if they are to `keep`; None for `finish` itself.

        What is kept does not change when the iteration goes on.
        """

    def omitted(self, index: HostArray) -> HostArray:
        """Return what the problems at `index` went without (len(index), 3), where `finish` was called just before.

        The loss that is counted in their errors; the share of the pairs of bins that were left out, NaN where nobody
        counted; and that of pairs with approximate entries.
        """

    def keep(self, index: HostArray) -> None:
        """Drop all problems but those at `index`."""


class HostChecked:
    """An iteration whose checks are made on the host, one at a time."""

    stops_itself: bool = False

    def advance_until_converged(
        self, state: StopState, tol: float, count: int, checks: int
    ) -> tuple[StopState, HostArray, HostArray, HostArray]:
        """Raise: nothing calls it."""
        raise NotImplementedError

    def measure(self, index: HostArray, keep: bool = False) -> Measured | None:
        """Return None: all is computed by `finish`."""
        del index, keep
        return None

    def omitted(self, index: HostArray) -> HostArray:
        """Return zeros: all pairs are looked at."""
        return np.zeros((len(index), 3))


class StartIteration(Protocol[DataIn]):
    """Put problems under way from the potentials f (B, n) and g (B, m)."""

    def __call__(self, C: DataIn, a: Array, b: Array, eps: float, f: Array, g: Array, method: Method) -> Iteration: ...


class PlanMeans(Protocol[DataIn]):
    """Iterate over pairs ``(index, means)`` of problems and an object for them, each problem in one pair.

    A pair may be as small as memory requires; its index is in ascending order.
    """

    def __call__(
        self, C: DataIn, a: Array, b: Array, f: Array, g: Array, eps: float
    ) -> Iterator[tuple[HostArray, Means]]: ...


class CoarseLevel(Protocol[DataOut]):
    """A problem between the means of cells of points."""

    @property
    def costs(self) -> DataOut:
        """Of these means."""

    @property
    def a(self) -> Array:
        """Weights (1, cells)."""

    @property
    def b(self) -> Array:
        """Weights (1, cells)."""

    @property
    def variance(self) -> float:
        """Of the points about the means of their cells, the larger one of both sides."""

    def extended(self, f: Array, g: Array, means: "Means") -> tuple[Array, Array]:
        """Return potentials of the next finer level, or at last of the points, from those of this one.

        `means` are those under its plan.
        """


class CoarseLevels(Protocol[Data]):
    """The coarse levels of a problem, coarsest first; none where they do not pay."""

    def __call__(self, C: Data, a: HostArray, b: HostArray) -> Sequence[CoarseLevel[Data]]: ...


class NearSoftmin(Protocol):
    """The softmin over the columns of one problem, called with potentials that are near each other.

    `lost` is what the last call may have cost both marginals of its plan, relative to the mass.
    """

    lost: float

    def __call__(self, f: Array, g: Array) -> Array:
        """Return the softmin (1, n) of g (1, m) in bins with weight, near f (1, n), which the others keep."""

    def omitted(self) -> tuple[float, float, float]:
        """Return what the last call went without, as `Iteration.omitted`."""


class StartNearSoftmin(Protocol[DataIn]):
    """Prepare the softmin of one problem with weights a (1, n), b (1, m), for `many` calls; None where all pairs count.

    It may lose what the costs have leave to.
    """

    def __call__(self, C: DataIn, a: Array, b: Array, eps: float, many: bool) -> NearSoftmin | None: ...


class PullPlan(Protocol[DataIn]):
    """The gradients (n, d) and (m, d) of ``<P, C>`` by the points of the data, for a plan P of one problem that stays.

    None where they have to be made of all pairs.
    """

    def __call__(self, C: DataIn, a: Array, b: Array, f: Array, g: Array, eps: float) -> tuple[Array, Array] | None: ...


class KeptCosts(Protocol[DataIn]):
    """The costs of all problems in float64, as an array; None where they are too many to be kept."""

    def __call__(self, C: DataIn) -> Array | None: ...


class Damped(NamedTuple):
    """Problems of unbalanced transport under way, see `cusink.solver.unbalanced`."""

    f: Array  # (B, n)
    g: Array  # (B, m)
    t: Array  # (B, 1), float64
    logits: Array  # of the side that was updated last
    image: Array  # (B, n), the softmin by which f was updated


class DampedSteps(Protocol):
    """What an iteration of unbalanced transport does beside `softmin`, see `cusink.solver.unbalanced`."""

    def update(
        self,
        potential: Array,
        image: Array,
        shift: Array,
        sign: int,
        weights: Array,
        log_weights: Array,
        excess: Array | None,
        eps: float,
        rho: float,
    ) -> tuple[Array, Array]:
        """Return the next potential (B, n) of a side with price `rho`, 0 in bins without weight, and its logits.

        `image` is the softmin over the other side. The shift (B, 1), times `sign`, is that of this side; `excess`
        (B, 1) is omega - 1, None for 0 everywhere.
        """

    def translation(self, a: Array, b: Array, f: Array, g: Array, reach: Reach) -> Array:
        """Return the shift t (B,) of the highest dual objective for ``f + t`` and ``g - t``."""

    def iterate(
        self,
        softmin: Callable[[Array, Axis], Array],
        rows: tuple[Array, Array],
        columns: tuple[Array, Array],
        start: Damped,
        excess: Array | None,
        eps: float,
        reach: Reach,
        count: int,
    ) -> Damped | None:
        """Take `count` iterations, the first one from after its update of g and t; None where the solver is to do it.

        `rows` and `columns` are the weights of a side and their logarithms.
        """


@dataclass(frozen=True, kw_only=True)
class Operators(Generic[Data]):
    """The operators of one kind of cost in one array library."""

    xp: ArrayModule
    to_host: Callable[[Array], HostArray]
    softmin: Softmin[Data]
    repeated_softmin: RepeatedSoftmin[Data]
    plan: Plan[Data]
    apply_plan: ApplyPlan[Data]
    transport_cost: TransportCost[Data]
    c_transform: CTransform[Data]
    cost_range: CostRange[Data]
    cost_block: CostBlock[Data]
    bilinear: Bilinear[Data]
    iteration: StartIteration[Data]
    plan_means: PlanMeans[Data]
    levels: CoarseLevels[Data] | None = None
    near_softmin: StartNearSoftmin[Data] | None = None  # None where all pairs are looked at
    pull_plan: PullPlan[Data] | None = None  # None where all pairs are looked at
    kept_costs: KeptCosts[Data] | None = None  # None where costs are stored anyway, or never
    damped_steps: DampedSteps | None = None  # None for array operations
    solve_at_once: SolveAtOnce[Data] | None = None  # None where the host looks on without a delay
    adjoint_at_once: PullAtOnce[Data] | None = None
    solve_ragged: SolveRagged[Data] | None = None  # None where the host solves them together
    adjoint_ragged: PullRagged[Data] | None = None
