"""Every check of the arguments of public functions, once per call, before any work.

A message says: parameter, rule, what came, and how to mend it. TypeError is for kind, dtype and library; ValueError
for shapes and values. What comes out is contiguous and of one library, device and dtype, with the batch axis in front.
"""

import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np

from cusink._arrays import HALF, arrays, kind
from cusink._grid_costs import GridCosts
from cusink._point_costs import PointCosts
from cusink.geometry import Grid, PointCloud, arrays_of, costs_of

METHODS = ("auto", "log", "scaling")
VALUES = ("cost", "reg_cost", "entropic_cost")
MASS_TOLERANCE = {"float32": 1e-3, "float64": 1e-6}


@dataclass(frozen=True, eq=False, kw_only=True)
class Arrays:
    """Checked a (B, n), b (B, m), C (n, m) or (B, n, m) in the dtype of the computation; `dtype` is the user's.

    C may be a cost that is not stored, see `cusink._ops`.
    """

    a: Any
    b: Any
    C: Any
    dtype: Any
    batched: bool
    init: Any = None
    batch_of_one: bool = False  # C came as (1, n, m)


def sinkhorn(a, b, C, *, eps, init, check, memory_limit=None, balanced=True):
    """Arrays of a call of `cusink.sinkhorn`; `balanced` says that the masses are to be equal."""
    regularisation(eps)
    if init is not None and not (isinstance(init, (tuple, list)) and len(init) == 2):
        raise TypeError(f"'init' must be a pair (f, g) of potentials; got {kind(init)}. Pass (result.f, result.g)")
    f, g = (None, None) if init is None else init
    (a, b, f, g, *parts), xp, dtype = arrays(a=a, b=b, **{"init[0]": f, "init[1]": g}, **arrays_of(C))
    C, stored = cost(C, xp, dtype, parts, memory_limit)
    n, m = C.shape[-2:]
    batch_of_one = C.ndim == 3 and C.shape[0] == 1
    if batch_of_one:
        C, batched = C[0] if stored else C.at(0), True  # one cost for all
    else:
        batched = C.ndim == 3
    sides = (("a", a, n), ("b", b, m), ("init[0]", f, n), ("init[1]", g, m))
    for name, x, bins in sides:
        if x is not None and (x.ndim not in (1, 2) or x.shape[-1] != bins):
            raise ValueError(_shape_message(name, x.shape, bins, C.shape, a, b))
    sizes = {name: len(x) for name, x, _ in sides if x is not None and x.ndim == 2} | (
        {"C": C.shape[0]} if C.ndim == 3 else {}
    )
    size = _batch_size(sizes)
    a, b = (_weights(xp, x, bins, size, C.dtype) for x, bins in ((a, n), (b, m)))
    if check:
        weight_values("a", a, xp)
        weight_values("b", b, xp)
        if stored:
            cost_values(C, xp)
            partners(a, b, C, xp)
    if balanced:
        b = equal_mass(a, b, xp, check)
    if init is not None:
        if check:
            for name, x in (("init[0]", f), ("init[1]", g)):
                if not xp.isfinite(x).all():
                    raise ValueError(
                        f"'{name}' must be finite; got {float(x[~xp.isfinite(x)][0])}. Start without 'init'"
                    )
        f, g = (xp.ascontiguousarray(xp.broadcast_to(x, (size, x.shape[-1]))) for x in (f, g))
        init = (f, g)
    C = xp.ascontiguousarray(C) if stored else C
    return Arrays(a=a, b=b, C=C, dtype=dtype, batched=batched or bool(sizes), init=init, batch_of_one=batch_of_one)


def points(x, y, metric):
    """Points (n, d) and (m, d) of `cusink.cost_matrix`; y None for x."""
    (x, y), xp, dtype = arrays(x=x, y=y)
    shaped = []
    for name, p in (("x", x), ("y", x if y is None else y)):
        p = p[:, None] if p.ndim == 1 else p
        if p.ndim != 2 or 0 in p.shape:
            raise ValueError(
                f"'{name}' must have shape (points, d) with at least one point and one coordinate; got {p.shape}"
            )
        if not xp.isfinite(p).all():
            raise ValueError(f"'{name}' must be finite; got NaN or infinity")
        if metric == "cosine" and not p.any(axis=1).all():
            raise ValueError(
                f"'{name}' must hold no zero vector for metric 'cosine'; got row {int((~p.any(axis=1)).argmax())}"
            )
        shaped.append(p)
    if shaped[0].shape[1] != shaped[1].shape[1]:
        raise ValueError(f"'x' and 'y' must have the same number of coordinates; got {x.shape} and {y.shape}")
    return shaped, xp, dtype


def regularisation(eps):
    """Check the regularisation."""
    if isinstance(eps, bool) or not isinstance(eps, numbers.Real):
        raise TypeError(f"'eps' must be a number; got {kind(eps)}")
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"'eps' must be positive and finite; got {eps}. A usual start is 0.01 times the largest cost")


def options(max_iter, tol, check_every, method, overrelaxation, callback=None):
    """Check the options of the solver and return them as keywords of `cusink.sinkhorn.solve`."""
    for name, value in (("max_iter", max_iter), ("check_every", check_every)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"'{name}' must be an integer; got {kind(value)}")
        if value < 1:
            raise ValueError(f"'{name}' must be at least 1; got {value}")
    if tol is not None:
        if isinstance(tol, bool) or not isinstance(tol, numbers.Real):
            raise TypeError(f"'tol' must be a number or None; got {kind(tol)}")
        if not (math.isfinite(tol) and tol > 0):
            raise ValueError(f"'tol' must be positive and finite, or None for exactly 'max_iter' iterations; got {tol}")
    one_of("method", method, METHODS)
    if overrelaxation is not None and overrelaxation != "auto":
        if isinstance(overrelaxation, bool) or not isinstance(overrelaxation, numbers.Real):
            raise TypeError(f"'overrelaxation' must be 'auto', a number in [1, 2) or None; got {overrelaxation!r}")
        if not 1 <= overrelaxation < 2:
            raise ValueError(f"'overrelaxation' must be 'auto', a number in [1, 2) or None; got {overrelaxation}")
    if callback is not None and not callable(callback):
        raise TypeError(f"'callback' must be callable as callback(iteration, error); got {kind(callback)}")
    return {
        "max_iter": int(max_iter),
        "tol": tol,
        "check_every": int(check_every),
        "method": method,
        "overrelaxation": overrelaxation,
        "callback": callback,
    }


def one_of(name, value, allowed):
    """Check a word against those allowed."""
    if value not in allowed:
        raise ValueError(f"'{name}' must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def vector(v, axis, problem):
    """Check the vectors of `SinkhornResult.apply`; return them with a batch axis."""
    if axis not in (0, 1):
        raise ValueError(f"'axis' must be 0 (for P' v) or 1 (for P v); got {axis!r}")
    (v, _), xp, _ = arrays(v=v, plan=problem.f[:0].astype(problem.dtype))
    bins = problem.C.shape[axis - 2]
    size = len(problem.a)
    allowed = [(bins,), (size, bins)] if problem.batched else [(bins,)]
    if v.shape not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise ValueError(f"'v' must have shape {wanted} for axis={axis}; got {v.shape}. Did you mean axis={1 - axis}?")
    return xp.ascontiguousarray(xp.broadcast_to(v, (size, bins)))


def output(out, shape, dtype, xp, inputs):
    """`out` if it can take the result, a new array if it is None; it must not share memory with the inputs."""
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
    for name, x in inputs.items():
        if isinstance(x, xp.ndarray) and xp.may_share_memory(out, x):
            raise ValueError(
                f"'out' must not overlap an input; it shares memory with '{name}'. Pass an array of its own"
            )
    return out


def tile(memory_limit, item_bytes, largest):
    """How many problems of `item_bytes` each fit into the limit, at most `largest`."""
    if memory_limit is None:
        return largest
    if positive_bytes(memory_limit) < item_bytes:
        raise ValueError(f"'memory_limit' must be at least {item_bytes} bytes, what one pair takes; got {memory_limit}")
    return min(int(memory_limit) // item_bytes, largest)


def cost(C, xp, dtype, parts, memory_limit=None, batch=True):
    """The cost as the operators take it, and whether it is an array; `parts` are its arrays, converted."""
    stored = not isinstance(C, (PointCloud, Grid))
    computing = np.dtype(np.float32) if dtype.name in HALF else dtype
    limit = {} if memory_limit is None else {"memory_limit": positive_bytes(memory_limit)}
    C = costs_of(C, xp, computing, parts, **limit)
    cost_shape(C, batch)
    if not stored and C.largest(xp) > float(np.finfo(C.dtype.name).max):
        raise ValueError(f"'C' must hold finite costs; the largest exceed the range of {C.dtype}. Scale the points")
    return C, stored


def positive_bytes(memory_limit):
    """Check a number of bytes."""
    if isinstance(memory_limit, bool) or not isinstance(memory_limit, numbers.Integral):
        raise TypeError(f"'memory_limit' must be a number of bytes (an integer) or None; got {kind(memory_limit)}")
    if memory_limit < 0:
        raise ValueError(f"'memory_limit' must be a number of bytes; got {memory_limit}")
    return int(memory_limit)


def cost_shape(C, batch=True):
    """Check the shape of a cost."""
    wanted = "(n, m) or (B, n, m)" if batch else "(n, m)"
    if C is None:
        raise TypeError("'C' must be an array of costs; got None. cusink.cost_matrix makes one from points")
    if C.ndim not in ((2, 3) if batch else (2,)):
        raise ValueError(f"'C' must have shape {wanted}; got {C.shape}")
    if 0 in C.shape:
        raise ValueError(f"'C' must have at least one row and one column; got shape {C.shape}")


def symmetric(C):
    """Whether a cost is symmetric."""
    if isinstance(C, PointCosts):
        return C.x is C.y
    if isinstance(C, GridCosts):
        return True
    return C.shape[0] == C.shape[1] and bool((C == C.T).all())


def cost_values(C, xp):
    """Check the entries of a cost: no NaN, no -inf; +inf is a forbidden pair."""
    if not xp.isfinite(C.min()) or xp.isnan(C).any():
        what = "NaN" if xp.isnan(C).any() else "-inf" if xp.isneginf(C).any() else "+inf alone"
        raise ValueError(
            f"'C' must hold finite costs, and +inf only for forbidden pairs; got {what}. Check how the cost was made"
        )


def weight_values(name, weights, xp):
    """Check that weights are finite, non-negative, and not all zero."""
    if not xp.isfinite(weights).all():
        row, column = _first(xp, ~xp.isfinite(weights))
        raise ValueError(f"'{name}' must be finite; got {float(weights[row, column])} at [{row}, {column}]")
    if (weights < 0).any():
        row, column = _first(xp, weights < 0)
        raise ValueError(
            f"'{name}' must be non-negative; got {float(weights[row, column]):g} at [{row}, {column}]. "
            "Weights are masses, not their logarithms"
        )
    empty = weights.sum(axis=1) == 0
    if empty.any():
        raise ValueError(
            f"'{name}' must have a positive sum; row {int(empty.argmax())} is all zero. Leave empty rows out"
        )


def equal_mass(a, b, xp, check):
    """`b` scaled to the mass of `a`, which it must have up to the tolerance of its dtype."""
    mass_a, mass_b = a.sum(axis=1, dtype=np.float64), b.sum(axis=1, dtype=np.float64)
    if check:
        tolerance = MASS_TOLERANCE[a.dtype.name]
        off = xp.abs(mass_a - mass_b) > tolerance * mass_a
        if off.any():
            row = int(off.argmax())
            raise ValueError(
                f"'a' and 'b' must have the same mass (relative {tolerance:g}); got {float(mass_a[row]):g} and "
                f"{float(mass_b[row]):g} in row {row}. "
                "To normalise, divide each by its sum: a / a.sum(axis=-1, keepdims=True). Where the difference has a "
                "meaning, 'reach' lets mass appear and vanish at a price"
            )
    return b * (mass_a / mass_b).astype(b.dtype)[:, None]


def partners(a, b, C, xp):
    """Check that every bin with weight may send some of it to a bin with weight."""
    allowed = xp.isfinite(C)
    if allowed.all():
        return
    for name, weights, others, pairs in (("a", a, b, allowed), ("b", b, a, xp.swapaxes(allowed, -1, -2))):
        lone = (weights > 0) & ~_reached(others, pairs, xp)
        if lone.any():
            problem, index = _first(xp, lone)
            line = "row" if name == "a" else "column"
            raise ValueError(
                f"'C' must allow every bin with weight a partner with weight; in problem {problem}, {line} {index} of "
                f"'C' is forbidden (+inf) wherever the other side has weight, and '{name}' has weight there. "
                "Allow a pair, or empty the bin"
            )


def _reached(others, pairs, xp):
    """Bins (B, n) with a partner that `pairs` (n, m) or (B, n, m) allow and `others` (B, m) give weight."""
    count = xp.matmul((others > 0)[:, None, :].astype(others.dtype), xp.swapaxes(pairs, -1, -2).astype(others.dtype))
    return count[:, 0, :] > 0


def _shape_message(name, shape, bins, cost, a, b):
    swapped = (
        a is not None
        and b is not None
        and a.shape[-1:] == cost[-1:]
        and b.shape[-1:] == cost[-2:-1]
        and cost[-1] != cost[-2]
    )
    hint = ". Did you swap 'a' and 'b'?" if swapped and name in "ab" else ""
    wanted = f"({', '.join(map(str, (*cost[:-2], bins)))}{',' if len(cost) == 2 else ''})"
    return f"'{name}' must have shape {wanted} to match C of shape {tuple(cost)}; got {shape}{hint}"


def _batch_size(sizes):
    batch = {size for size in sizes.values() if size != 1}
    if len(batch) > 1:
        listed = ", ".join(f"'{name}' {size}" for name, size in sizes.items())
        raise ValueError(f"batch sizes must be equal or 1; got {listed}")
    if 0 in batch:
        name = next(name for name, size in sizes.items() if size == 0)
        raise ValueError(f"'{name}' must hold at least one problem; got a batch of 0")
    return batch.pop() if batch else 1


def _weights(xp, weights, bins, size, dtype):
    if weights is None:
        return xp.full((size, bins), 1 / bins, dtype)
    return xp.ascontiguousarray(xp.broadcast_to(weights, (size, bins)))


def _first(xp, mask):
    index = int(mask.argmax())
    return divmod(index, mask.shape[1])
