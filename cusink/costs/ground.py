"""Metrics between points: their names, their parameters, what they ask of points, and the costs that they make."""

from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from cusink.costs.arcs import Arc, Chords
from cusink.costs.between import KERNEL_BYTES, BetweenPoints, Cloud, Embedding
from cusink.costs.blockwise import BlockCosts
from cusink.costs.embeddings import Directions, Linear, Roots, Sphere
from cusink.costs.formulas import Formula, Power, RelativeEntropy, Squares, Sums
from cusink.costs.functions import CostFunction, CostGradient, Given
from cusink.costs.points import PointCosts
from cusink.costs.powers import NormPower
from cusink.types import Array, ArrayModule, HostArray

CloudMetric: TypeAlias = Literal[
    "sqeuclidean",
    "euclidean",
    "cityblock",
    "cosine",
    "minkowski",
    "mahalanobis",
    "hellinger",
    "kl",
    "haversine",
]
CLOUD_METRICS: tuple[CloudMetric, ...] = get_args(CloudMetric)


class Norm(NamedTuple):
    """``factor * (sum_k |u_k - v_k| ** p) ** exponent`` with images u and v."""

    p: float
    exponent: float
    factor: float = 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Ground:
    """A metric and its parameters, checked; arrays are in float64 on the host."""

    metric: CloudMetric | CostFunction = "sqeuclidean"
    power: float = 1.0
    tf32: bool = False
    p: float | None = None
    radius: float | None = None
    factor: HostArray | None = None
    table: HostArray | None = None
    gradient: CostGradient | None = None

    @property
    def keywords(self) -> dict[str, Any]:
        """The parameters by the names that `cusink.PointCloud` gives them, the metric with them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def has_kernels(self) -> bool:
        """Whether CUDA kernels and large clouds know the cost; else it is made in blocks."""
        norm = self.norm
        return self.table is None and norm is not None and norm.p in (1, 2) and self.metric != "haversine"

    @property
    def norm(self) -> Norm | None:
        """The cost as the power of a norm, where it is one."""
        power = self.power
        norms = {
            "sqeuclidean": Norm(2, power),
            "euclidean": Norm(2, power / 2),
            "mahalanobis": Norm(2, power / 2),
            "cityblock": Norm(1, power),
            "cosine": Norm(2, power, 0.5**power),
            "hellinger": Norm(2, power / 2, 0.5 ** (power / 2)),
            "haversine": Norm(2, power),
        }
        if self.metric == "minkowski":
            p = self.p or 2.0
            return Norm(p, power / p)
        return norms.get(self.metric) if isinstance(self.metric, str) else None

    def embedding(self, xp: ArrayModule) -> Embedding | None:
        """Return the map between whose images the metric is a norm; None where the points are theirs."""
        if self.metric == "mahalanobis":
            return Linear(xp.asarray(self.factor))
        maps: dict[Any, type[Embedding]] = {"cosine": Directions, "hellinger": Roots, "haversine": Sphere}
        return maps[self.metric]() if self.metric in maps else None

    def formula(self) -> Formula:
        """Return the cost between images."""
        if not isinstance(self.metric, str):
            return Given(self.metric, self.gradient)
        if self.metric == "kl":
            return Sums(RelativeEntropy(), Power(self.power))
        if self.metric == "haversine":
            radius = self.radius or 1.0
            return Chords(Squares(), Arc(self.power, _scale(radius, self.power)))
        norm = self.norm
        assert norm is not None
        return NormPower(norm.p, norm.p * norm.exponent, norm.factor)

    def costs(
        self,
        xp: ArrayModule,
        x: Array,
        y: Array,
        labels: tuple[HostArray, HostArray] | None,
        memory_limit: int = KERNEL_BYTES,
        cloud: Cloud | None = None,
        by_formula: bool = False,
    ) -> BetweenPoints:
        """Return the costs between checked points; y is x itself for one cloud. In blocks if `by_formula`."""
        embedding, given = self.embedding(xp), None
        if embedding is not None:
            given = x, y
            x, y = embedding.of_both(xp, x, y, x.dtype)
        if self.has_kernels and not by_formula:
            norm = self.norm
            assert norm is not None
            return PointCosts(
                x,
                y,
                "squared" if norm.p == 2 else "cityblock",
                exponent=norm.exponent,
                factor=norm.factor,
                memory_limit=memory_limit,
                cloud=cloud,
                terms=1 if self.tf32 else 3,
                embedding=embedding,
                given=given,
            )
        of_points = None if labels is None else (xp.asarray(labels[0]), xp.asarray(labels[1]))
        if of_points is not None and y is x:
            of_points = (of_points[0],) * 2
        return BlockCosts(
            x,
            y,
            self.formula(),
            memory_limit=memory_limit,
            cloud=cloud,
            embedding=embedding,
            given=given,
            labels=of_points,
            table=None if self.table is None else xp.asarray(self.table),
        )


def _scale(length: float, power: float) -> float:
    """Return a power that all costs are multiples of."""
    try:
        return float(length**power)
    except OverflowError:
        raise ValueError(
            f"'power' must be such that costs are finite; got {power:g} for distances of {length:g}. Scale the points"
        ) from None
