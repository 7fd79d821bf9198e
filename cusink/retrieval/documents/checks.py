"""Checks of collections whose items have supports of their own: sparse rows over a vocabulary, and `Measures`.

What comes out is on the host: which items have which points, and with what weights. Only the costs, or the points they
are made of, stay where they are.
"""

import numbers

import numpy as np

from cusink.checks.arrays import arrays, kind
from cusink.checks.scalars import one_of, regularisation
from cusink.checks.weights import MASS_TOLERANCE
from cusink.costs.checks import cost_values
from cusink.costs.clouds import PointCloud
from cusink.costs.kinds import kind_of, named_arrays
from cusink.errors import warn
from cusink.operand import operand
from cusink.retrieval.documents.supports import (
    Documents,
    Supports,
    host_array,
    is_cupy,
    is_measures,
    is_on_device,
    is_sparse,
    library_of,
    sums,
)

__all__ = [
    "are_documents",
    "documents",
    "joined",
    "measures",
]


SUPPORTED = "scipy.sparse rows over a vocabulary"


def documents(A, B, C, *, eps, check, on_empty="nan"):
    """The checked collections of a call, B None for A itself.

    `on_empty` says what to do about items without weight: "nan" warns once and names them, "raise" refuses them.
    """
    regularisation(eps)
    one_of("on_empty", on_empty, ("nan", "raise"))
    given = {"A": A} if B is None else {"A": A, "B": B}
    for name, x in given.items():
        if not (is_sparse(x) or is_measures(x)):
            raise TypeError(
                f"'A' and 'B' must be of one kind, {SUPPORTED} or cusink.Measures; '{name}' is {kind(x)}. "
                "scipy.sparse.csr_array makes sparse rows of an array"
            )
    if len({is_sparse(x) for x in given.values()}) > 1:
        raise TypeError(
            f"'A' and 'B' must be of one kind, {SUPPORTED} or cusink.Measures; got {kind(A)} and {kind(B)}. "
            "Sparse rows have a vocabulary in common, Measures have points of their own"
        )
    read = _sparse if is_sparse(A) else _clouds
    sides, C, xp, dtype = read(given, C, check)
    first = next((mass for side in sides for mass in sums(side.offsets, side.weights) if mass > 0), None)
    scaled = [_one_mass(name, side, first, check) for name, side in zip(given, sides, strict=True)]
    empty = {name: np.flatnonzero(side.sizes == 0) for name, side in zip(given, scaled, strict=True)}
    _report_empty({name: rows for name, rows in empty.items() if len(rows)}, on_empty)
    found = Documents(A=scaled[0], B=scaled[-1], C=C, xp=xp, dtype=dtype)
    if check and C.stored and not xp.isfinite(C.data).all():
        _partners(found)
    return found


def measures(offsets, weights, points):
    """Offsets on the host, weights and points (N, d) of a call of `cusink.Measures`."""
    if points is None:
        raise TypeError("'points' must be an array; got None")
    (weights, points), xp, _ = arrays(weights=_as_given(weights), points=_as_given(points))
    offsets = np.asarray(offsets.get() if is_cupy(offsets) else offsets)
    if offsets.dtype.kind not in "iu":
        raise TypeError(f"'offsets' must be integers; got dtype {offsets.dtype}")
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or points.shape[1] == 0:
        raise ValueError(f"'points' must have shape (N, d) or (N,); got {points.shape}")
    N = len(points)
    if offsets.ndim != 1 or len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != N or (np.diff(offsets) < 0).any():
        ends = f"{offsets[0]} ... {offsets[-1]}" if offsets.ndim == 1 and len(offsets) else "none"
        raise ValueError(
            f"'offsets' must rise from 0 to the number of points, {N}, with one more entry than there are items; got "
            f"{ends} of shape {offsets.shape}. For clouds of sizes n they are numpy.concatenate([[0], numpy.cumsum(n)])"
        )
    offsets = offsets.astype(np.int64)
    if weights is None:
        sizes = np.diff(offsets)
        floating = points.dtype if points.dtype.kind == "f" else np.dtype(np.float64)
        weights = xp.asarray(np.repeat(1 / np.maximum(sizes, 1), sizes), floating)
    if weights.shape != (N,):
        raise ValueError(f"'weights' must have shape ({N},), one for each point; got {weights.shape}")
    if not xp.isfinite(weights).all() or (weights < 0).any():
        at = int((~(xp.isfinite(weights) & (weights >= 0))).argmax())
        raise ValueError(f"'weights' must be finite and non-negative; got {float(weights[at]):g} at [{at}]")
    if not xp.isfinite(points).all():
        at = int((~xp.isfinite(points)).any(axis=1).argmax())
        item = int(np.searchsorted(offsets, at, side="right")) - 1
        raise ValueError(
            f"'points' must be finite; got NaN or infinity in point {at}, of item {item}. Leave out the points, such "
            "as words, that have no coordinates"
        )
    return offsets, weights, points


def joined(clouds, weights):
    """Offsets, weights and points of separate clouds."""
    if isinstance(clouds, np.ndarray) and clouds.ndim < 2:
        raise TypeError("'clouds' must be a sequence of arrays of points, one for each item; got one array")
    clouds = list(clouds)
    if not clouds:
        raise ValueError("'clouds' must hold at least one array of points; got none")
    xp = library_of(clouds[0])
    clouds = [xp.asarray(cloud) for cloud in clouds]
    clouds = [cloud[:, None] if cloud.ndim == 1 else cloud for cloud in clouds]
    widths = {cloud.shape[-1] for cloud in clouds}
    if len(widths) > 1 or any(cloud.ndim != 2 for cloud in clouds):
        raise ValueError(
            f"'clouds' must be arrays (n, d) of one d; got shapes {sorted({c.shape for c in clouds})[:4]}. An item "
            "without points is an array of shape (0, d)"
        )
    offsets = np.concatenate([[0], np.cumsum([len(cloud) for cloud in clouds])])
    if weights is not None:
        weights = [xp.asarray(w) for w in weights]
        if [w.shape for w in weights] != [(len(cloud),) for cloud in clouds]:
            raise ValueError("'weights' must hold one array for each of 'clouds', with a weight for each of its points")
        weights = xp.concatenate(weights)
    return offsets, weights, xp.concatenate(clouds)


def _sparse(given, C, check):
    """Sparse rows over the words that the cost is between."""
    sides, data = {}, {}
    if isinstance(C, str):
        raise TypeError(
            f"'C' must be an array of costs between the words, or PointCloud(vectors, metric={C!r}); got {C!r}. A name "
            "of a metric goes with cusink.Measures, which have points"
        )
    for name, x in given.items():
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"'{name}' must be sparse rows of shape (items, words); got {x.shape}")
        if x.dtype.kind not in "fiub":
            raise TypeError(f"'{name}' must hold real numbers; got dtype {x.dtype}")
        on_device = is_on_device(x)
        sides[name] = _canonical(name, x.get() if on_device else x, check)
        data[name] = x.data if on_device else sides[name].data  # LIL has lists there, and DOK nothing
    parts, xp, dtype = arrays(**data, **named_arrays(C))
    if kind_of(C) == "grid":
        raise TypeError(
            "'C' must be an array or a PointCloud where the histograms are sparse; a Grid works on whole images. Pass "
            "them as dense arrays, A.toarray()"
        )
    C = operand(C, xp, dtype, parts[len(given) :], batch=False)
    if check and C.stored:
        cost_values(C.data, xp)
    for (name, x), words in zip(sides.items(), (C.shape[0], C.shape[-1]), strict=False):
        if x.shape[1] != words:
            raise ValueError(
                f"'{name}' must have a column for each of the {words} words that 'C' of shape {tuple(C.shape)} is "
                f"between; got {x.shape}. Words without a vector have to leave both: A[:, known]"
            )
    if len(given) == 1 and C.shape[0] != C.shape[1]:
        raise ValueError(f"'B' must be given with a 'C' that is not square; got None, and 'C' of shape {C.shape}")
    computing = parts[0].dtype
    supports = [
        Supports(x.indptr.astype(np.int64), x.data.astype(computing), x.indices.astype(np.int64))
        for x in sides.values()
    ]
    return supports, C, xp, dtype


def _canonical(name, x, check):
    """A copy in CSR form with sorted words, duplicates summed and zeros left out."""
    try:
        x = x.tocsr(copy=True)
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
    if x.dtype.kind in "bu":  # so that duplicates add up
        x = x.astype(np.int64)
    x.sum_duplicates()
    x.eliminate_zeros()
    return x


def _clouds(given, C, check):
    """Measures, each with its own points, and the metric between them."""
    if not isinstance(C, str):
        raise TypeError(f"'C' must be the name of a metric between the points of cusink.Measures; got {kind(C)}")
    points = [x.points for x in given.values()]
    if len({p.shape[1] for p in points}) > 1:
        raise ValueError(
            f"'A' and 'B' must have points of one dimension; got d = {points[0].shape[1]} and d = {points[1].shape[1]}"
        )
    if not all(len(p) for p in points):
        raise ValueError("'A' and 'B' must have at least one point each")
    named = {f"{name}.weights": x.weights for name, x in given.items()}
    named |= {f"{name}.points": x.points for name, x in given.items()}
    converted, xp, dtype = arrays(**named)
    cloud = PointCloud(*converted[len(given) :], metric=C)
    parts, _, _ = arrays(**named_arrays(cloud))
    costs = operand(cloud, xp, dtype, parts, batch=False)
    sides = []
    for x, weights in zip(given.values(), converted, strict=False):
        weights = host_array(weights)
        kept = np.flatnonzero(weights)
        offsets = np.searchsorted(kept, x.offsets)
        sides.append(Supports(offsets, weights[kept], kept))
    return sides, costs, xp, dtype


def _one_mass(name, side, first, check):
    """`side` with every item scaled to the mass `first`, which it must have up to the tolerance of its dtype."""
    mass = sums(side.offsets, side.weights)
    if first is None:
        return side
    tolerance = MASS_TOLERANCE[side.weights.dtype.name]
    off = (np.abs(mass - first) > tolerance * first) & (side.sizes > 0)
    if check and off.any():
        row = int(off.argmax())
        raise ValueError(
            f"all items must have the same mass (relative {tolerance:g}); the first has {first:g} and '{name}' row "
            f"{row} has {mass[row]:g}. Divide each row by its sum: sparse counts with "
            "sklearn.preprocessing.normalize(A, norm='l1') or scipy.sparse.diags_array(1 / A.sum(axis=1)) @ A, "
            "Measures with .normalised()"
        )
    factor = np.repeat(first / np.where(side.sizes > 0, mass, 1), side.sizes)
    return Supports(side.offsets, (side.weights * factor).astype(side.weights.dtype), side.places)


def _report_empty(empty, on_empty):
    """Refuse empty items, or warn of the NaN that they lead to."""
    if not empty:
        return
    rows = "; ".join(
        f"'{name}' {'rows' if len(rows) > 1 else 'row'} {', '.join(map(str, rows[:10]))}"
        + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")
        for name, rows in empty.items()
    )
    if on_empty == "raise":
        raise ValueError(
            f"every item must have a word with weight; empty are {rows}. Leave them out, or pass on_empty='nan'"
        )
    warn(f"Items without weight have no distance to anything: NaN for {rows}.")


def _partners(found):
    """Check that `C` leaves every word with weight a partner in every item of the other side."""
    from scipy import sparse

    allowed = np.isfinite(host_array(found.C)).astype(np.float32)
    patterns = [
        sparse.csr_array((np.ones(len(s.places), np.float32), s.places, s.offsets), shape=(len(s), words))
        for s, words in zip((found.A, found.B), allowed.shape, strict=True)
    ]
    for names, ours, others, pairs in (("AB", *patterns, allowed), ("BA", *patterns[::-1], allowed.T)):
        unreached = ((others @ pairs.T) == 0).astype(np.float32)
        unreached[np.diff(others.indptr) == 0] = 0
        lone = ours @ unreached.T
        if lone.any():
            row, other = np.argwhere(lone)[0]
            raise ValueError(
                f"'C' must allow every word with weight a partner; '{names[0]}' row {row} has weight where 'C' forbids "
                f"(+inf) all words of '{names[1]}' row {other}. Allow a pair, or drop the row"
            )


def _as_given(x):
    return np.asarray(x) if isinstance(x, numbers.Number) else x


def are_documents(A, B):
    """Whether a call with these collections is one of `document_pairs`."""
    return any(is_sparse(x) or is_measures(x) for x in (A, B))
