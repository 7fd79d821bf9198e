"""Checks of collections whose items have supports of their own: sparse rows over a vocabulary, and `Measures`.

The result is on the host: which items have which points, and with what weights. Only the costs, or the points they are
made of, stay where they are.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from cusink.checks.arrays import arrays, kind, promoted, to_host, weights_dtype, widened
from cusink.checks.scalars import price_in_range, regularisation, shown
from cusink.checks.weights import mass_in_range, same_mass
from cusink.costs.checks import cost_values
from cusink.costs.clouds import PointCloud
from cusink.costs.cost import Cost
from cusink.costs.grid import Grid
from cusink.costs.kinds import kind_of, named_arrays
from cusink.costs.measures import Measures, sums
from cusink.costs.metric import Metric, is_metric, metric_of
from cusink.costs.wanted import check_points, check_targets
from cusink.errors import warn
from cusink.operand import operand
from cusink.retrieval.blocks import blocks
from cusink.retrieval.documents.supports import CheckedDocuments, RaggedWeights, is_sparse, is_sparse_on_device
from cusink.types import Array, ArrayModule, HostArray

MOST_CELLS = 4096  # of a grid whose costs are stored: 128 MiB in float64
PARTNER_ENTRIES = 1 << 16  # of costs that are looked at, and of pairs of words and items
SUPPORTED = "scipy.sparse rows over a vocabulary"


def are_documents(A: object, B: object) -> bool:
    """Say whether one of the collections has supports of its own."""
    return any(is_sparse(x) or isinstance(x, Measures) for x in (A, B))


def check_documents(
    A: Any, B: Any, C: Any, *, eps: float, check: bool, on_empty: str = "nan", normalise: bool = False
) -> CheckedDocuments:
    """Check the collections of a call, B None for A itself.

    `on_empty` says what to do about items without weight: "nan" warns once and names them, "raise" refuses them.
    """
    eps = regularisation(eps)
    given = {"A": A} if B is None else {"A": A, "B": B}
    for name, x in given.items():
        of_one_kind(name, x)
    if len({is_sparse(x) for x in given.values()}) > 1:
        raise TypeError(
            f"'A' and 'B' must be of one kind, {SUPPORTED} or cusink.Measures; got {kind(A)} and {kind(B)}. "
            "Sparse rows have a vocabulary in common, Measures have points of their own"
        )
    sides, C, xp, dtype = _sparse(given, C, check) if is_sparse(A) else _clouds(given, C)
    price_in_range("eps", eps, C.dtype.name)
    masses = [_masses(name, side, check) for name, side in zip(given, sides, strict=True)]
    first = _first(np.concatenate(masses), normalise)
    own = weights_dtype(dtype, *(x if is_sparse(x) else x.weights for x in given.values()))
    scaled = [
        _one_mass(name, side, mass, first, check and not normalise, own)
        for name, side, mass in zip(given, sides, masses, strict=True)
    ]
    report_empty(dict(zip(given, scaled, strict=True)), on_empty)
    found = CheckedDocuments(A=scaled[0], B=scaled[-1], C=C, xp=xp, dtype=dtype)
    if check:
        partners(found.A, found.B, C)
    return found


def check_corpus(
    B: Any, C: Any, *, eps: float, check: bool, on_empty: str, normalise: bool = False, first: float | None = None
) -> CheckedDocuments:
    """Check a collection that is to be looked among later: its pairs with itself, whatever the cost is between.

    It is scaled to the mass `first`, if there is one.
    """
    eps = regularisation(eps)
    sides, C, xp, dtype = _sparse({"B": B}, C, check) if is_sparse(B) else _clouds({"B": B}, C)
    price_in_range("eps", eps, C.dtype.name)
    mass = _masses("B", sides[0], check)
    first, judged = _first(mass, normalise) if first is None else first, check and not normalise
    own = _one_mass("B", sides[0], mass, first, judged, weights_dtype(dtype, B if is_sparse(B) else B.weights))
    report_empty({"B": own}, on_empty)
    return CheckedDocuments(A=own, B=own, C=C, xp=xp, dtype=dtype)


def check_more(
    name: str,
    x: Any,
    given: CheckedDocuments,
    side: Literal[0, 1],
    first: float | None,
    check: bool,
    on_empty: str,
    normalise: bool = False,
    judged: str | None = None,
) -> RaggedWeights:
    """Check more rows over the vocabulary of an index: queries (side 0), or further items (side 1).

    They are scaled to the mass `first` of the index, None if nothing in it has weight.
    """
    if not is_sparse(x):
        raise TypeError(f"'{name}' must be {SUPPORTED} like the items of the index; got {kind(x)}")
    own, data = _rows(name, x, check)
    data, _ = widened(name, data, "the index", given.xp.empty(0, given.dtype))
    _one_column_each(name, own, given.C.shape[0 if side == 0 else -1], given.C)
    ragged = _ragged(own, data.dtype)
    mass = _masses(name, ragged, check)
    first = _first(mass, normalise) if first is None or normalise else first
    scaled = _one_mass(name, ragged, mass, first, check and not normalise, np.dtype(judged or given.dtype), "the index")
    report_empty({name: scaled}, on_empty)
    return scaled


def check_pairs_of_measures(
    name: str,
    A: Any,
    measures: Measures,
    B: RaggedWeights,
    metric: Metric | None,
    mass: float | None,
    dtype: Any,
    check: bool,
    on_empty: str,
    normalise: bool = False,
    judged: str | None = None,
) -> CheckedDocuments:
    """Check measures that are compared with those of an index, which were checked and scaled to `mass` as B."""
    if not isinstance(A, Measures):
        raise TypeError(f"'{name}' must be cusink.Measures like the items of the index; got {kind(A)}")
    (ours, _), C, xp, _ = _clouds({name: A, "the index": measures}, metric)
    own = _masses(name, ours, check)
    mass = _first(own, normalise) if mass is None or normalise else mass
    scaled = _one_mass(name, ours, own, mass, check and not normalise, np.dtype(judged or dtype), "the index")
    report_empty({name: scaled}, on_empty)
    return CheckedDocuments(A=scaled, B=B, C=C, xp=xp, dtype=dtype)


def _first(mass: HostArray, normalise: bool) -> float | None:
    """Return the mass that items are scaled to: 1, or the first that is one; None if all are empty."""
    return 1.0 if normalise else next((float(one) for one in mass if one > 0), None)


def of_one_kind(name: str, x: Any) -> None:
    """Check that a collection is sparse, or of measures."""
    if not are_documents(x, None):
        raise TypeError(
            f"'A' and 'B' must be of one kind, {SUPPORTED} or cusink.Measures; '{name}' is {kind(x)}. "
            "scipy.sparse.csr_array makes sparse rows of an array"
        )


def _masses(name: str, side: RaggedWeights, check: bool) -> HostArray:
    """Return the masses of items, of which those with weight must be numbers of the dtype."""
    with np.errstate(over="ignore"):
        mass = sums(side.offsets, side.weights)
    if check:
        mass_in_range(name, np.where(mass > 0, mass, 1), side.weights.dtype)
    return mass


def _sparse(given: Mapping[str, Any], C: Any, check: bool) -> tuple[list[RaggedWeights], Any, Any, Any]:
    """Return sparse rows over the words that the cost is between, the cost, its library, and the user's dtype.

    A lone 'B' may have a cost that is not square; a lone 'A', to be compared with itself, may not.
    """
    if is_metric(C):
        name = shown(C if isinstance(C, str) else C.name)
        raise TypeError(
            f"'C' must be an array of costs between the words, or PointCloud(vectors, metric={name!r}); got {name!r}. "
            "A metric goes with cusink.Measures, which have points"
        )
    read = {name: _rows(name, x, check) for name, x in given.items()}
    parts, xp, dtype = promoted(**{name: data for name, (_, data) in read.items()}, **named_arrays(C))
    if kind_of(C) == "grid":
        C = _stored(C, xp, parts[0].dtype)
        parts.append(C)
    C = operand(C, xp, dtype, parts[len(given) :], batch=False)
    if check and C.stored:
        cost_values(C.data, xp)
    for name, (x, _) in read.items():
        _one_column_each(name, x, C.shape[0 if name == "A" else -1], C)
    if list(given) == ["A"] and C.shape[0] != C.shape[1]:
        raise ValueError(f"'B' must be given with a 'C' that is not square; got None, and 'C' of shape {C.shape}")
    return [_ragged(x, parts[0].dtype) for x, _ in read.values()], C, xp, dtype


def _stored(grid: Grid, xp: ArrayModule, dtype: Any) -> Array:
    """Return the costs of a grid, whose operators work on whole images, as an array."""
    if (count := math.prod(grid.cells)) > MOST_CELLS:
        raise ValueError(
            f"'C' must be a Grid of at most {MOST_CELLS} cells where the histograms are sparse, as its costs are "
            f"stored then; got {count}. Pass the histograms as dense arrays, A.toarray(), or a PointCloud of the cells"
        )
    return xp.asarray(grid.dense(), dtype)


def _rows(name: str, x: Any, check: bool) -> tuple[Any, Any]:
    """Return sparse rows in CSR form on the host, and an array of the dtype and library that the user has."""
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"'{name}' must be sparse rows of shape (items, words); got {x.shape}")
    if x.dtype.kind not in "fiub":
        raise TypeError(f"'{name}' must hold real numbers; got dtype {x.dtype}")
    on_device = is_sparse_on_device(x)
    own = _canonical(name, x.get() if on_device else x, check)
    return own, x.data if on_device else np.empty(0, x.dtype)  # LIL has lists there, and DOK nothing


def _one_column_each(name: str, x: Any, words: int, C: Any) -> None:
    """Check that rows have a column for each word."""
    if x.shape[1] != words:
        raise ValueError(
            f"'{name}' must have a column for each of the {words} words that 'C' of shape {tuple(C.shape)} is "
            f"between; got {x.shape}. Words without a vector have to leave both: {name}[:, known]"
        )


def _ragged(x: Any, dtype: Any) -> RaggedWeights:
    """Return rows in CSR form as weights of the dtype of the computation."""
    return RaggedWeights(x.indptr.astype(np.int64), x.data.astype(dtype), x.indices.astype(np.int64))


def _canonical(name: str, x: Any, check: bool) -> Any:
    """Return a copy in CSR form with sorted words, duplicates summed and zeros left out."""
    try:
        whole = x.dtype.kind in "biu"
        if whole:  # so that duplicates add up, which some formats do on the way
            x = x.astype(np.float64)
        x = x.tocsr(copy=not whole)
        if check:
            x.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(f"'{name}' must be a valid sparse array; SciPy says: {error}") from None
    if check:
        bad = ~(np.isfinite(x.data) & (x.data >= 0))
        if bad.any():
            at = int(bad.argmax())
            row = int(np.searchsorted(x.indptr, at, side="right")) - 1
            raise ValueError(
                f"'{name}' must hold finite, non-negative weights; got {x.data[at]:g} at [{row}, {x.indices[at]}]. "
                "Weights are masses, such as counts of words"
            )
    x.sum_duplicates()
    x.eliminate_zeros()
    return x


def _clouds(given: Mapping[str, Measures], C: Any) -> tuple[list[RaggedWeights], Any, Any, Any]:
    """Return measures, each with its own points, the cost between these, its library, and the user's dtype."""
    ground = metric_of(C).ground
    points = [x.points for x in given.values()]
    if len({p.shape[1] for p in points}) > 1:
        ours, theirs = (p.shape[1] for p in points)
        names = " and ".join(map(repr, given))
        raise ValueError(f"{names} must have points of one dimension; got d = {ours} and d = {theirs}")
    if not all(len(p) for p in points):
        raise ValueError("'A' and 'B' must have at least one point each")
    for name, x in given.items():
        check_points(ground.metric, ground.factor, f"{name}.points", x.points)
    check_targets(ground.metric, f"{list(given)[-1]}.points", points[-1])
    named = {f"{name}.weights": x.weights for name, x in given.items()}
    named |= {f"{name}.points": x.points for name, x in given.items()}
    converted, xp, dtype = promoted(**named)
    ours, *theirs = converted[len(given) :]
    cloud = PointCloud(ours, theirs[0] if theirs else None, **ground.keywords)
    parts, _, _ = arrays(**named_arrays(cloud))
    costs = operand(cloud, xp, dtype, parts, batch=False)
    sides = []
    for x, weights in zip(given.values(), converted, strict=False):
        weights = to_host(weights)
        kept = np.flatnonzero(weights)
        offsets = np.searchsorted(kept, x.offsets)
        sides.append(RaggedWeights(offsets, weights[kept], kept))
    return sides, costs, xp, dtype


def _one_mass(
    name: str,
    side: RaggedWeights,
    mass: HostArray,
    first: float | None,
    check: bool,
    dtype: Any,
    owner: str = "the first",
) -> RaggedWeights:
    """Scale items from their masses `mass` to `first`, from which these differ by the user's tolerance at most."""
    if first is None:
        return side
    if check:
        same_mass(
            "all items",
            np,
            mass,
            first,
            dtype,
            got=lambda row: f"{owner} has {first:g} and '{name}' row {row} has {mass[row]:g}",
            advice="normalise=True divides each by its sum",
        )
    factor = np.repeat(first / np.where(side.sizes > 0, mass, 1), side.sizes)
    return RaggedWeights(side.offsets, (side.weights * factor).astype(side.weights.dtype), side.places)


def report_empty(sides: Mapping[str, RaggedWeights], on_empty: str) -> None:
    """Refuse empty items, or warn of the NaN that they lead to."""
    empty = {name: np.flatnonzero(side.sizes == 0) for name, side in sides.items()}
    empty = {name: rows for name, rows in empty.items() if len(rows)}
    if not empty or on_empty == "silent":  # they have been reported
        return
    listed = "; ".join(
        f"'{name}' {'rows' if len(rows) > 1 else 'row'} {', '.join(map(str, rows[:10]))}"
        + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")
        for name, rows in empty.items()
    )
    if on_empty == "raise":
        raise ValueError(
            f"every item must have a word with weight; empty are {listed}. Leave them out, or pass on_empty='nan'"
        )
    warn(f"Items without weight have no distance to anything: NaN for {listed}.")


def partners(A: RaggedWeights, B: RaggedWeights, C: Cost[Any]) -> None:
    """Check that `C` leaves every word with weight a partner in every item of the other side."""
    if not C.stored or C.xp.isfinite(C.data.max()):
        return
    from scipy import sparse

    count, words = C.shape
    patterns = [
        sparse.csr_array((np.ones(len(s.places), np.float32), s.places, s.offsets), shape=(len(s), length))
        for s, length in zip((A, B), (count, words), strict=True)
    ]
    for names, ours, others, costs in (("AB", *patterns, C.data), ("BA", *patterns[::-1], C.data.T)):
        filled, by_word = np.diff(others.indptr) > 0, ours.tocsc()
        for block in blocks(len(costs), max(1, PARTNER_ENTRIES // (costs.shape[1] + len(filled)))):
            allowed = np.isfinite(to_host(costs[block])).astype(np.float32)
            unreached = sparse.csr_array((((others @ allowed.T) == 0) & filled[:, None]).T.astype(np.float32))
            lone = (by_word[:, block] @ unreached).tocoo()
            if lone.nnz:
                at = np.lexsort((lone.col, lone.row))[0]
                row, other = lone.row[at], lone.col[at]
                raise ValueError(
                    f"'C' must allow every word with weight a partner; '{names[0]}' row {row} has weight where 'C' "
                    f"forbids (+inf) all words of '{names[1]}' row {other}. Allow a pair, or drop the row"
                )
