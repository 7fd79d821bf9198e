"""`cusink.Metric`: a metric with its options, for points that come without a `PointCloud`."""

from typing import Any

import numpy as np

from cusink.checks.arrays import kind
from cusink.checks.foreign import taken
from cusink.checks.scalars import one_of
from cusink.costs.clouds import checked_ground
from cusink.costs.ground import CLOUD_METRICS, CloudMetric, Ground

__all__ = ["Metric"]


class Metric:
    """A metric with its options, between the points of `cusink.Measures`.

    It takes the place of the name of a metric as `C`, wherever that goes with `cusink.Measures`: a name alone is a
    metric to the power 1, without options.

    Parameters
    ----------
    name : str
        "sqeuclidean", "euclidean", "cityblock", "cosine", "minkowski", "mahalanobis", "hellinger", "kl" or "haversine",
        as for `cusink.PointCloud`.
    power : float
        The cost is the metric to this power.
    p : float, optional
        Of "minkowski", at most 16; 2 if not given.
    radius : float, optional
        Of the sphere of "haversine"; 1 if not given.
    factor : array, shape (d, k), optional
        Of "mahalanobis", which needs one: distances are ``|(x - y) L|``. The losses of `cusink.torch` and `cusink.jax`
        have gradients by a factor that is a tensor or an array of theirs.

    Attributes
    ----------
    name, power, p, radius, factor
        As given.

    Raises
    ------
    TypeError
        A name that is no word.
    ValueError
        A metric that does not exist, an option of another metric, one that is not positive, a factor of the wrong shape
        or with values that are not finite.

    Notes
    -----
    Functions and tables of labels go with `cusink.PointCloud` alone, for one pair of clouds or for a batch.

    Examples
    --------
    >>> import cusink
    >>> A, B = cusink.Measures.of([[0.0], [1.0, 3.0]]), cusink.Measures.of([[2.0, 4.0], [2.0]])
    >>> cubes = cusink.Metric("minkowski", p=3, power=3)
    >>> print(cusink.sinkhorn(A, B, cubes, eps=0.1).cost.round(3))
    [36.  1.]
    """

    def __init__(
        self,
        name: CloudMetric,
        *,
        power: float = 1,
        p: float | None = None,
        radius: float | None = None,
        factor: Any = None,
    ) -> None:
        one_of("name", name, CLOUD_METRICS, "A function is a metric of cusink.PointCloud")
        self.name, self.factor, self._given = name, factor, {"power": power, "p": p, "radius": radius}
        # One of another library may be traced, or learnt: it is read where it is used.
        known = factor is None or isinstance(factor, (np.ndarray, list, tuple))
        ground = self._ground(factor if known else np.ones((1, 1)))
        self.power, self.p, self.radius = ground.power, ground.p, ground.radius

    def __repr__(self) -> str:
        options = self.options | {"power": None if self.power == 1 else self.power}
        words = [f"{name}={value:g}" for name, value in options.items() if value is not None]
        words += [] if self.factor is None else [f"factor=<{'x'.join(map(str, np.shape(self.factor)))}>"]
        return f"Metric({', '.join([repr(self.name), *words])})"

    @property
    def options(self) -> dict[str, Any]:
        """The options by name, but a factor."""
        return {"power": self.power, "p": self.p, "radius": self.radius}

    @property
    def ground(self) -> Ground:
        """The metric and its options, checked, with a factor of its own."""
        return self._ground(taken("factor", self.factor))

    def _ground(self, factor: Any) -> Ground:
        others = {"tf32": False, "table": None, "gradient": None}
        return checked_ground({"metric": self.name, "factor": factor} | self._given | others)


def metric_of(given: Any, measures: str = "cusink.Measures") -> Metric:
    """Return the metric that stands for the cost `C` between points of measures: one, or its name."""
    if isinstance(given, Metric):
        return given
    if not isinstance(given, str):
        hint = (
            ". A function goes with a cusink.PointCloud, for one pair of clouds or a batch" if callable(given) else ""
        )
        raise TypeError(
            f"'C' must be the name of a metric, as 'sqeuclidean', or a cusink.Metric, for {measures}; got "
            f"{kind(given)}{hint}"
        )
    one_of("C", given, CLOUD_METRICS, f"'C' is the metric between the points of {measures}")
    if given == "mahalanobis":
        raise ValueError(
            "'C' must be cusink.Metric('mahalanobis', factor=L) for this metric, which is that of a factor; got its "
            "name alone"
        )
    return Metric(next(name for name in CLOUD_METRICS if name == given))


def kept(metric: Metric) -> Metric:
    """Return the same metric with a factor of its own, which nobody else may write to."""
    return Metric(metric.name, **metric.options, factor=metric.ground.factor)


def is_metric(given: Any) -> bool:
    """Say whether a cost is that of measures, a metric or its name, and no cost between bins."""
    return isinstance(given, (str, Metric))
