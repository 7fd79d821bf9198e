"""Answers do not depend on the unit of the costs: with eps and `reach` in the same unit, all values scale with it."""

import numpy as np
import pytest

import cusink

RNG = np.random.default_rng(3)
A, B = RNG.dirichlet(np.ones(6), 3), RNG.dirichlet(np.ones(6), 3)
COSTS, X, Y = RNG.random((6, 6)), RNG.random((6, 2)), RNG.random((6, 2))
# Powers of 4, so that the points are scaled by whole powers of 2 and every digit is the same.
UNITS = {"float32": (4.0**-48, 4.0**-30, 4.0**30, 4.0**48), "float64": (4.0**-400, 4.0**-60, 4.0**60, 4.0**400)}
OF_POINTS = {"points": 0.5, "euclidean": 1.0, "cityblock": 1.0, "grid": 0.5, "distances": 1.0}


def cost_in(kind, unit, dtype):
    scale = unit ** OF_POINTS.get(kind, 1)
    if kind == "dense":
        return (COSTS * unit).astype(dtype)
    if kind == "grid":
        return cusink.Grid((2, 3), spacing=scale)
    if kind == "distances":
        return cusink.Grid((2, 3), "euclidean", spacing=scale)
    points = ((p * scale).astype(dtype) for p in (X, Y))
    return cusink.PointCloud(*points, *([] if kind == "points" else [kind]))


def answers(kind, unit, dtype, reach):
    """Return all that is claimed, in the unit of the costs."""
    a, b, tol = A.astype(dtype), B.astype(dtype), 1e-5 if dtype == "float32" else 1e-9
    prices = {} if reach is None else {"reach": reach * unit}
    found = cusink.sinkhorn(a, b, cost_in(kind, unit, dtype), eps=0.125 * unit, tol=tol, **prices)
    by_cost, by_value = (
        cusink.sinkhorn_adjoint(found, **{f"grad_{v}": np.ones(3, dtype)}) for v in ("cost", "reg_cost")
    )
    out = {name: getattr(found, name) / unit for name in ("cost", "reg_cost", "entropic_cost", "f", "g")}
    out |= {"plan": found.plan(), "error": found.error, "by eps": by_cost.eps, "by a": by_cost.a / unit}
    out |= {f"bound {k}": bound / unit for k, bound in enumerate(found.bounds())}
    if kind == "dense":
        out |= {"by C": by_cost.C, "reg_cost by C": by_value.C}
    if kind in ("points", "euclidean", "cityblock"):
        out |= {
            "by x": by_cost.x / unit ** (1 - OF_POINTS[kind]),
            "reg by x": by_value.x / unit ** (1 - OF_POINTS[kind]),
        }
    return out


@pytest.mark.parametrize("reach", [None, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["dense", *OF_POINTS])
def test_answers_scale_with_the_unit(kind, dtype, reach):
    """Gradients were NaN from 1e20 on in float32, and wrong below 1e-20; bounds of clouds NaN from 1e30 on."""
    wanted = answers(kind, 1.0, dtype, reach)
    for unit in UNITS[dtype]:
        if kind == "euclidean" and not 1e-12 < unit < 1e17:
            continue
        found = answers(kind, unit, dtype, reach)
        for name, value in wanted.items():
            size = float(np.abs(value).max())
            allowed = (2e-4 if dtype == "float32" else 1e-9) * size
            np.testing.assert_allclose(found[name], value, rtol=0, atol=allowed, err_msg=f"{name} in units of {unit:g}")


@pytest.mark.parametrize(("dtype", "unit"), [("float32", 1e-18), ("float32", 1e20), ("float64", 1e-200)])
def test_roots_of_squares_without_room_are_refused(dtype, unit):
    """Distances of 1e-200 were zero, for their squares are; those of 1e20 NaN in float32."""
    with pytest.raises(
        ValueError, match="'C' must hold points whose squared distances have room in .*Scale the points"
    ):
        cusink.sinkhorn(None, None, cost_in("euclidean", unit, dtype), eps=0.1 * unit)


def test_a_far_point_without_weight_is_no_reason_to_refuse():
    x = np.array([[0.0], [1.0], [1e30]], "f4")
    weights = np.array([0.5, 0.5, 0.0], "f4")
    found = cusink.sinkhorn(weights, weights, cusink.PointCloud(x, x, "euclidean"), eps=0.1)
    assert found.converged and np.isfinite(found.cost)
