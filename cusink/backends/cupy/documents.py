"""Documents on a GPU: all iterations of pairs in one launch of ``documents.cu``, one block per pair.

Pairs whose costs do not fit into shared memory have launches of their own.
"""

from typing import Any, NamedTuple

import cupy as cp
import numpy as np

from cusink.backends.cupy import launch as launches
from cusink.backends.cupy.run import LOG2_E, NULL, device, run, sizes
from cusink.backends.cupy.stopping import StopRules
from cusink.convergence.options import Options
from cusink.convergence.rules import Relaxation, StallDetector, StopState
from cusink.costs.cost import Cost
from cusink.types import Array, HostArray

SQUARED, CITYBLOCK, STORED = 0, 1, 2  # as in documents.cu


class Collection(NamedTuple):
    """Items on the device: item k has the entries ``offsets[k]:offsets[k + 1]`` of places and weights."""

    offsets: Array
    places: Array
    weights: Array


def on_device(offsets: HostArray, places: HostArray, weights: HostArray) -> Collection:
    """Return a collection as the CUDA kernel takes it."""
    return Collection(*(cp.asarray(part) for part in (offsets, places, weights)))


class Costs(NamedTuple):
    """The costs between places as the CUDA kernel takes them."""

    kind: int
    factor: float
    exponent: float
    x: Array  # (V, d), or the costs themselves (V, W)
    y: Array
    largest: float

    @classmethod
    def of(cls, C: Cost[Any]) -> "Costs":
        """Return stored costs (V, W) or costs between points."""
        costs, largest = C.data, C.largest()
        if C.stored:
            return cls(STORED, 1.0, 1.0, costs, costs, largest)
        if costs.kind == "blocks":  # which no CUDA kernel knows
            costs = costs.block(cp)
            return cls(STORED, 1.0, 1.0, costs, costs, largest)
        kind = SQUARED if costs.norm == "squared" else CITYBLOCK
        return cls(kind, costs.factor, costs.exponent, costs.x, costs.y, largest)


def solve_pairs(
    ours: Collection,
    theirs: Collection,
    points: tuple[HostArray, HostArray],
    pairs: tuple[HostArray, HostArray],
    C: Cost[Any],
    eps: float,
    options: Options,
) -> dict[str, HostArray]:
    """Solve the pairs ``(rows[k], columns[k])`` of items of two collections.

    `points` are the numbers of points (P,) of both items of each pair.
    Returns NumPy arrays (P,) by name: cost, reg_cost, error, n_iter, converged.
    """
    dtype, given = ours.weights.dtype, Costs.of(C)
    groups = launches.document_groups(*points, dtype.name, device())
    chosen = []  # for all groups first: an item that is too large is an error before any work
    for group in groups:
        largest = int(points[0][group].max()), int(points[1][group].max())
        chosen.append((largest, launches.configure_documents(len(group), *largest, dtype.name, device())))
    found: dict[str, HostArray] = {}
    for group, (largest, launch) in zip(groups, chosen, strict=True):
        own = pairs[0][group], pairs[1][group]
        for name, part in _solve_group(ours, theirs, largest, launch, own, given, eps, options).items():
            found.setdefault(name, np.empty(len(pairs[0]), part.dtype))[group] = part
    return found


def _solve_group(
    ours: Collection,
    theirs: Collection,
    largest: tuple[int, int],
    chosen: launches.DocumentLaunch,
    pairs: tuple[HostArray, HostArray],
    given: Costs,
    eps: float,
    options: Options,
) -> dict[str, HostArray]:
    """Solve pairs in one launch, whose largest items have so many points; see `solve_pairs`."""
    dtype, tol, count = ours.weights.dtype, options.tol, len(pairs[0])
    rows, columns = (cp.asarray(np.ascontiguousarray(index, np.int64)) for index in pairs)
    exponent = given.largest / eps
    setting = None if tol is None and options.overrelaxation == "auto" else options.overrelaxation
    relaxation = Relaxation.start(1, setting, exponent, check_every=options.check_every)
    start = StopState.start(relaxation, StallDetector.start(1, dtype, exponent))
    rules = StopRules.of(start, -1.0 if tol is None else tol)
    launch, reals, stage_outside = chosen
    scratch = cp.empty(launch.grid * reals, dtype) if reals else NULL
    found = {name: cp.empty(count, dtype) for name in ("cost", "reg_cost", "error")}
    found["n_iter"] = cp.empty(count, np.int64)
    real: tuple[Any, ...] = (given.factor, given.exponent, LOG2_E / eps, start.relaxation.omega[0])
    run(
        launch,
        dtype,
        *found.values(),
        *(scratch, rows, columns),
        *(*ours, cp.ascontiguousarray(given.x), *theirs, cp.ascontiguousarray(given.y)),
        np.int32(given.kind),
        *map(np.float64, real),
        *rules,
        *map(np.int32, (options.max_iter, options.check_every)),
        *sizes(count, given.x.shape[1]),
        *map(np.int32, (*largest, stage_outside)),
    )
    host = {name: cp.asnumpy(part) for name, part in found.items()}
    host["converged"] = np.isfinite(host["error"]) if tol is None else host["error"] <= tol
    return host
