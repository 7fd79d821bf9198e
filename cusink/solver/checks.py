"""Checks of the arguments of `cusink.sinkhorn`, once per call, before any work."""

import math
import numbers

from cusink.checks.arrays import arrays, kind
from cusink.checks.scalars import one_of, regularisation
from cusink.checks.weights import batch_size, broadcast_weights, equal_mass, weight_values
from cusink.costs.checks import cost_values, partners
from cusink.costs.operand import arrays_of, cost
from cusink.solver.problem import Arrays

METHODS = ("auto", "log", "scaling")

RULE = "'reach' must be a positive number in the unit of 'C', None, or a pair of these for 'a' and 'b'"


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
    size = batch_size(sizes)
    a, b = (broadcast_weights(xp, x, bins, size, C.dtype) for x, bins in ((a, n), (b, m)))
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


def reach(value, method="auto"):
    """The prices (rho_a, rho_b) of both marginals, inf where one is to be met; None where both are."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{RULE}; got {len(pair)} values")
    prices = []
    for rho in pair:
        if rho is not None and (isinstance(rho, bool) or not isinstance(rho, numbers.Real)):
            raise TypeError(f"{RULE}; got {kind(rho)}")
        if rho is not None and not rho > 0:
            raise ValueError(f"{RULE}; got {rho}. A small reach leaves far mass behind, None transports all of it")
        prices.append(math.inf if rho is None else float(rho))
    if prices == [math.inf] * 2:
        return None
    if method == "scaling":
        raise ValueError("'method' must be 'auto' or 'log' for unbalanced transport; got 'scaling'. Leave it out")
    return tuple(prices)
