"""Large clouds on a device, by emulated kernels: coarse levels lead to the solution of all points, in fewer passes."""

import dataclasses

import emulated
import numpy as np
import pytest
from emulated import device_arrays

import cusink
from cusink.backends.coarse import Sizes
from cusink.solver import coarse

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

RNG = np.random.default_rng(5)
x, y = RNG.random((300, 2)), RNG.random((260, 2)) ** 1.3
a = RNG.dirichlet(np.ones(300))
b = RNG.dirichlet(np.ones(260))
a[7] = 0
a /= a.sum()
EPS = 3e-3
SMALL = Sizes(pairs=1 << 10, points=1 << 5, ratio=8, least_run=8)
NEVER = dataclasses.replace(SMALL, pairs=1 << 40)


def solved(monkeypatch, sizes, dtype, tol, cloud=cusink.PointCloud, weights=(a, b), **options):
    """Return what is asked of the stand-in: the result, and the coarse start of each solve."""
    starts, plain = [], coarse.coarse_start

    def remember(*args):
        starts.append(plain(*args))
        return starts[-1]

    with monkeypatch.context() as patch, device_arrays.device() as (cupy, _):
        from cusink.backends.cupy import limits

        patch.setattr("cusink.solver.each.coarse_start", remember)
        patch.setattr(limits, "LIMITS", dataclasses.replace(limits.LIMITS, coarse=sizes))
        given = [cupy.asarray(w.astype(dtype)) for w in weights]
        points = cloud(*(cupy.asarray(z.astype(dtype)) for z in (x, y)))
        result = cusink.sinkhorn(*given, points, eps=EPS, tol=tol, **options)
        assert isinstance(result.f, device_arrays.ndarray)
        begun = any(start is not None for start in starts)
        assert [stage.n for stage in result.form.stages][:2] == ([5, 38] if begun else [])
        assert (result.form.loss, result.form.left_out) == (0, 0)
        potentials = (v.get() for v in result.problem.potentials())
        return result.n_iter.get(), float(result.error.max()), *(v[0] for v in potentials), starts


@pytest.mark.parametrize(("dtype", "tol"), [(np.float32, 1e-3), (np.float64, 1e-6)])
def test_what_is_claimed_holds_for_all_pairs(dtype, tol, monkeypatch):
    taken, error, f, g, starts = solved(monkeypatch, SMALL, dtype, tol)
    assert starts[0] is not None
    u, v = (w.astype(dtype).astype(float) for w in (a, b))
    v *= u.sum() / v.sum()
    squares = ((x.astype(dtype).astype(float)[:, None] - y.astype(dtype).astype(float)) ** 2).sum(axis=2)
    P = u[:, None] * v * np.exp((f[:, None] + g - squares) / EPS)
    assert error <= tol
    assert abs(P.sum(axis=0) - v).sum() <= error * (1 + 1e-6)
    assert abs(P.sum(axis=1) - u).sum() <= max(error, 1e-6)
    assert taken > 0


def test_it_takes_few_iterations_of_all_points(monkeypatch):
    taken, *_, starts = solved(monkeypatch, SMALL, np.float32, 1e-3)
    plain, *_, plain_starts = solved(monkeypatch, NEVER, np.float32, 1e-3)
    assert starts[0] is not None
    assert plain_starts == [None]
    assert taken <= 0.8 * plain


def test_potentials_are_those_of_numpy(monkeypatch):
    _, _, f, g, starts = solved(monkeypatch, SMALL, np.float64, 1e-9)
    assert starts[0] is not None
    right = cusink.sinkhorn(a, b, cusink.cost_matrix(x, y), eps=EPS, tol=1e-11)
    u, v = a > 0, b > 0
    gap = np.mean(f[u] - right.f[u])
    np.testing.assert_allclose(f[u] - gap, right.f[u], atol=1e-8)
    np.testing.assert_allclose(g[v] + gap, right.g[v], atol=1e-8)


@pytest.mark.parametrize("kind", ["metric", "batch", "reach"])
def test_other_problems_begin_as_they_did(kind, monkeypatch):
    cloud, weights, options = cusink.PointCloud, (a, b), {"max_iter": 20, "check": True}
    if kind == "metric":
        cloud = lambda *points: cusink.PointCloud(*points, metric="euclidean")  # noqa: E731
    if kind == "batch":
        weights = np.stack([a, a]), np.stack([b, b])
    if kind == "reach":
        options["reach"] = 1.0
    with pytest.warns(cusink.ConvergenceWarning):
        *_, starts = solved(monkeypatch, SMALL, np.float64, 1e-6, cloud, weights, **options)
    assert not any(start is not None for start in starts)
