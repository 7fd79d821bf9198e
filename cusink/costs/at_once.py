"""The operators that solve small problems without a look by the host, and what they are given and give."""

from typing import NamedTuple, Protocol, TypeVar

from cusink.types import Array, HostArray, Method

DataIn = TypeVar("DataIn", contravariant=True)


class AtOnceRules(NamedTuple):
    """How problems are solved at once: the options, and what the loop of the solver knows of rounding."""

    max_iter: int
    tol: float | None
    check_every: int
    method: Method
    omega: float | None  # fixed, or None to choose it at every check
    carried: float  # rounding that an entry of the plan carries, as a share of the mass
    of_exponents: float  # relative rounding of exponents
    nearly_all: float  # share of the weights that makes one bin the problem


class Facts(NamedTuple):
    """What the problems (B,) of `AtOnce` were found to be like, in NumPy; the solution is one where these are sound."""

    least: HostArray  # weight of both sides
    mass_a: HostArray  # as given
    mass_b: HostArray
    low: HostArray  # finite cost
    high: HostArray
    odd: HostArray  # costs that are not finite
    exponent: HostArray  # of the power of 2 near the mass
    n_iter: HostArray
    error: HostArray
    largest: HostArray  # potential of any bin, in size
    sound: HostArray  # 1 where the iteration stayed in range
    reached: HostArray  # 1 where the error is within the tolerance


FACTS = len(Facts._fields)


class AtOnce(NamedTuple):
    """Solutions of problems that the host did not look at before the end.

    Copies of the weights a (B, n) and b (B, m), of equal mass, and of the cost; f (B, n) and g (B, m) in their gauge in
    float64, and in the dtype of the cost; what a result says of each problem (B,); and the facts.
    """

    a: Array
    b: Array
    C: Array
    f: Array
    g: Array
    shown_f: Array
    shown_g: Array
    cost: Array
    reg_cost: Array
    entropic_cost: Array
    error: Array
    n_iter: Array
    converged: Array
    facts: Facts


class SolveAtOnce(Protocol[DataIn]):
    """Solve B problems from input that was not looked at: weights (n,), (1, n), (B, n) or None, and (m,) likewise.

    None where the problems do not fit.
    """

    def __call__(
        self, C: DataIn, a: Array | None, b: Array | None, B: int, eps: float, rules: AtOnceRules
    ) -> AtOnce | None:
        """See the class."""


class SolvedArrays(NamedTuple):
    """Weights (B, n) and (B, m), potentials in float64, and which problems (B,) had converged."""

    a: Array
    b: Array
    f: Array
    g: Array
    converged: Array


class FitRules(NamedTuple):
    """How the marginal system is solved: relative residual, iterations, and rounds of them."""

    tol: float
    max_iter: int
    rounds: int


class AdjointAtOnce(NamedTuple):
    """Gradients by a (B, n), b (B, m), eps (B,), and by C where no sum over problems is in it; x and y of the system.

    `solved`, `odd` and `sound` (B,) in NumPy: 1 where the system was solved, where cotangents are no ordinary numbers,
    and where the solve had converged. The gradients are those where all are 1, 0 and 1.
    """

    a: Array
    b: Array
    C: Array | None
    eps: Array
    x: Array
    y: Array
    converged: Array
    solved: HostArray
    odd: HostArray
    sound: HostArray


class PullAtOnce(Protocol[DataIn]):
    """The gradients of values of small problems; cotangents of the cost, and of all values together: (B,) or numbers.

    None where the problems do not fit.
    """

    def __call__(
        self,
        C: DataIn,
        given: SolvedArrays,
        cotangents: tuple[float | Array, float | Array],
        eps: float,
        rules: FitRules,
    ) -> AdjointAtOnce | None:
        """See the class."""
