"""Checks of the arguments of `cusink.distance_matrix` and `cusink.nearest`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np

from cusink.checks.arrays import kind, one_array, promoted, to_host, weights_dtype, widened
from cusink.checks.scalars import positive_bytes, positive_integer, price_in_range, regularisation, shown
from cusink.checks.weights import same_mass, weight_values
from cusink.costs.checks import cost_values
from cusink.costs.cost import Cost
from cusink.costs.images import in_bins
from cusink.costs.kinds import cells_of, named_arrays
from cusink.costs.metric import is_metric
from cusink.operand import operand
from cusink.retrieval.blocks import ROWS_PER_BLOCK, blocks
from cusink.retrieval.masses import Masses, factors, wanted_mass
from cusink.retrieval.partners import partners
from cusink.types import Array, ArrayModule, HostArray, MatrixValue, Reach

ALL_VALUES = get_args(MatrixValue)
ROWS = ("Q, ",)  # the axis before the bins
DTYPES_ON_DISK = ("float16", "float32", "float64")


@dataclass(frozen=True, eq=False)
class NormalisedRows:
    """Histograms (Q, n) as given, and factors (Q,) that bring those that are read to one mass."""

    weights: Array
    factors: Array

    def __getitem__(self, items: Any) -> Array:
        return self.weights[items] * self.factors[items, None]

    def __len__(self) -> int:
        return len(self.weights)

    def products(self, vectors: Array, items: slice) -> Array:
        """Return the products (K, items) of vectors (K, n) with some rows, without a copy of these."""
        return (vectors @ self.weights[items].T) * self.factors[items]

    def content(self) -> tuple[Any, ...]:
        """Return a word for the kind, and the data, for fingerprints."""
        return "rows", self.weights, self.factors


class Histograms(Protocol):
    """Rows (Q, n), the weights of which are scaled to one mass as they are read."""

    def __getitem__(self, items: Any) -> Array: ...
    def __len__(self) -> int: ...

    def products(self, vectors: Array, items: slice) -> Array:
        """Return the products (K, items) of vectors (K, n) with some rows."""

    def content(self) -> tuple[Any, ...]:
        """Return a word for the kind, and the data, for fingerprints."""


@dataclass(frozen=True, eq=False)
class CheckedHistograms:
    """Histograms A and B (A itself for a collection with itself), the cost, and the dtype of the user."""

    A: Histograms
    B: Histograms
    C: Cost[Any]
    dtype: Any


@dataclass(frozen=True, eq=False)
class CheckedCorpus:
    """Histograms B of one mass, the cost (n, m) whose m bins they are on, and the dtype of the user."""

    B: Histograms
    C: Cost[Any]
    dtype: Any
    mass: float
    masses: Masses = "equal"


def histograms(
    A: Any,
    B: Any,
    C: Any,
    *,
    eps: float,
    check: bool,
    memory_limit: int | None = None,
    mass: float | None = None,
    masses: Masses = "equal",
    reach: Reach | None = None,
) -> CheckedHistograms:
    """Check histograms A and B, B None for A itself; scale them to `mass`, or to the mass of the first row of A.

    The Gibbs kernel of a cost that is not stored may take `memory_limit` bytes.
    """
    eps = regularisation(eps)
    itself = B is None
    if A is None:
        raise TypeError("'A' must be an array of histograms; got None. Only 'B' may be None, for A against itself")
    if is_metric(C):
        raise TypeError(
            f"'C' must be an array of costs, a cusink.PointCloud or a cusink.Grid; got the metric {shown(C)}, which "
            f"goes with 'A' and 'B' that are cusink.Measures, and 'A' is {kind(A)}. cusink.cost_matrix makes costs "
            "from points"
        )
    given = A, B
    (A, B, *parts), xp, dtype = promoted(A=A, B=B, **named_arrays(C))
    own, cells = weights_dtype(dtype, *given), cells_of(C)
    (A, _), (B, _) = in_bins("A", A, cells, ROWS), in_bins("B", B, cells, ROWS)
    C = operand(C, xp, dtype, parts, memory_limit, batch=False)
    price_in_range("eps", eps, C.dtype.name)
    shapes(A, B, C)
    if check and C.stored:
        cost_values(C.data, xp)
    if mass is None:
        if check:
            weight_values("A", A[:1], xp)
        mass = wanted_mass(A[:1], masses)
    first = normalised_rows("A", A, mass, xp, check, own, masses=masses)
    second = first if itself else normalised_rows("B", B, mass, xp, check, own, masses=masses)
    if check:
        partners(first, second, C, reach)
    return CheckedHistograms(first, second, C, dtype)


def corpus(
    B: Any,
    C: Any,
    *,
    eps: float,
    check: bool,
    memory_limit: int | None = None,
    masses: Masses = "equal",
    mass: float | None = None,
) -> CheckedCorpus:
    """Check histograms B of one mass, to be looked among later, and the cost to their bins.

    They are scaled to `mass`, or to that of the first one.
    """
    eps = regularisation(eps)
    if B is None:
        raise TypeError("'B' must be an array of histograms; got None")
    if is_metric(C):
        raise TypeError(
            f"'C' must be an array of costs, a cusink.PointCloud or a cusink.Grid; got the metric {shown(C)}, which "
            f"goes with 'B' that is cusink.Measures, and 'B' is {kind(B)}. cusink.cost_matrix makes costs from points"
        )
    given = B
    (B, *parts), xp, dtype = promoted(B=B, **named_arrays(C))
    B, _ = in_bins("B", B, cells_of(C), ROWS)
    C = operand(C, xp, dtype, parts, memory_limit, batch=False)
    price_in_range("eps", eps, C.dtype.name)
    rows_on_bins("B", B, C.shape[1], C)
    if check and C.stored:
        cost_values(C.data, xp)
    if check:
        weight_values("B", B[:1], xp)
    mass = wanted_mass(B[:1], masses) if mass is None else mass
    rows = normalised_rows("B", B, mass, xp, check, weights_dtype(dtype, given), "'B' row 0", masses)
    return CheckedCorpus(rows, C, dtype, mass, masses)


def rows_like(
    name: str, x: Any, given: CheckedCorpus, side: Literal[0, 1], check: bool, judged: str | None = None
) -> NormalisedRows:
    """Check more histograms for an index: queries (side 0), or further items (side 1); scale them to its mass.

    Their masses are judged by the dtype `judged`, or by that which they came in.
    """
    C = given.C
    if x is None:
        raise TypeError(f"'{name}' must be an array of histograms; got None")
    dtype = weights_dtype(given.dtype, x) if judged is None else np.dtype(judged)
    x, xp = widened(name, x, "the index", C.xp.empty(0, given.dtype))
    x, _ = in_bins(name, x, cells_of(C.data), ROWS)
    rows_on_bins(name, x, C.shape[side], C)
    return normalised_rows(name, x, given.mass, xp, check, dtype, "the index", given.masses)


def shapes(A: Array, B: Array | None, C: Cost[Any]) -> None:
    """Check that the rows of A and B, None for A itself, are histograms on the bins of C."""
    n, m = C.shape
    for name, x, bins in (("A", A, n), ("B", A if B is None else B, m)):
        swapped = B is not None and n != m and x.ndim > 0 and x.shape[-1] == n + m - bins
        rows_on_bins(name, x, bins, C, ". Did you swap 'A' and 'B'?" if swapped else "")


def rows_on_bins(name: str, x: Array, bins: int, C: Cost[Any], hint: str = "") -> None:
    """Check that the rows of `x` are histograms on some of the bins of C."""
    if x.ndim != 2 or x.shape[1] != bins:
        hint = hint or (f". A single histogram is {name}[None, :]" if x.ndim == 1 else "")
        raise ValueError(
            f"'{name}' must have shape (Q, {bins}), one histogram per row, to match C of shape {C.shape}; "
            f"got {x.shape}{hint}"
        )
    if 0 in x.shape:
        raise ValueError(f"'{name}' must have at least one row and one bin; got shape {x.shape}")


def normalised_rows(
    name: str,
    x: Array,
    wanted: float,
    xp: ArrayModule,
    check: bool,
    dtype: Any,
    first: str = "'A' row 0",
    masses: Masses = "equal",
) -> NormalisedRows:
    """Return rows scaled to the mass `wanted`, that of `first`, which they must have up to the user's dtype."""
    x = xp.ascontiguousarray(x)
    if check:
        for rows in blocks(len(x), ROWS_PER_BLOCK):
            weight_values(name, x[rows], xp, rows.start)
    mass = xp.concatenate([x[rows].sum(axis=1, dtype=np.float64) for rows in blocks(len(x), ROWS_PER_BLOCK)])
    if check and masses == "equal":
        same_mass(
            "all histograms",
            xp,
            mass,
            wanted,
            dtype,
            got=lambda row: f"{first} has {wanted:g} and '{name}' row {row} has {float(mass[row]):g}",
            advice="normalise=True divides each row by its sum. Where the difference has a meaning, 'reach' lets mass "
            "appear and vanish at a price",
        )
    return NormalisedRows(x, factors(mass, wanted, x.dtype))


def memory_limit(limit: int | None) -> int | None:
    """Check that a memory limit is a whole number of bytes; where the work is cut, it shows whether it is enough."""
    return None if limit is None else positive_bytes(limit)


def divergence(C: Cost[Any]) -> None:
    """Check that both items of a pair can be compared with themselves, as each cloud of points can."""
    if not C.has_own and not C.stored:
        raise ValueError(
            "value='divergence' also compares each item with itself: 'C' must be a symmetric cost within either side; "
            "got one between points that is not. Take value='reg_cost'"
        )
    if not C.has_own:
        how = "is not symmetric" if C.shape[0] == C.shape[1] else f"has shape {tuple(C.shape)}"
        raise ValueError(
            "value='divergence' also compares each histogram with itself: 'C' must be a symmetric cost, between the "
            f"same bins; got one that {how}. Take value='reg_cost', or put both collections on the same bins"
        )


def output(out: Array | None, shape: tuple[int, int], dtype: Any, xp: ArrayModule, inputs: Mapping[str, Any]) -> Array:
    """Return `out` if it can take the result and shares no memory with the inputs, or for None a new array."""
    if out is None:
        return xp.empty(shape, dtype)
    if not isinstance(out, xp.ndarray):
        raise TypeError(f"'out' must be a {xp.__name__} array like the input; got {kind(out)}")
    if out.shape != shape:
        raise ValueError(f"'out' must have shape {shape} for these histograms; got {out.shape}")
    if out.dtype != dtype:
        raise TypeError(f"'out' must have the dtype of the histograms, {dtype}; got {out.dtype}")
    if not getattr(out.flags, "writeable", True):  # CuPy's flags have no such name
        raise ValueError("'out' must be writable; got a read-only array. Open a memmap with mode='r+' or 'w+'")
    if _overlaps_itself(out):
        raise ValueError(
            f"'out' must have a place of its own for each distance; got an array that overlaps itself, with strides "
            f"{out.strides}. Pass a copy of it"
        )
    for name, x in inputs.items():
        if isinstance(x, xp.ndarray) and xp.may_share_memory(out, x):
            raise ValueError(
                f"'out' must not overlap an input; it shares memory with '{name}'. Pass an array of its own"
            )
    return out


def _overlaps_itself(x: Array) -> bool:
    """Say whether two entries of an array (rows, columns) share memory."""
    steps = [(count, stride) for count, stride in zip(x.shape, x.strides, strict=True) if count > 1]
    if any(abs(stride) < x.itemsize for _, stride in steps):
        return True
    if len(steps) < 2:
        return False
    (rows, down), (columns, across) = steps
    down_by = np.arange(1, rows) * down
    back = np.clip(np.rint(down_by / across), 1 - columns, columns - 1)  # the columns that bring each closest
    return bool((np.abs(down_by - back * across) < x.itemsize).any())


def neighbours(k: object, columns: int, excludes_self: bool, among: str = "") -> int:
    """Check how many neighbours are wanted, among `columns` items or all of them but the one that looks."""
    k = positive_integer("k", k)
    most = columns - 1 if excludes_self else columns
    if k > most:
        where = f"the other rows of 'A', of which there are {most}" if excludes_self else f"the rows of 'B', {columns}"
        where = f"{among}, {most}" if among else where
        raise ValueError(
            f"'k' must be at most the number of neighbours there are: {where}; got {shown(k)}. Ask for fewer"
        )
    return k


def solve_at_most(count: object, k: int) -> int | None:
    """Check how many pairs of a row may be solved: None for any number, or no fewer than are wanted."""
    if count is None:
        return None
    number = positive_integer("solve_at_most", count)
    if number < k:
        raise ValueError(f"'solve_at_most' must be at least 'k', {k}; got {shown(number)}")
    return number


def candidates(given: Any, shape: tuple[int, int], k: int, excludes_self: bool) -> HostArray:
    """Check the columns (Q, c) that may be neighbours of each row, of which a row itself is none."""
    found = to_host(one_array("candidates", given))
    rows, columns = shape
    if found.dtype.kind not in "iu":
        raise TypeError(f"'candidates' must hold integers, the numbers of items; got dtype {found.dtype}")
    if found.ndim != 2 or len(found) != rows:
        raise ValueError(f"'candidates' must have shape ({rows}, c), a row for each of 'A'; got {found.shape}")
    wrong = (found < 0) | (found >= columns)
    if wrong.any():
        row, at = divmod(int(wrong.argmax()), found.shape[1])
        raise ValueError(
            f"'candidates' must be numbers of items, from 0 to {columns - 1}; got {found[row, at]} at [{row}, {at}]. "
            "Some libraries fill rows up with -1: ask them for fewer, or repeat a candidate"
        )
    ordered = np.sort(found.astype(np.int64), axis=1)
    different = (np.diff(ordered, axis=1, prepend=-1) != 0).sum(axis=1)
    if excludes_self:
        different -= (ordered == np.arange(rows)[:, None]).any(axis=1)
    if (different < k).any():
        row = int((different < k).argmax())
        raise ValueError(
            f"'candidates' must be at least 'k', {k}, different items for each row; row {row} has {different[row]}. "
            "Propose more, or ask for fewer neighbours"
        )
    return ordered
