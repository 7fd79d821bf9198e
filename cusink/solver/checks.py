"""Checks of the arguments of `cusink.sinkhorn`, once per call, before any work."""

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from cusink.checks.arrays import finite_entries, in_range, kind, owned, promoted, to_host, weights_dtype, widened
from cusink.checks.regularisation import RelativeEps, for_problems, in_units
from cusink.checks.scalars import (
    flags,
    integer,
    one_of,
    positive_integer,
    positive_number,
    price_in_range,
    real,
    shown,
)
from cusink.checks.weights import (
    batch_size,
    broadcast_weights,
    equal_mass,
    first_index,
    of_sum_one,
    weight_values,
)
from cusink.convergence.options import Options
from cusink.costs.checks import cost_values, partners
from cusink.costs.images import in_bins
from cusink.costs.kinds import cells_of, named_arrays
from cusink.costs.statistics import statistic
from cusink.operand import operand, with_room, with_row
from cusink.solver import gauge
from cusink.solver.problem import ArrivedProblem, CheckedProblem, Problem
from cusink.solver.solution import Callback
from cusink.types import Array, Axis, Eps, Method, Reach

METHODS = get_args(Method)

RULE = "'reach' must be a positive number in the unit of 'C', None, or a pair of these for 'a' and 'b'"


def problem(
    a: Any,
    b: Any,
    C: Any,
    *,
    eps: Eps | RelativeEps,
    init: Any = None,
    check: bool,
    memory_limit: int | None = None,
    reach: Reach | None = None,
    normalise: bool = False,
) -> CheckedProblem:
    """Check the arrays of a call of `cusink.sinkhorn`; without `reach` the masses are to be equal."""
    flags(check=check, normalise=normalise)
    return checked(arrived(a, b, C, eps=eps, init=init, memory_limit=memory_limit), check, reach, normalise)


def arrived(
    a: Any,
    b: Any,
    C: Any,
    *,
    eps: Eps | RelativeEps,
    init: Any = None,
    memory_limit: int | None = None,
) -> ArrivedProblem:
    """Check kinds and shapes of the arrays of a call, and no values."""
    if init is not None and not (isinstance(init, (tuple, list)) and len(init) == 2):
        raise TypeError(f"'init' must be a pair (f, g) of potentials; got {kind(init)}. Pass (result.f, result.g)")
    f, g = (None, None) if init is None else init
    if init is not None and (f is None or g is None):
        raise TypeError("'init' must be a pair (f, g) of potentials; got None for one. Pass (result.f, result.g)")
    users = (a, b, *named_arrays(C).values())
    given = a, b
    (a, b, f, g, *parts), xp, dtype = promoted(a=a, b=b, **{"init[0]": f, "init[1]": g}, **named_arrays(C))
    cells = cells_of(C)
    (a, image_a), (b, image_b) = in_bins("a", a, cells), in_bins("b", b, cells)
    (f, _), (g, _) = in_bins("init[0]", f, cells), in_bins("init[1]", g, cells)
    C = with_row(operand(C, xp, dtype, parts, memory_limit, weights_follow=True), memory_limit)
    n, m = C.shape[-2:]
    images = (image_b if a is None else image_a, image_a if b is None else image_b)  # uniform weights follow the others
    batch_of_one = not C.shared and C.shape[0] == 1
    batched = not C.shared
    if batch_of_one:
        C = C.at(0)  # one cost for all
    sides = (("a", a, n), ("b", b, m), ("init[0]", f, n), ("init[1]", g, m))
    for name, x, bins in sides:
        if x is not None and (x.ndim not in (1, 2) or x.shape[-1] != bins):
            raise ValueError(_shape_message(name, x.shape, bins, C.shape, a, b))
    sizes = {name: len(x) for name, x, _ in sides if x is not None and x.ndim == 2} | (
        {} if C.shared else {"C": C.shape[0]}
    )
    if isinstance(eps, np.ndarray) and (sizes or batched):
        sizes["eps"] = len(eps)
    return ArrivedProblem(
        a=a,
        b=b,
        init=None if init is None else (f, g),
        C=C,
        eps=eps,
        dtype=dtype,
        size=batch_size(sizes),
        batched=batched or bool(sizes),
        batch_of_one=batch_of_one,
        images=images,
        given=given,
        users=users,
    )


def checked(problem: ArrivedProblem, check: bool, reach: Reach | None, normalise: bool) -> CheckedProblem:
    """Check the values of a problem, where `check` asks for it, and bring them into the form that is computed with."""
    C, xp, size, dtype = problem.C, problem.C.xp, problem.size, problem.dtype
    n, m = C.shape[-2:]
    a, b = (broadcast_weights(xp, x, bins, size, C.dtype) for x, bins in ((problem.a, n), (problem.b, m)))
    C = with_room(C if C.stored else C.weighted(a > 0, b > 0))
    masses = None
    if check:
        masses = weight_values("a", a, xp), weight_values("b", b, xp)
        if C.stored:
            cost_values(C.data, xp)
            partners(a, b, C.data, xp, reach)
    eps = problem.eps
    eps = in_units(eps, statistic(C, eps.of)) if isinstance(eps, RelativeEps) else eps
    eps = for_problems(eps, size, problem.batched, C.dtype.name)
    if normalise:
        a, b, masses = of_sum_one(a), of_sum_one(b), None
    if reach is None:
        b = equal_mass(a, b, xp, check, weights_dtype(dtype, *problem.given), masses)
    if masses is not None:
        values_in_range(masses, eps, reach, C.dtype)
    init = problem.init
    if init is not None:
        if check:
            for name, x in zip(("init[0]", "init[1]"), init, strict=True):
                finite_entries(name, x, xp, "Start without 'init'")
        f, g = (xp.ascontiguousarray(xp.broadcast_to(x, (size, x.shape[-1]))) for x in init)
        init = (f, g)
    # The result keeps these.
    a, b = owned(a, *problem.users), owned(b, *problem.users)
    if C.stored:
        C = replace(C, data=owned(C.data, *problem.users))
    return CheckedProblem(
        a=a,
        b=b,
        C=C,
        eps=eps,
        dtype=dtype,
        batched=problem.batched,
        init=init,
        batch_of_one=problem.batch_of_one,
        images=problem.images,
    )


def options(
    max_iter: int,
    tol: float | None,
    check_every: int = 10,
    method: Method = "auto",
    overrelaxation: Any = "auto",
) -> Options:
    """Check the options of the solver."""
    max_iter, check_every = positive_integer("max_iter", max_iter), positive_integer("check_every", check_every)
    if tol is not None:
        tol = positive_number(
            "tol", tol, wanted="a number or None", rule="positive and finite, or None for exactly 'max_iter' iterations"
        )
    one_of("method", method, METHODS)
    if overrelaxation is not None and not (isinstance(overrelaxation, str) and overrelaxation == "auto"):
        rule = "'overrelaxation' must be 'auto', a number in [1, 2) or None"
        number = real(overrelaxation)
        if number is None:
            got = repr(overrelaxation) if isinstance(overrelaxation, str) else kind(overrelaxation)
            raise TypeError(f"{rule}; got {got}")
        if not 1 <= number < 2:
            raise ValueError(f"{rule}; got {shown(overrelaxation)}")
        overrelaxation = number
    return Options(max_iter, tol, check_every, method, overrelaxation)


def values_in_range(masses: tuple[Array, Array], eps: Eps, reach: Reach | None, dtype: Any) -> None:
    """Check that what masses (B,) and (B,) of both sides add to the regularised cost is a number of the dtype.

    That is eps times their product with `reach`, and about ``eps * mass * log(mass)`` without.
    """
    mass_a, mass_b = map(to_host, masses)
    factor, of = (mass_b, "their product") if reach is not None else (abs(np.log(mass_a)), "sum * |log(sum)|")
    with np.errstate(over="ignore"):
        size = mass_a * factor * eps
    most = float(np.finfo(dtype).max)
    if (at := first_index(~(size <= most))) is not None:
        row = at[0]
        raise ValueError(
            f"'a' and 'b' must have sums such that 'eps' times {of}, a part of 'reg_cost', is at most {most:.2g}, a "
            f"number of {dtype}; got {mass_a[row]:.3g} and {mass_b[row]:.3g} in row {row}. Divide both by one number"
        )


def reach_in_range(prices: Reach, dtype: Any) -> None:
    """Check that the prices of the marginals are numbers of the dtype of the computation."""
    for price in prices:
        if price < math.inf:
            price_in_range("reach", price, dtype)


def gap(value: Any, prices: Reach | None) -> float | None:
    """Check the relative gap of the bounds that is asked for, if any."""
    if value is None:
        return None
    number = positive_number("gap", value, "1e-3 is a usual one", wanted="a number or None")
    if prices is not None:
        raise ValueError(
            "'gap' must be None with 'reach', as the linear programme behind it meets both marginals; got "
            f"{number:g}. Leave one of both out"
        )
    return number


def callback(function: Callback | None) -> None:
    """Check the callback of a call of `cusink.sinkhorn`."""
    if function is not None and not callable(function):
        raise TypeError(f"'callback' must be callable as callback(iteration, error); got {kind(function)}")


def plan_axis(axis: Any) -> Axis:
    """Check the axis of a plan to sum over."""
    if (number := integer(axis)) not in (0, 1):
        got = shown(axis) if number is not None else kind(axis)
        raise ValueError(f"'axis' must be 0 (for P' v) or 1 (for P v); got {got}")
    return 1 if number else 0


def vector(v: Any, axis: Axis, problem: Problem) -> Array:
    """Check the vectors of `SinkhornResult.apply`; return them with a batch axis."""
    plan_axis(axis)
    if v is None:
        raise TypeError("'v' must be an array of vectors; got None")
    v, xp = widened("v", v, "plan", problem.f[:0].astype(problem.dtype))
    v, _ = in_bins("v", v, problem.images[axis])
    bins = problem.C.shape[axis - 2]
    size = len(problem.a)
    allowed = [(bins,), (size, bins)] if problem.batched else [(bins,)]
    if v.shape not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise ValueError(f"'v' must have shape {wanted} for axis={axis}; got {v.shape}. Did you mean axis={1 - axis}?")
    in_range("v", v, xp)
    return xp.ascontiguousarray(xp.broadcast_to(v, (size, bins)))


def potential(name: str, x: Any, side: int, given: CheckedProblem, eps: float, balanced: bool = True) -> Array:
    """Check a potential of side 0 (rows) or 1 (columns) that the user brings; return it as (B, bins) in float64.

    In balanced transport the constant in it, which would cost digits, is taken off.
    """
    x, xp = widened(name, x, "the weights", given.a[:0].astype(given.dtype))
    bins, size = given.C.shape[side - 2], len(given.a)
    x, _ = in_bins(name, x, given.images[side])
    if x.ndim not in (1, 2) or x.shape[-1] != bins or (x.ndim == 2 and len(x) not in (1, size)):
        wanted = f"({bins},)" + (f" or ({size}, {bins})" if given.batched else "")
        raise ValueError(f"'{name}' must have shape {wanted} to match the weights and 'C'; got {x.shape}")
    in_range(name, x, xp)
    if not math.isfinite(max(float(x.max()), -float(x.min())) / eps):
        raise ValueError(f"'{name}' must be such that {name} / eps is finite; got {float(abs(x).max()):.3g}")
    x = xp.ascontiguousarray(xp.broadcast_to(x, (size, bins)), dtype=np.float64)
    return x - gauge.mean(xp, (given.a, given.b)[side], x) if balanced else x


def _shape_message(
    name: str, shape: tuple[int, ...], bins: int, cost: tuple[int, ...], a: Array | None, b: Array | None
) -> str:
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


def for_each_side(reach: Any) -> bool:
    """Whether a `reach`, checked or not, holds a price for each marginal: a tuple, a list, or an array of one axis."""
    return isinstance(reach, (tuple, list)) or getattr(reach, "ndim", 0) == 1


def reach(value: Any, method: Method = "auto") -> Reach | None:
    """Return the prices (rho_a, rho_b) of both marginals, inf where one is to be met; None where both are."""
    pair = tuple(value) if for_each_side(value) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{RULE}; got {len(pair)} values")
    prices = []
    for rho in pair:
        price = math.inf if rho is None else real(rho)
        if price is None:
            raise TypeError(f"{RULE}; got {kind(rho)}")
        if not price > 0:
            raise ValueError(
                f"{RULE}; got {shown(rho)}. A small reach leaves far mass behind, None transports all of it"
            )
        prices.append(price)
    if prices == [math.inf] * 2:
        return None
    if isinstance(method, str) and method == "scaling":
        raise ValueError("'method' must be 'auto' or 'log' for unbalanced transport; got 'scaling'. Leave it out")
    return prices[0], prices[1]
