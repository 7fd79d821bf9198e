"""The operator that solves pairs of clouds of unequal sizes together, and what it is given and gives."""

from typing import NamedTuple, Protocol, TypeVar

from cusink.types import Array, HostArray, Reach

DataIn = TypeVar("DataIn", contravariant=True)


class RaggedPairs(NamedTuple):
    """Weights (N,) and (M,) of all points in float64, where items begin (K + 1,) on both sides, and eps (K,)."""

    a: Array
    b: Array
    offsets: tuple[HostArray, HostArray]
    eps: HostArray


class RaggedRules(NamedTuple):
    """How such pairs are solved: the options, and what the solver knows of rounding."""

    tol: float
    max_iter: int
    check_every: int
    single: bool  # whether iterations may be in float32
    largest_pair: int  # pairs of points
    memory: int | None  # bytes at most for costs that are stored
    steepest: float  # largest cost over eps
    carried: float  # rounding that an entry of the plan carries, as a share of the mass
    of_exponents: float  # relative rounding of an exponent and of its costs
    nearly_all: float  # share of the weights that makes one point the problem
    reach: Reach | None  # prices of the marginals, None where these are to be met


class RaggedSolutions(NamedTuple):
    """Solutions of the pairs that are `solved` (K,), in float64: f (N,), g (M,), and what is known of each pair (K,).

    `entropy` is the sum of those of both measures, or with `reach` what eps times it takes from `reg_cost`; then the
    potentials are ``f + shift`` and ``g - shift``. `spread` is the sum of the ranges of f and g over points with
    weight. Pairs of one measure twice are solved alike, to the last bit.
    """

    f: Array
    g: Array
    cost: Array
    reg_cost: Array
    entropy: Array
    error: Array
    mass: Array
    spread: Array
    n_iter: Array
    solved: HostArray
    shift: Array | None


class RaggedFit(NamedTuple):
    """How gradients of such pairs are made: relative residual of the marginal system, iterations, and rounds of them.

    Pairs whose clouds lie more than `apart` times their size from each other are left out, if costs are squared
    distances.
    """

    tol: float
    max_iter: int
    rounds: int
    single: bool
    largest_pair: int
    memory: int | None
    apart: float
    reach: Reach | None  # prices of the marginals, as in `RaggedRules`


class RaggedGradients(NamedTuple):
    """Gradients in float64 by weights (N,) and (M,), points (N, d) and (M, d), eps (K,), prices (K, 2).

    Without prices those by weights are of mean zero over each item. Those of pairs that were not asked for have no
    meaning.
    """

    a: Array
    b: Array
    x: Array
    y: Array
    eps: Array
    reach: Array | None


class PullRagged(Protocol[DataIn]):
    """The gradients of values of the pairs `which` (P,), of potentials f (N,) and g (M,); None if some cannot be made.

    `shift` (K,) is what lies between both potentials, where marginals have a price. Cotangents (K,) are those of the
    cost, of all values together, and of the entropic cost, in float64; with prices the last is 0.
    """

    def __call__(
        self,
        C: DataIn,
        pairs: RaggedPairs,
        which: HostArray,
        potentials: tuple[Array, Array],
        shift: Array | None,
        cotangents: tuple[Array, Array, Array],
        rules: RaggedFit,
    ) -> RaggedGradients | None:
        """See the class."""


class SolveRagged(Protocol[DataIn]):
    """Solve pairs of items, with the costs C between all points of both sides; None where none can be solved."""

    def __call__(self, C: DataIn, pairs: RaggedPairs, rules: RaggedRules) -> RaggedSolutions | None:
        """See the class."""
