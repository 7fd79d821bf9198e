"""Works over pairs of clouds of unequal sizes: one number for each pair.

A number depends on its own pair alone, so that its derivatives by all inputs are as many numbers as the inputs have.
They are taken where the pairs are solved and are the state of the work: a gradient multiplies them.
"""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from cusink.bridges.works import Arrays, Inputs, Shapes, Work
from cusink.checks.arrays import array_module, kind, to_host
from cusink.costs.ground import CloudMetric
from cusink.costs.measures import Measures, Offsets
from cusink.costs.metric import Metric, metric_of
from cusink.solver.pairs.checks import unused
from cusink.types import Array, HostArray

SLOPE = "slope_"  # before the name of an input: the derivative of each number by its share of it


@dataclass(frozen=True)
class PairWork(Work):
    """A number for each pair of measures, of which item k has the points from offsets[k] to offsets[k + 1].

    `slopes` names the inputs by which derivatives are taken: those by others do not exist.
    """

    title: ClassVar[str] = "losses of pairs of measures"

    metric: CloudMetric
    of_metric: tuple[Any, ...]  # its power, p and radius
    offsets: tuple[Offsets, Offsets]
    options: tuple[tuple[str, Any], ...]
    slopes: tuple[str, ...]

    @property
    def made_of(self) -> tuple[Any, ...]:
        """Numbers, words and tuples of these."""
        return (self.metric, self.of_metric, self.offsets, self.options, self.slopes)

    @property
    def ranks(self) -> dict[str, int]:
        """Axes of each input: weights (N,), points (N, d), and those of the other side; eps (K,)."""
        return {"a": 1, "x": 2, "b": 1, "y": 2, "eps_of_pairs": 1}

    @property
    def outputs(self) -> dict[str, int]:
        """The numbers (K,)."""
        return {"value": 1}

    @property
    def state(self) -> dict[str, int]:
        """The derivatives, in the shapes of the inputs."""
        return {SLOPE + name: self.ranks[name] for name in self.slopes}

    def shapes(self, given: Shapes) -> dict[str, tuple[int, ...]]:
        """Return the shapes of outputs and state."""
        batch = self.batch(given)
        own = {SLOPE + name: batch + tuple(given[name][-self.ranks[name] :]) for name in self.slopes}
        return {"value": (*batch, len(self.offsets[0]) - 1)} | own

    def run(self, given: Inputs) -> Arrays:
        """Return outputs and state."""
        return _one_by_one(self._run, [given], [self.ranks])

    def pull(self, given: Inputs, state: Inputs, cotangents: Inputs, wanted: tuple[str, ...]) -> Arrays:
        """Return gradients of inputs."""
        del given
        self._known(wanted)

        def pulled(state: Inputs, cotangents: Inputs) -> Arrays:
            xp, every = array_module(cotangents["value"]), cotangents["value"]
            out = {}
            for name in wanted:
                slope = state[SLOPE + name]
                share = every[xp.asarray(self._pair_of(name))]
                out[name] = share.reshape(-1, *(1,) * (slope.ndim - 1)) * slope
            return out

        return _one_by_one(pulled, [state, cotangents], [self.state, self.outputs])

    def push(self, given: Inputs, state: Inputs, directions: Inputs) -> Arrays:
        """Return the derivative of the numbers along directions."""
        del given
        self._known(tuple(directions))

        def pushed(state: Inputs, directions: Inputs) -> Arrays:
            total: Any = 0
            for name, move in directions.items():
                xp, product = array_module(move), state[SLOPE + name] * move
                product = product.sum(axis=1) if product.ndim > 1 else product
                total = total + xp.bincount(xp.asarray(self._pair_of(name)), product, len(self.offsets[0]) - 1)
            return {"value": total.astype(next(iter(directions.values())).dtype)}

        return _one_by_one(pushed, [state, directions], [self.state, self.ranks])

    @abstractmethod
    def _solved(self, A: Measures, B: Measures, eps: Any) -> tuple[Array, Callable[[], Any]]:
        """Return the numbers (K,), and what returns their gradients."""

    @property
    def _metric(self) -> Metric:
        power, p, radius = self.of_metric
        return Metric(self.metric, power=power, p=p, radius=radius)

    def _run(self, given: Inputs) -> Arrays:
        eps = to_host(given["eps_of_pairs"])
        A = Measures(np.array(self.offsets[0]), given["a"], given["x"])
        B = Measures(np.array(self.offsets[1]), given["b"], given["y"])
        value, gradients = self._solved(A, B, float(eps[0]) if (eps == eps[0]).all() else eps)
        out = {"value": value}
        found: Any = gradients() if self.slopes else None
        for name in self.slopes:
            slope = found.eps if name == "eps_of_pairs" else getattr(found, name)
            out[SLOPE + name] = slope.astype(given["x"].dtype, copy=False)
        return out

    def _pair_of(self, name: str) -> HostArray:
        """Return to which pair each entry of an input belongs."""
        if name == "eps_of_pairs":
            return np.arange(len(self.offsets[0]) - 1)
        sizes = np.diff(self.offsets[name in "by"])
        return np.repeat(np.arange(len(sizes)), sizes)

    def _known(self, wanted: tuple[str, ...]) -> None:
        """Refuse derivatives that were not taken."""
        if not set(wanted) <= set(self.slopes):
            raise RuntimeError("derivatives of pairs are taken where they are solved: solve them outside of no_grad")


def _one_by_one(
    function: Callable[..., Arrays], groups: Sequence[Inputs], ranks: Sequence[Mapping[str, int]]
) -> Arrays:
    """Return the results of a function of groups of arrays, stacked where these have an axis more in front."""
    paired = [(x, rank[name]) for group, rank in zip(groups, ranks, strict=True) for name, x in group.items()]
    sizes = [len(x) for x, rank in paired if x.ndim > rank]
    if not sizes:
        return function(*groups)
    parts = []
    for k in range(max(sizes)):
        chosen = []
        for group, rank in zip(groups, ranks, strict=True):
            chosen.append({n: x[k if len(x) > 1 else 0] if x.ndim > rank[n] else x for n, x in group.items()})
        parts.append(function(*chosen))
    xp = array_module(paired[0][0])
    return {name: xp.stack([part[name] for part in parts]) for name in parts[0]}


# ---- what users pass ------------------------------------------------------------------------------------------


def no_arrays(a: Any, b: Any, wanted: str) -> None:
    """Refuse `cusink.Measures`, which hold arrays, where those `wanted` hold tensors."""
    for name, x in (("a", a), ("b", b)):
        if isinstance(x, Measures):
            raise TypeError(f"'{name}' must be {wanted}, or weights; got {kind(x)}, which hold NumPy or CuPy arrays")


def pair_work(A: Any, B: Any, C: Any, of: Callable[..., PairWork], slopes: tuple[str, ...], **options: Any) -> PairWork:
    """Return the work over pairs of the measures of a library; they have `offsets` and `points`."""
    for name, x in (("a", A), ("b", B)):
        if not hasattr(x, "offsets"):
            raise TypeError(f"'a' and 'b' must both be Measures, or neither; '{name}' is {kind(x)}")
    unused(gap=dict(options["options"]).get("gap"))
    metric = metric_of(C, "Measures")
    if len(A) != len(B):
        raise ValueError(
            f"'a' and 'b' must hold equally many measures, which are compared pair by pair; got {len(A)} and {len(B)}"
        )
    d = A.points.shape[1], B.points.shape[1]
    if d[0] != d[1]:
        raise ValueError(f"'a' and 'b' must have points of one dimension; got d = {d[0]} and d = {d[1]}")
    for name, x in (("a", A), ("b", B)):
        empty = [k for k, (start, end) in enumerate(itertools.pairwise(x.offsets)) if start == end]
        if empty:
            raise ValueError(f"'{name}' must hold measures with points; item {empty[0]} has none. Leave it out")
    name = metric.name if metric.factor is None else "euclidean"  # between images of the points
    return of(name, tuple(metric.options.values()), (A.offsets, B.offsets), slopes=slopes, **options)
