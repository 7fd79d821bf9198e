"""Options, costs and rules of half precision that the losses of `cusink.torch` and `cusink.jax` share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from cusink.bridges.spacing import GIVEN, axes_of, spacing_gradient, spacing_with
from cusink.bridges.works import SPACING, Inputs
from cusink.checks.arrays import array_module, kind
from cusink.checks.scalars import one_of
from cusink.checks.weights import MASS_TOLERANCE
from cusink.costs.cells import Spacing
from cusink.costs.clouds import PointCloud, checked_ground
from cusink.costs.grid import Grid
from cusink.costs.ground import CLOUD_METRICS, CloudMetric
from cusink.costs.images import Cells
from cusink.costs.kinds import kind_of
from cusink.solver import checks
from cusink.types import Array, Value

Gradient: TypeAlias = Literal["exact", "multiplier"]
Reduction: TypeAlias = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class CostKind:
    """A cost without its arrays: `names` of these, and what else makes it."""

    kind: Literal["dense", "points", "grid"] = "dense"
    metric: CloudMetric = "sqeuclidean"
    power: float = 1.0
    names: tuple[str, ...] = ("C",)
    cells: tuple[int, ...] = ()
    spacing: tuple[Spacing | str, ...] = ()
    periodic: tuple[bool, ...] = ()
    p: float | None = None
    radius: float | None = None

    @property
    def made_of(self) -> tuple[Any, ...]:
        """Numbers, words and tuples of these from which the class makes the kind again."""
        of_grid = (self.cells, self.spacing, self.periodic)
        return (self.kind, self.metric, self.power, self.names, *of_grid, self.p, self.radius)

    def build(self, given: Inputs) -> Any:
        """Return the cost as the functions of the package take it."""
        if self.kind == "dense":
            return given["C"]
        if self.kind == "points":
            parameters: dict[str, Any] = {"power": self.power, "p": self.p, "radius": self.radius}
            return PointCloud(given["x"], given.get("y"), self.metric, **parameters)
        metric: Any = self.metric
        return Grid(self.cells, metric, spacing=spacing_with(self.spacing, given), periodic=self.periodic)

    @property
    def shown(self) -> str:
        """The ``repr`` of a grid of arrays of the library."""
        spacing = ", ".join(map(str, self.spacing))
        return f"Grid({self.cells}, {self.metric!r}, spacing=({spacing}), periodic={self.periodic})"

    @property
    def image(self) -> Cells:
        """The shape that histograms may have beside a grid of several axes; None for other costs."""
        return self.cells if len(self.cells) > 1 else None

    @property
    def ranks(self) -> dict[str, int]:
        """Axes of each array for one problem."""
        return dict.fromkeys(self.names, 1 if self.kind == "grid" else 2)

    def bins(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """Return n and m, given the shapes of the arrays."""
        if self.kind == "dense":
            return shapes["C"][-2], shapes["C"][-1]
        if self.kind == "points":
            return shapes["x"][-2], shapes[self.names[-1]][-2]
        count = 1
        for cells in self.cells:
            count *= cells
        return count, count


def point_kind(metric: str, power: object, alone: bool, p: object, radius: object, factor: object) -> CostKind:
    """Return the kind of a cost between points; `alone` says that one cloud is on both sides.

    With a `factor` it is that between the `images` of the points.
    """
    one_of("metric", metric, CLOUD_METRICS)
    images = metric == "mahalanobis" and factor is not None
    known: Any = "euclidean" if images else metric
    given = {"metric": known, "power": power, "p": p, "radius": radius, "factor": None if images else factor}
    ground = checked_ground(given | {"tf32": False, "table": None, "gradient": None})
    names = ("x",) if alone else ("x", "y")
    return CostKind("points", known, ground.power, names, p=ground.p, radius=ground.radius)


def images(named: dict[str, Any], still: Callable[[Any], Any], product: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """Return arrays by name, with ``x L`` in the place of points x if there is a "factor" L of "mahalanobis".

    The metric is the Euclidean distance of the images, so that the library's own derivatives of a product give all by
    the factor. `still` stops gradients; points that are far from 0 keep the digits of their differences.
    """
    factor = named.get("factor")
    if factor is None:
        return named
    (d, _), out = factor.shape, {name: x for name, x in named.items() if name != "factor"}
    centre = still(named["x"]).reshape(-1, d).mean(0)
    if "points" in out:
        new_points_shape(tuple(out["points"].shape), CostKind("points"), d)
    return out | {name: product(out[name] - centre, factor) for name in ("x", "y", "points") if name in out}


def before_images(costs: Mapping[str, Any], axis: int) -> Any:
    """Return the points that are mapped to, where the cost sees their images under a factor; else None."""
    return costs["y" if axis == 1 and "y" in costs else "x"] if "factor" in costs else None


def factor_shape(shape: tuple[int, ...], points: Mapping[str, Any]) -> None:
    """Check the shape of a factor beside points, whose shapes are checked."""
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"'factor' must have two axes, neither of them empty; got shape {shape}")
    for name, x in points.items():
        if x.shape[-1] != shape[0]:
            raise ValueError(
                f"'factor' must have a row for each of the {x.shape[-1]} coordinates of '{name}'; got shape {shape}"
            )


def grid_kind(grid: Any) -> CostKind:
    """Return the kind of a `cusink.Grid`."""
    metric: Any = grid.metric
    return CostKind("grid", metric, 1.0, (), grid.cells, grid.spacing, grid.periodic)


def learnt_grid(shape: Any, metric: str, spacing: Any, periodic: Any, of: Any) -> tuple[CostKind, dict[str, Any]]:
    """Return the kind of a grid, and the spacings that are arrays of a library, instances of `of`, by name."""
    axes, own = axes_of(shape, metric, spacing, periodic, of)
    known: Any = metric
    return CostKind("grid", known, 1.0, tuple(own), *axes), own


def grid_or_refuse(C: Any, wanted: str, points: str) -> CostKind | None:
    """Return the kind of a `cusink.Grid`; refuse a `cusink.PointCloud`, whose arrays are not those of the library."""
    known = kind_of(C)
    if known in ("points", "blocks"):
        raise TypeError(f"'C' must be {wanted}; got {kind(C)}. Pass {points}")
    return grid_kind(C) if known == "grid" else None


@dataclass(frozen=True)
class LossOptions:
    """Options of a loss of one value, whose words are checked; `solver` are those of `cusink.sinkhorn`."""

    value: Value
    gradient: Gradient
    reduction: Reduction
    solver: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        one_of("value", self.value, get_args(Value))
        one_of("gradient", self.gradient, get_args(Gradient))
        one_of("reduction", self.reduction, get_args(Reduction))


def reduced(losses: Any, reduction: str) -> Any:
    """Return the mean or the sum of the losses (B,), or the losses themselves."""
    one_of("reduction", reduction, get_args(Reduction))
    return losses if reduction == "none" else getattr(losses, reduction)()


def takes_reach(options: tuple[tuple[str, Any], ...]) -> bool:
    """Say whether `reach` is an input of the work that has these options, with a gradient."""
    reach = dict(options).get("reach")
    return isinstance(reach, str) and reach == GIVEN


def reach_parts(options: tuple[tuple[str, Any], ...], of: Any) -> tuple[Any, ...]:
    """Return the prices of both marginals, or one, if some are arrays of a library, instances of `of`; else check."""
    reach, method = dict(options).get("reach"), dict(options).get("method", "auto")
    parts = tuple(reach) if isinstance(reach, (tuple, list)) else (reach,)
    if not any(isinstance(x, of) for x in parts):
        checks.reach(reach, method)
        return ()
    sizes = {tuple(x.shape) for x in parts if isinstance(x, of)}
    wanted = {(), (1,)} if len(parts) > 1 else {(), (1,), (2,)}
    if len(parts) > 2 or not sizes <= wanted:
        shapes = ", ".join(str(shape) for shape in sorted(sizes))
        raise ValueError(f"'reach' must be one number, or one for each marginal; got shapes {shapes}")
    rest = [x for x in parts if not isinstance(x, of)]
    checks.reach((rest[0] if rest else 1, 1), method)
    return parts


def with_reach_given(options: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
    """Return options of the solver in which `reach` is an input of the work."""
    return tuple((name, GIVEN if name == "reach" else x) for name, x in options)


def with_reach_as_numbers(options: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
    """Return options, of which works can be made, with a tuple for two prices that came as an array or a list."""
    reach: Any = dict(options).get("reach")
    if not checks.for_each_side(reach):
        return options
    prices = tuple(rho if rho is None else float(rho) for rho in reach)
    return tuple((name, prices if name == "reach" else x) for name, x in options)


def unbalanced(options: tuple[tuple[str, Any], ...]) -> bool:
    """Say whether options of the solver have prices of the marginals, which are checked."""
    if takes_reach(options):
        return True
    named = dict(options)
    prices = checks.reach(named.get("reach"), named.get("method", "auto"))
    gap = checks.gap(named.get("gap"), prices)
    if gap is not None:
        raise ValueError(
            f"'gap' must be None here, as losses show no bounds; got {gap:g}. Call cusink.sinkhorn, whose result does"
        )
    return prices is not None


def options_with(options: tuple[tuple[str, Any], ...], given: Inputs) -> dict[str, Any]:
    """Return options of the solver by name, with the prices that are an input of the work as numbers."""
    named = dict(options)
    if takes_reach(options):
        named["reach"] = tuple(float(price) for price in given["reach"].reshape(-1))
    return named


def reach_gradient(found: Array | None, given: Inputs) -> Array:
    """Return the gradient by the prices, zeros where both marginals were to be met."""
    return array_module(given["reach"]).zeros_like(given["reach"]) if found is None else found


def gradient_of(grads: Any, name: str, given: Inputs) -> Array:
    """Return the gradient by an input, of what an adjoint of the package returned."""
    if name.startswith(SPACING):
        return spacing_gradient(grads.axes, name, given)
    found: Any = getattr(grads, name)
    return reach_gradient(found, given) if name == "reach" else found


def adjoint_tolerance(options: tuple[tuple[str, Any], ...]) -> float:
    """Return the tolerance of the linear system, given the options of the solver."""
    tol = dict(options).get("tol", "auto")
    return 1e-6 if tol in (None, "auto") else tol


def values_of(shape: tuple[int, ...], bins: tuple[int, int]) -> None:
    """Check the shape of values that plans between `bins` are multiplied with."""
    if len(shape) not in (2, 3) or shape[-2] not in bins or 0 in shape:
        raise ValueError(
            f"'values' must have shape ({bins[1]}, d) for axis 1 or ({bins[0]}, d) for axis 0, or that with a batch "
            f"axis; got {shape}"
        )


def new_points_shape(shape: tuple[int, ...], kind: CostKind, d: int) -> None:
    """Check the shape of new points beside a cost between points of `d` coordinates."""
    if kind.kind != "points":
        raise TypeError("'C' must be a PointCloud for new points; other costs know their own bins alone")
    point_shape("points", shape)
    if shape[-1] != d:
        raise ValueError(f"'points' must have the {d} coordinates of the cloud; got shape {shape}")


def values_at(shape: tuple[int, ...], bins: int) -> None:
    """Check the shape of values of the side of `bins` points that new points are mapped to."""
    if len(shape) not in (2, 3) or shape[-2] != bins or 0 in shape:
        raise ValueError(f"'values' must have shape ({bins}, d), or that with a batch axis; got {shape}")


def point_shape(name: str, shape: tuple[int, ...]) -> None:
    """Check the shape of points; those on a line have got their axis of coordinates before."""
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(
            f"'{name}' must have shape (points, d) or (B, points, d) with at least one point and one coordinate; got "
            f"{shape}"
        )


def cloud_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check the shapes of the points of a cloud, or of both clouds."""
    for name, shape in shapes.items():
        point_shape(name, shape)
    if len({shape[-1] for shape in shapes.values()}) > 1:
        raise ValueError(f"'x' and 'y' must have the same number of coordinates; got {shapes['x']} and {shapes['y']}")


def mass_ratio(xp: Any, a: Any, b: Any, dtype: str = "bfloat16") -> Any:
    """Return the factors (..., 1) that give `b` the mass of `a`, 1 where rounding to the dtype they had is no reason.

    `xp` is the library of a (..., n) and b (..., m): torch or jax.numpy.
    """
    ratio = a.sum(axis=-1, keepdims=True) / b.sum(axis=-1, keepdims=True)
    return xp.where(abs(ratio - 1) <= MASS_TOLERANCE[dtype], ratio, 1)


def of_sum_one(xp: Any, weights: Any) -> Any:
    """Return weights (..., n) divided by their sums, through which gradients go; those of sum zero as they are."""
    total = weights.sum(axis=-1, keepdims=True)
    return weights / xp.where(total > 0, total, 1)


def values_in_bins(values: Any, cells: Cells) -> tuple[Any, Cells]:
    """Return values (..., bins, d), and the `cells` if they came as (..., *cells, d)."""
    if cells is None or tuple(values.shape[-1 - len(cells) : -1]) != cells:
        return values, None
    return values.reshape(*values.shape[: -1 - len(cells)], -1, values.shape[-1]), cells


def values_as_images(values: Any, cells: Cells) -> Any:
    """Return values (..., bins, d) as (..., *cells, d)."""
    return values if cells is None else values.reshape(*values.shape[:-2], *cells, values.shape[-1])
