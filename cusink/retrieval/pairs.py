"""The contract of pairs of two collections, and that of pairs on common bins.

Tiles and searches are written over these contracts; `HistogramPairs` and `DocumentPairs` fulfil them.
"""

from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from cusink.convergence.options import Options
from cusink.costs.cost import Cost
from cusink.solver.prices import alike
from cusink.types import Array, ArrayModule, HostArray, Reach, Value

ROUNDINGS = 64  # of the values of a pair, that may make a divergence fall below 0

Field = Literal["distances", "error", "n_iter", "converged"]


class Solved(NamedTuple):
    """Solved pairs, arrays of one shape: the distances in the user's library, the rest in NumPy."""

    distances: Array
    error: HostArray
    n_iter: HostArray
    converged: HostArray


class SolvedProblems(NamedTuple):
    """Solved pairs (K,) with their potentials f (K, n) and g (K, m)."""

    pairs: Solved
    f: Array
    g: Array


class Pairs(Protocol):
    """All pairs of an item of A, a row, and an item of B, a column."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def eps(self) -> float:
        """The regularisation."""

    @property
    def span(self) -> tuple[float, float]:
        """Numbers between which the costs lie."""

    @property
    def reach(self) -> Reach | None:
        """The prices of the marginals, where these may differ from the items."""

    @property
    def xp(self) -> ArrayModule:
        """The array module of the user's arrays."""

    def to_host(self, array: Array) -> HostArray:
        """Return an array of this library as a NumPy array."""

    @property
    def dtype(self) -> Any:
        """The dtype of the user's arrays, which the distances get."""

    @property
    def symmetric(self) -> bool:
        """Whether B is A and the pair (j, i) has the distance of the pair (i, j)."""

    @property
    def pair_bytes(self) -> int:
        """Bytes that a pair takes while it is solved."""

    @property
    def shared_bytes(self) -> int:
        """Bytes that a row takes in addition, for any number of columns."""

    @property
    def rows_per_call(self) -> int:
        """How many rows `solve` takes at most."""

    def solve(self, rows: slice, columns: slice, value: Value, options: Options) -> Solved:
        """Solve rows against columns: arrays (rows, columns).

        A result may depend on the pairs it is solved with by as much as `tol` allows, and on nothing else.
        """

    def solve_selves(self, side: Literal[0, 1], items: slice, options: Options) -> Solved:
        """Solve items of A (side 0) or B (side 1), each with itself: arrays (items,) with `reg_cost` as distances."""

    @property
    def mass(self) -> float:
        """The mass of the items, or the largest of those of the rows."""

    @property
    def masses(self) -> tuple[HostArray, HostArray] | None:
        """The masses of the items of A and of B, where these may differ."""

    def digests(self, side: Literal[0, 1]) -> list[bytes]:
        """Return a digest of each item of A (side 0) or B (side 1), the same for equal items of both."""

    def content(self) -> dict[str, Any]:
        """Return the inputs by name, for fingerprints; B is None where it is A."""


class Rows(Protocol):
    """Histograms of one mass, read by slices and index arrays."""

    def __getitem__(self, items: Any) -> Array: ...
    def __len__(self) -> int: ...

    def products(self, vectors: Array, items: slice) -> Array:
        """Return the products (K, items) of vectors (K, n) with some rows."""


class PairsOnBins(Pairs, Protocol):
    """Pairs of histograms A (Q, n) and B (D, m) on common bins."""

    @property
    def A(self) -> Rows:
        """The rows."""

    @property
    def B(self) -> Rows:
        """The columns."""

    @property
    def C(self) -> Cost[Any]:
        """The cost (n, m)."""

    @property
    def span(self) -> tuple[float, float]:
        """Numbers between which the costs lie."""

    def solve_problems(
        self, a: Array, b: Array, C: Cost[Any], value: Value, options: Options, potentials: bool = True
    ) -> SolvedProblems:
        """Solve problems a (K, n), b (K, m) on some bins, with the cost C between them; without `potentials` if so."""


def digest(*parts: HostArray) -> bytes:
    """Return a digest of an item."""
    import hashlib

    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        hashed.update(part.tobytes())
    return hashed.digest()


def labels(pairs: Pairs) -> tuple[HostArray, HostArray]:
    """Return a number for each item of A and of B, the same for equal items."""
    seen: dict[bytes, int] = {}
    ours, theirs = (np.array([seen.setdefault(x, len(seen)) for x in pairs.digests(side)], int) for side in (0, 1))
    return ours, theirs


def debiased(
    pairs: Pairs, solved: Solved, ours: Solved, theirs: Solved, equal: HostArray, excess: HostArray | None = None
) -> Solved:
    """Return the divergences of pairs from their `reg_cost` and those of both items with themselves.

    Arrays broadcast. `excess` are the differences of both masses, where these may differ. The error of a divergence is
    the largest of its three parts. That of `equal` items is 0, and what the error and rounding explain below 0 is 0
    too, unless the two sides have unlike prices.
    """
    xp, of_selves = pairs.xp, (ours.distances + theirs.distances) / 2
    error = np.maximum(np.maximum(ours.error, theirs.error), solved.error)
    out = solved.distances - of_selves
    if excess is not None:
        out = out + pairs.eps / 2 * xp.asarray(excess) ** 2
    converged = ours.converged & theirs.converged & solved.converged
    if not alike(pairs.reach):
        return Solved(out, error, solved.n_iter, converged)
    # A bin lighter than the error may be without its mass, which is worth what costs differ by.
    scale = (pairs.eps + pairs.span[1] - pairs.span[0]) * pairs.mass
    rounding = ROUNDINGS * float(np.finfo(np.dtype(str(solved.distances.dtype))).eps)
    explained = scale * xp.asarray(error) + rounding * (xp.abs(solved.distances) + xp.abs(of_selves) + scale)
    zero = xp.asarray(equal) & xp.isfinite(out) | ((out < 0) & (out > -explained))
    return Solved(xp.where(zero, 0, out), error, solved.n_iter, converged)
