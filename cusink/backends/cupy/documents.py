"""Documents on a GPU: all iterations of all pairs in one launch of ``documents.cu``, one block per pair."""

import cupy as cp
import numpy as np

from cusink.backends.cupy.launch import configure_documents
from cusink.backends.cupy.run import LOG2_E, NO_INDEX, device, run
from cusink.backends.relaxation import FIRST_IF_STEEP, STEEP

SQUARED, CITYBLOCK, STORED = 0, 1, 2  # as in documents.cu
ROUNDING = 64  # roundings of C / eps that an error which no longer falls may be, as in cusink.sinkhorn


def on_device(offsets, places, weights):
    """A collection as the kernel takes it."""
    return tuple(cp.asarray(part) for part in (offsets, places, weights))


def solve_pairs(ours, theirs, sizes, rows, columns, costs, eps, options):
    """Solve the pairs (rows[k], columns[k]) of collections `on_device`; a dict of NumPy arrays (P,).

    `sizes` are the largest numbers of points of the items in both; `costs` is an array (V, W) or `PointCosts`.
    """
    weights, pairs, tol = ours[2], len(rows), options["tol"]
    dtype, most = weights.dtype, np.finfo(weights.dtype)
    rows, columns = (cp.asarray(np.ascontiguousarray(index, np.int64)) for index in (rows, columns))
    if isinstance(costs, cp.ndarray):
        kind, factor, exponent, d, x, y = STORED, 1.0, 1.0, costs.shape[1], costs, costs
        high = float(cp.where(cp.isfinite(costs), cp.abs(costs), 0).max())
    else:
        kind = SQUARED if costs.norm == "squared" else CITYBLOCK
        factor, exponent, d, x, y = costs.factor, costs.exponent, costs.x.shape[1], costs.x, costs.y
        high = costs.largest(cp)
    adaptive = options["overrelaxation"] == "auto" and tol is not None
    steep = adaptive and high / eps >= STEEP
    omega = FIRST_IF_STEEP if steep else 1.0
    if options["overrelaxation"] not in ("auto", None):
        omega = float(options["overrelaxation"])
    launch, tile = configure_documents(pairs, *sizes, dtype.name, device())
    scratch = cp.empty(launch.grid * tile, dtype) if tile else NO_INDEX
    cost, reg_cost, error, n_iter = (cp.empty(pairs, kind) for kind in (dtype, dtype, dtype, np.int64))
    level = ROUNDING * float(most.eps) * (1 + high / eps)
    real = (factor, exponent, LOG2_E / eps, -1.0 if tol is None else tol, level, omega)
    whole = (adaptive, steep, options["max_iter"], options["check_every"])
    run(
        launch,
        dtype,
        *(cost, reg_cost, error, n_iter, scratch, rows, columns),
        *(*ours, cp.ascontiguousarray(x), *theirs, cp.ascontiguousarray(y)),
        np.int32(kind),
        *map(np.float64, real),
        *map(np.int32, whole),
        *map(np.int64, (pairs, d)),
        *map(np.int32, sizes),
    )
    found = {"cost": cost, "reg_cost": reg_cost, "error": error, "n_iter": n_iter}
    found = {name: cp.asnumpy(part) for name, part in found.items()}
    found["converged"] = np.isfinite(found["error"]) if tol is None else found["error"] <= tol
    return found
