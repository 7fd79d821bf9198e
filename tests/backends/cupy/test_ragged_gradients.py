"""Gradients of ragged pairs on emulated kernels: one launch, the host's numbers, differences, and fallbacks."""

import emulated
import numpy as np
import pytest
from backends.cupy.test_ragged import METRICS, SIZES, device, drawn, measures

import cusink

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

COTANGENTS = {
    "the cost": {"grad_cost": np.linspace(-1, 2, len(SIZES))},
    "the objective": {"grad_reg_cost": 2.0},
    "all": {"grad_cost": 0.7, "grad_reg_cost": np.linspace(-1, 2, len(SIZES)), "grad_entropic_cost": -0.4},
}
GRADIENTS = ("a", "b", "x", "y", "eps")
ALL = (*GRADIENTS, "reach")


def pulled(given, metric, cotangents, shared_memory=99 << 10, solve_tol=1e-11, tol=1e-11, eps=0.1, reach=None):
    """Return gradients on the stand-in and on the host, and what ran on the stand-in for them."""
    dtype = given[0][0].dtype
    typed = {name: w.astype(dtype) if np.ndim(w) else w for name, w in cotangents.items()}
    host = cusink.sinkhorn(*measures(given), metric, eps=eps, tol=solve_tol, reach=reach)
    of_host = cusink.sinkhorn_adjoint(host, **typed, tol=tol)
    with device(shared_memory=shared_memory) as (cupy, launched):
        pairs = cusink.sinkhorn(*measures(given, cupy.asarray), metric, eps=eps, tol=solve_tol, reach=reach)
        before = len(launched)
        on = {name: cupy.asarray(w) if np.ndim(w) else w for name, w in typed.items()}
        found = cusink.sinkhorn_adjoint(pairs, **on, tol=tol)
        assert found.C is None and found.axes is None and (found.reach is None) == (reach is None)
        assert found.metric == {}
        assert found.converged.get().all() and found.converged.shape == (len(SIZES),)
        names = GRADIENTS if reach is None else ALL
        arrays = {name: getattr(found, name).get() for name in names}
        return arrays, {name: getattr(of_host, name) for name in names}, launched[before:]


@pytest.mark.parametrize(
    ("metric", "which", "dtype"),
    [
        *((metric, which, np.float64) for metric in METRICS for which in COTANGENTS),
        ("sqeuclidean", "all", np.float32),
        ("cosine", "the cost", np.float32),
    ],
)
def test_gradients_are_one_launch_and_the_host_s(metric, which, dtype):
    tol, near = (1e-6, 1e-4) if dtype == np.float32 else (1e-11, 1e-7)
    found, wanted, launched = pulled(drawn(dtype, mass=1.5), metric, COTANGENTS[which], solve_tol=tol, tol=tol, eps=0.3)
    assert launched == ["ragged_adjoint"]
    for name in GRADIENTS:
        assert found[name].dtype == dtype and found[name].shape == wanted[name].shape
        np.testing.assert_allclose(found[name], wanted[name], rtol=near, atol=near)


PRICED = {
    "the cost": {"grad_cost": np.linspace(-1, 2, len(SIZES))},
    "the objective": {"grad_reg_cost": np.linspace(-1, 2, len(SIZES))},
    "both": {"grad_cost": 0.7, "grad_reg_cost": -0.4},
}


@pytest.mark.parametrize("prices", [(0.5, 0.5), (0.3, 4.0), (np.inf, 0.2), (50.0, np.inf)])
@pytest.mark.parametrize(
    ("metric", "which", "dtype"),
    [
        *(("sqeuclidean", which, np.float64) for which in PRICED),
        *((metric, "both", np.float64) for metric in METRICS[1:]),
        ("euclidean", "the cost", np.float32),
        ("euclidean", "the objective", np.float32),
    ],
)
def test_gradients_at_a_price_are_one_launch_and_the_host_s(metric, which, dtype, prices):
    """Masses differ, and points without weight, which have a derivative too."""
    given = drawn(dtype)
    given[2][1][:] *= dtype(1.7)
    given[3][4][:] *= dtype(0.2)
    tol, near = (1e-6, 1e-3) if dtype == np.float32 else (1e-11, 1e-7)
    found, wanted, launched = pulled(given, metric, PRICED[which], solve_tol=tol, tol=tol, eps=0.3, reach=prices)
    assert set(launched) == {"ragged_adjoint"} and (len(launched) == 1 or dtype == np.float32)
    for name in ALL:
        assert found[name].dtype == dtype and found[name].shape == wanted[name].shape
        np.testing.assert_allclose(found[name], wanted[name], rtol=near, atol=near)


def test_gradients_at_a_price_so_high_that_the_system_is_nearly_singular():
    given = drawn()
    given[2][1][:] *= 1.7
    found, wanted, launched = pulled(given, "euclidean", PRICED["both"], eps=0.3, reach=1e5)
    assert launched == ["ragged_adjoint"]
    for name in ALL:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-7, atol=1e-6)


def test_gradients_at_a_price_that_are_made_in_batches():
    """Those of the entropic cost, and all of them where one pair is steep or does not fit."""
    cotangents = {**PRICED["both"], "grad_entropic_cost": 0.3}
    found, wanted, launched = pulled(drawn(), "euclidean", cotangents, eps=0.3, reach=0.5, tol=1e-9)
    assert "ragged_adjoint" not in launched
    for name in ALL:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6, atol=1e-6)
    for shared_memory in (10 << 10, 5 << 9):
        found, wanted, launched = pulled(drawn(), "euclidean", PRICED["both"], shared_memory, eps=0.3, reach=0.5)
        assert (launched == ["ragged_adjoint"]) == (shared_memory == 10 << 10)
        for name in ALL:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6, atol=1e-6)
    eps = np.array([0.1] * 4 + [0.0005, 0.1])
    found, wanted, launched = pulled(drawn(), "sqeuclidean", PRICED["both"], eps=eps, solve_tol=1e-9, tol=1e-9, reach=2)
    assert launched[0] == "ragged_adjoint" and len(launched) > 1
    for name in ALL:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared_memory", [9 << 10, 5 << 9], ids=["some outside", "elsewhere"])
def test_gradients_whose_density_does_not_fit(shared_memory):
    """In global memory; where not even vectors fit, all gradients are made as before."""
    found, wanted, launched = pulled(drawn(mass=1.5), "sqeuclidean", COTANGENTS["all"], shared_memory)
    assert (launched == ["ragged_adjoint"]) == (shared_memory == 9 << 10)
    for name in GRADIENTS:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6, atol=1e-6)


def test_gradients_of_what_the_launch_does_not_solve():
    """A steep pair has gradients of its own; clouds far apart, and too few digits, are not taken from the launch."""
    eps = np.array([0.1] * 4 + [0.0005, 0.1])
    found, wanted, launched = pulled(drawn(), "sqeuclidean", COTANGENTS["all"], eps=eps, solve_tol=1e-9, tol=1e-9)
    assert launched[0] == "ragged_adjoint" and len(launched) > 1
    for name in GRADIENTS:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-4)
    x, y, a, b = drawn()
    far = ([p + 30 for p in x], y, a, b)
    found, wanted, launched = pulled(far, "sqeuclidean", COTANGENTS["all"], eps=5.0)
    assert launched[0] == "ragged_adjoint" and len(launched) > 1
    for name in GRADIENTS:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6, atol=1e-6)


def test_gradients_are_those_of_differences():
    """By the numbers themselves, along directions of points and of weights whose mass stays."""
    given, rng, step = drawn(sizes=[(4, 7), (6, 3)]), np.random.default_rng(3), 1e-5
    w = np.array([1.0, -2.0])
    moves = [[rng.normal(size=p.shape) for p in side] for side in given]
    for side in moves[2:]:
        for k, move in enumerate(side):
            side[k] = move - move.mean()
    moves[2][1][:2] = moves[3][1][:2] = 0  # a weight of 0 stays
    for side in moves[2:]:
        side[1][2:] -= side[1][2:].mean()
    with device() as (cupy, launched):
        pairs = cusink.sinkhorn(*measures(given, cupy.asarray), "euclidean", eps=0.4, tol=1e-12)
        found = cusink.sinkhorn_adjoint(pairs, grad_cost=cupy.asarray(w), tol=1e-12)
        assert launched == ["ragged", "ragged_adjoint"]
        slopes = [found.x.get(), found.y.get(), found.a.get(), found.b.get()]
        values = []
        for sign in (1, -1):
            moved = [
                [p + sign * step * m for p, m in zip(*sides, strict=True)] for sides in zip(given, moves, strict=True)
            ]
            ends = cusink.sinkhorn(*measures(moved, cupy.asarray), "euclidean", eps=0.4, tol=1e-12)
            values.append(w @ ends.cost.get())
    along = sum((slope * np.concatenate(move)).sum() for slope, move in zip(slopes, moves, strict=True))
    np.testing.assert_allclose(along, (values[0] - values[1]) / (2 * step), rtol=1e-6)


def test_gradients_at_a_price_are_those_of_differences():
    """By points, weights, eps and both prices together, of masses that differ."""
    given, rng, step = drawn(sizes=[(4, 7), (6, 3)]), np.random.default_rng(4), 1e-5
    w, v = np.array([1.0, -2.0]), np.array([0.5, 1.5])
    moves = [[rng.normal(size=p.shape) * (p > 0) for p in side] for side in given]
    of_eps, of_reach = rng.normal(size=2), rng.normal(size=2)

    def solved(cupy, sign):
        moved = [[p + sign * step * m for p, m in zip(*both, strict=True)] for both in zip(given, moves, strict=True)]
        eps, reach = np.array([0.4, 0.3]) + sign * step * of_eps, np.array([0.7, 3.0]) + sign * step * of_reach
        return cusink.sinkhorn(*measures(moved, cupy.asarray), "euclidean", eps=eps, reach=tuple(reach), tol=1e-12)

    with device() as (cupy, launched):
        pairs = solved(cupy, 0)
        found = cusink.sinkhorn_adjoint(pairs, grad_cost=cupy.asarray(w), grad_reg_cost=cupy.asarray(v), tol=1e-12)
        assert launched == ["ragged_unbalanced", "ragged_adjoint"]
        slopes = [getattr(found, name).get() for name in ALL]
        values = [w @ ends.cost.get() + v @ ends.reg_cost.get() for ends in (solved(cupy, 1), solved(cupy, -1))]
    along = sum((slope * np.concatenate(moves[k])).sum() for k, slope in zip((2, 3, 0, 1), slopes, strict=False))
    along += slopes[4] @ of_eps + (slopes[5] @ of_reach).sum()
    np.testing.assert_allclose(along, (values[0] - values[1]) / (2 * step), rtol=1e-6)
