"""Gradients by the positions of the cells of a grid, against differences of solves between cells that have moved."""

import numpy as np
import problems
import pytest

import cusink

EPS, TIGHT = 0.3, {"tol": 1e-12, "max_iter": 20_000}


def between(positions, metric, around):
    """Return the costs between cells at some positions along each axis, in C order; `around` are lengths of circles."""
    total = 0
    for k, (x, length) in enumerate(zip(positions, around, strict=True)):
        distance = np.abs(x[:, None] - x)
        if length:
            distance = np.minimum(distance, length - distance)
        shape = [1] * (2 * len(positions))
        shape[k] = shape[len(positions) + k] = len(x)
        total = total + (distance if metric == "cityblock" else distance**2).reshape(shape)
    count = int(np.prod([len(x) for x in positions]))
    return (total**0.5 if metric == "euclidean" else total).reshape(count, count)


GRIDS = [
    cusink.Grid((3, 2, 2), spacing=(0.5, 0.8, 1.0)),
    cusink.Grid((3, 4), "cityblock", spacing=0.4),
    cusink.Grid((5, 3), spacing=(0.4, 0.5), periodic=(True, False)),
    cusink.Grid((5, 3), "euclidean", spacing=(0.4, (0.5, 0.7)), periodic=(True, False)),
]


def values_of(name, a, b, C, r):
    """Return the value that is differentiated, and the positions' gradients if C is a grid."""
    if name == "divergence":
        result = cusink.sinkhorn_divergence(a, b, C, eps=EPS, **TIGHT)
        return result.divergence.sum(), lambda: cusink.sinkhorn_divergence_adjoint(result, grad=np.ones(2))
    if name == "barycenter":
        mean = cusink.barycenter(a, C, eps=EPS, **TIGHT)
        return mean.barycenter @ r, lambda: cusink.barycenter_adjoint(mean, grad_barycenter=r, tol=1e-11)
    result = cusink.sinkhorn(a, b, C, eps=EPS, reach=2.0 if name == "unbalanced" else None, **TIGHT)
    if name == "plan":
        M = np.add.outer(r, r**2)
        return (result.plan() * M).sum() + result.reg_cost.sum(), lambda: cusink.sinkhorn_adjoint(
            result, grad_plan=M, grad_reg_cost=1.0, tol=1e-11
        )
    return result.cost.sum(), lambda: cusink.sinkhorn_adjoint(result, grad_cost=1.0, tol=1e-11)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", ["cost", "plan", "unbalanced", "divergence", "barycenter"])
def test_gradients_by_the_axes_are_differences(grid, name):
    rng = np.random.default_rng(2)
    count = grid.shape[0]
    a, b = (problems.histograms(rng, 2, count, zeros=0.2) for _ in range(2))
    r = rng.normal(size=count)
    _, pulled = values_of(name, a, b, grid, r)
    found = pulled().axes
    assert [x.shape for x in found] == [(k,) for k in grid.cells]
    places = [
        np.concatenate([[0], np.cumsum(step)]) if isinstance(step, tuple) else step * np.arange(k)
        for step, k in zip(grid.spacing, grid.cells, strict=True)
    ]
    around = [
        step * k if circle else 0 for step, k, circle in zip(grid.spacing, grid.cells, grid.periodic, strict=True)
    ]
    moves = [1e-4 * rng.normal(size=k) for k in grid.cells]
    up, down = (
        values_of(name, a, b, between([x + s * v for x, v in zip(places, moves, strict=True)], grid.metric, around), r)
        for s in (1, -1)
    )
    slope = sum(float(x @ v) for x, v in zip(found, moves, strict=True))
    assert abs(slope - (up[0] - down[0]) / 2) <= 1e-6 * abs(slope)


def test_both_libraries_and_costs_without_axes(xp):
    rng = np.random.default_rng(3)
    grid, (a, b) = cusink.Grid((3, 4)), (problems.histograms(rng, 2, 12) for _ in range(2))
    found, expected = (
        cusink.sinkhorn_adjoint(cusink.sinkhorn(of(a), of(b), grid, eps=1.0, **TIGHT), grad_cost=1.0, tol=1e-10).axes
        for of in (xp, np.asarray)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert xp.owns(ours)
        np.testing.assert_allclose(xp.numpy(ours), theirs, rtol=0, atol=1e-8)
        assert abs(theirs.sum()) <= 1e-9  # to move all cells changes nothing
    single = cusink.sinkhorn(a.astype("f"), b.astype("f"), grid, eps=1.0)
    assert {x.dtype for x in cusink.sinkhorn_adjoint(single, grad_reg_cost=1.0).axes} == {np.dtype(np.float32)}
    stored = cusink.sinkhorn(a, b, grid.dense(), eps=1.0)
    assert cusink.sinkhorn_adjoint(stored, grad_cost=1.0).axes is None
    mean = cusink.barycenter(a, grid.dense(), eps=1.0)
    assert cusink.barycenter_adjoint(mean, grad_barycenter=a[0]).axes is None


def test_half_way_around_a_circle_has_no_slope():
    """On four cells the opposite one is as far on both ways: its share is left out, as where points coincide."""
    grid, a, b = cusink.Grid(4, periodic=True), np.array([1.0, 0, 0, 0]), np.array([0, 0, 1.0, 0])
    assert not cusink.sinkhorn_adjoint(cusink.sinkhorn(a, b, grid, eps=0.1), grad_cost=1.0).axes[0].any()
