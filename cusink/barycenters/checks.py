"""Checks of the arguments of `cusink.barycenter`, in the manner of `cusink.solver.checks`."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Never, Self

import numpy as np

from cusink.checks.arrays import array_module, in_range, kind, narrowed, owned, promoted, to_host, weights_dtype
from cusink.checks.regularisation import regularisations
from cusink.checks.scalars import flags, price_in_range
from cusink.checks.weights import MASS_TOLERANCE, batch_size, first_index, of_sum_one, same_mass, weight_values
from cusink.costs.checks import cost_values, squares_in_range
from cusink.costs.cost import Cost
from cusink.costs.images import Cells, in_bins
from cusink.costs.kinds import cells_of, named_arrays
from cusink.costs.measures import Measures
from cusink.operand import operand, with_row
from cusink.solver.gauge import islands
from cusink.types import Array, ArrayModule, Eps, HostArray


@dataclass(frozen=True, eq=False, kw_only=True)
class BarycenterProblem:
    """Checked A (B, K, n), weights (B, K) of sum 1, C (n, m) in the dtype of the computation, and eps, one or (B,).

    `total` (B,) are the sums of the weights as they came.
    """

    A: Array
    weights: Array
    total: Array
    C: Cost[Any]
    eps: Eps
    dtype: Any
    batched: bool
    image: Cells = None  # the shape of a histogram beside a grid, if they came as images

    @property
    def forbids(self) -> bool:
        """Whether the cost forbids pairs."""
        return self.C.stored and not bool(self.C.xp.isfinite(self.C.data).all())

    def at(self, problems: HostArray, eps: float) -> Self:
        """Return some problems, which have one eps."""
        names = ("A", "weights", "total")
        return replace(self, eps=eps, **{name: getattr(self, name)[problems] for name in names})


def problem(
    A: Any,
    C: Any,
    weights: Any,
    *,
    eps: Any,
    debiased: Any,
    check: bool,
    memory_limit: int | None,
    normalise: bool = False,
) -> BarycenterProblem:
    """Check the arrays of a call of `cusink.barycenter`."""
    eps = regularisations(eps)
    flags(debiased=debiased, check=check, normalise=normalise)
    given = A
    (A, weights, *parts), xp, dtype = promoted(A=A, weights=weights, **named_arrays(C))
    A, image = in_bins("A", A, cells_of(C), ("K, ", "B, K, "))
    C = with_row(operand(C, xp, dtype, parts, memory_limit, batch=False), memory_limit)
    for value in (float(np.min(eps)), float(np.max(eps))):
        price_in_range("eps", value, C.dtype.name)
    if A is None:
        raise TypeError("'A' must be an array of histograms; got None")
    n = C.shape[0]
    if A.ndim not in (2, 3) or A.shape[-1] != n or 0 in A.shape:
        raise ValueError(
            f"'A' must have shape (K, {n}) or (B, K, {n}), one histogram per row, to match C of shape {C.shape}; "
            f"got {A.shape}"
        )
    count = A.shape[-2]
    weights = xp.full(count, 1 / count, A.dtype) if weights is None else weights
    if weights.ndim not in (1, 2) or weights.shape[-1] != count or 0 in weights.shape:
        raise ValueError(
            f"'weights' must have shape ({count},) or (B, {count}), one for each of {count} histograms; "
            f"got {weights.shape}"
        )
    given_sizes = (("A", A, 2), ("weights", weights, 1), ("eps", np.asarray(eps), 0))
    size = batch_size({name: len(x) for name, x, base in given_sizes if x.ndim > base})
    if check:
        weight_values("weights", weights.reshape(-1, count), xp)
        weight_values("A", A.reshape(-1, n), xp)
        if C.stored:
            _check_costs(C, bool(debiased))
            of = weights_dtype(dtype, given)
            _check_partners(A.reshape(-1, count, n), weights.reshape(-1, count), C.data, xp, MASS_TOLERANCE[of.name])
    elif debiased and C.shape[0] != C.shape[1]:
        _check_costs(C, bool(debiased))
    A = xp.ascontiguousarray(xp.broadcast_to(A, (size, count, n)))
    weights = xp.broadcast_to(weights, (size, count))
    total = weights.sum(axis=1)
    return BarycenterProblem(
        A=_of_sum_one(A) if normalise else _equal_mass(A, xp, check, weights_dtype(dtype, given)),
        weights=weights / total[:, None],
        total=total,
        C=C,
        eps=np.broadcast_to(eps, (size,)).copy() if isinstance(eps, np.ndarray) else eps,
        dtype=dtype,
        batched=any(x.ndim > base for _, x, base in given_sizes),
        image=image,
    )


def refuse_debiased(shape: tuple[int, ...]) -> Never:
    """Refuse a cost that is not symmetric where a debiased barycenter is asked for."""
    raise ValueError(
        f"'C' must be symmetric for a debiased barycenter, between bins that it shares with 'A'; got shape {shape}. "
        "Pass debiased=False"
    )


def _check_costs(C: Cost[Any], debiased: bool) -> None:
    """Check the entries of a cost."""
    if debiased and not C.xp.isfinite(C.data).all():
        raise ValueError(
            "'C' must be finite for a debiased barycenter; got NaN or infinity. Pass debiased=False, or give a "
            "forbidden pair a large cost"
        )
    cost_values(C.data, C.xp)
    if debiased and not C.symmetric:
        refuse_debiased(C.shape)


def _check_partners(A: Array, weights: Array, C: Array, xp: ArrayModule, tolerance: float) -> None:
    """Check that every bin with mass may send it to a bin that all histograms of its problem can send some to.

    All must have one share of their mass, up to a `tolerance`, on each group of bins that allowed pairs connect.
    """
    allowed = xp.isfinite(C)
    if allowed.all():
        return
    full, pairs = (A > 0) & (weights[:, :, None] > 0), allowed.astype(A.dtype)
    common = ((full.astype(A.dtype) @ pairs > 0) | (weights[:, :, None] == 0)).all(axis=1)
    reached = common.astype(A.dtype) @ pairs.T > 0
    if (at := first_index(full & ~reached[:, None])) is not None:
        problem, histogram, row = at
        raise ValueError(
            f"'C' must allow every bin with mass a bin that all histograms can send mass to; in problem {problem}, bin "
            f"{row} of histogram {histogram} has none (+inf). Allow a pair, or empty the bin"
        )
    _check_groups(to_host(A), to_host(full), to_host(common), to_host(allowed), tolerance)


def _check_groups(A: HostArray, full: HostArray, common: HostArray, allowed: HostArray, tolerance: float) -> None:
    """Check the shares (B, K) of groups of bins, given which bins are `full` (B, K, n) or `common` to all (B, m)."""
    size = max(len(A), len(full))
    A, full, common = (np.broadcast_to(x, (size, *x.shape[1:])) for x in (A, full, common))
    known: dict[bytes, HostArray] = {}  # problems of a batch mostly have the same bins
    for problem, (histograms, filled, reached) in enumerate(zip(A, full, common, strict=True)):
        counted, rows = np.flatnonzero(filled.any(axis=1)), np.flatnonzero(filled.any(axis=0))
        name = rows.tobytes() + np.packbits(reached).tobytes()
        if name not in known:
            pairs = allowed[np.ix_(rows, np.flatnonzero(reached))]
            known[name], _ = islands([(slice(0, len(rows)), pairs)], *pairs.shape)
        names, group = np.unique(known[name], return_inverse=True)
        if len(names) == 1:
            continue
        masses = histograms[np.ix_(counted, rows)].astype(np.float64)
        shares = np.stack([np.bincount(group, row, len(names)) for row in masses / masses.sum(axis=1, keepdims=True)])
        off = np.ptp(shares, axis=0)
        if off.max() > tolerance:
            worst = int(off.argmax())
            (most, high), (least, low) = ((counted[k], shares[k, worst]) for k in _ends(shares[:, worst]))
            raise ValueError(
                "'C' must leave a histogram that all the given ones can be moved to; in problem "
                f"{problem}, +inf parts bin {rows[group == worst][0]} and the bins connected with it from all others, "
                f"and histogram {most} has the share {high:.3g} of its mass there, histogram {least} {low:.3g}. Allow "
                "pairs between these groups of bins, by a large finite cost"
            )


def _ends(x: HostArray) -> tuple[int, int]:
    """Return where the largest and the smallest number is."""
    return int(x.argmax()), int(x.argmin())


def _of_sum_one(A: Array) -> Array:
    return of_sum_one(A.reshape(-1, A.shape[-1])).reshape(A.shape)


def _equal_mass(A: Array, xp: ArrayModule, check: bool, dtype: Any) -> Array:
    """Return `A` with the mass of the first histogram of each problem, which all have up to their tolerance."""
    mass = A.sum(axis=2, dtype=np.float64)
    if check:
        same_mass(
            "the histograms of a barycenter",
            xp,
            mass,
            mass[:, :1],
            dtype,
            got=lambda problem, row: (
                f"row 0 has {float(mass[problem, 0]):g} and row {row} has {float(mass[problem, row]):g} in problem "
                f"{problem}"
            ),
            advice="normalise=True divides each by its sum",
        )
    return A * (mass[:, :1] / mass).astype(A.dtype)[:, :, None]


class Cloud(NamedTuple):
    """Points (m, d) and weights (m,) of an item of measures, the `part` of their rows, and its share."""

    share: float
    points: Array
    weights: Array
    item: int
    part: slice


@dataclass(frozen=True, eq=False, kw_only=True)
class FreeProblem:
    """Points x (n, d) with weights a (n,), and clouds, in the dtype of the computation.

    Shares have the sum 1, of `total` as they came; `others` are clouds without a share, which have points with mass.
    `spread` is the length that steps are measured by, and `sizes` are the numbers of points and of items.
    """

    x: Array
    a: Array
    clouds: list[Cloud]
    others: list[Cloud]
    total: float
    spread: float
    sizes: tuple[int, int]
    dtype: Any  # of the user

    @property
    def xp(self) -> ArrayModule:
        """The library of the arrays; no field, as no pickle holds a module."""
        xp: ArrayModule = array_module(self.x)
        return xp

    @property
    def points(self) -> Array:
        """The points of all clouds that count."""
        return self.xp.concatenate([cloud.points for cloud in self.clouds])

    def to_user(self, array: Array) -> Array:
        """Return an array in the dtype of the user."""
        return narrowed(array, self.dtype, self.xp)

    def in_float64(self) -> Self:
        """Return the same problem in float64."""

        def wide(cloud: Cloud) -> Cloud:
            return cloud._replace(points=cloud.points.astype(np.float64), weights=cloud.weights.astype(np.float64))

        clouds, others = [wide(cloud) for cloud in self.clouds], [wide(cloud) for cloud in self.others]
        x, a = self.x.astype(np.float64), self.a.astype(np.float64)
        return replace(self, x=x, a=a, clouds=clouds, others=others)


def free_problem(measures: Any, weights: Any, x: Any, a: Any, balanced: bool, normalise: bool = False) -> FreeProblem:
    """Check the arrays of `cusink.free_barycenter`."""
    if not isinstance(measures, Measures):
        raise TypeError(f"'measures' must be cusink.Measures, as of cusink.Measures.of(clouds); got {kind(measures)}")
    if x is None:
        raise TypeError("'x' must be an array of points to start from; got None. A sample of one cloud is a usual one")
    if normalise:
        measures = measures.normalised()
    named = {"measures.points": measures.points, "measures.weights": measures.weights}
    given_x, given_a = x, a
    (x, a, weights, points, masses), xp, dtype = promoted(x=x, a=a, weights=weights, **named)
    points, masses = owned(points, measures.points), owned(masses, measures.weights)
    x = owned(x[:, None] if x.ndim == 1 else x, given_x)
    d, count = points.shape[1], len(measures)
    if x.ndim != 2 or not len(x) or x.shape[1] != d:
        raise ValueError(f"'x' must have shape (n, {d}) with at least one point, as 'measures' have; got {x.shape}")
    for name, given, size in (("a", a, len(x)), ("weights", weights, count)):
        if given is not None and given.shape != (size,):
            raise ValueError(f"'{name}' must have shape ({size},); got {given.shape}")
    in_range("x", x, xp)
    in_range("measures.points", points, xp)
    a = xp.full(len(x), 1 / len(x), x.dtype) if a is None else owned(a, given_a)
    shares = xp.ones(count, x.dtype) if weights is None else weights
    weight_values("a", a[None], xp)
    a = of_sum_one(a[None])[0] if normalise else a
    weight_values("weights", shares[None], xp)
    total = float(shares.sum())
    clouds: list[Cloud] = []
    others: list[Cloud] = []
    for k, share in enumerate(to_host(shares) / total):
        part = slice(int(measures.offsets[k]), int(measures.offsets[k + 1]))
        full = bool(masses[part].any())
        if share > 0 and not full:
            raise ValueError(f"'measures' must hold no empty item with a weight; item {k} is. Leave it out")
        if full:
            (clouds if share > 0 else others).append(Cloud(float(share), points[part], masses[part], k, part))
    if balanced:
        same_mass(
            "'measures' and 'a'",
            xp,
            xp.stack([cloud.weights.sum(dtype=np.float64) for cloud in clouds]),
            a.sum(dtype=np.float64),
            weights_dtype(dtype, measures.weights),
            got=lambda k: f"got {float(clouds[k].weights.sum()):g} and {float(a.sum()):g}",
            advice="normalise=True divides each by its sum. Or pass a 'reach'",
        )
    squares_in_range("'x' and 'measures'", [x, *(cloud.points for cloud in (*clouds, *others))], xp)
    parts = [(cloud.share, cloud.points, cloud.weights / cloud.weights.sum()) for cloud in clouds]
    centre = sum(share * (p * b[:, None]).sum(axis=0) for share, p, b in parts)
    squares = [share * float(((p - centre) ** 2).sum(axis=1) @ b) for share, p, b in parts]
    return FreeProblem(
        x=x,
        a=a,
        clouds=clouds,
        others=others,
        total=total,
        spread=sum(squares) ** 0.5 or 1.0,
        sizes=(len(points), count),
        dtype=dtype,
    )
