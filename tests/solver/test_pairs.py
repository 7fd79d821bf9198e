"""Pairs of clouds of unequal sizes: each is the pair alone, and what the oracle says, whatever it is solved with."""

import warnings

import numpy as np
import pytest
import reference
from scipy.spatial.distance import cdist

import cusink
from cusink.solver.pairs import tiles
from cusink.solver.pairs.batches import batches

EPS = 0.1
SHARE = cusink.RelativeEps(0.05, "max")
SIZES = [(1, 7), (12, 3), (5, 5), (9, 14), (5, 5), (30, 2), (6, 6)]


def drawn(dtype=np.float64, mass=1.0):
    """Return clouds x and y, and their weights, of which pair 3 has an empty point and pair 4 is one measure twice."""
    rng = np.random.default_rng(5)
    x, y = ([rng.random((sizes[side], 2)).astype(dtype) + dtype(side / 4) for sizes in SIZES] for side in (0, 1))
    a, b = ([rng.dirichlet(np.full(sizes[side], 3.0)).astype(dtype) for sizes in SIZES] for side in (0, 1))
    b[3][2], b[3][3] = 0, b[3][2] + b[3][3]
    y[4], b[4] = x[4].copy(), a[4].copy()
    b = [dtype(mass) * w for w in b]
    return x, y, a, b


def measures(x, y, a, b):
    return cusink.Measures.of(x, a), cusink.Measures.of(y, b)


def split(values, sizes):
    """Return flat values item after item."""
    return np.split(values, np.cumsum(sizes)[:-1])


def alone(x, y, a, b, metric, solve, eps=EPS, **options):
    every = np.broadcast_to(eps, len(x)).tolist()
    return [
        solve(p, q, cusink.PointCloud(u, v, metric), eps=by, **options)
        for u, v, p, q, by in zip(x, y, a, b, every, strict=True)
    ]


ITERATIONS = {"together": tiles.ITERATIONS, "some": (20, 100), "none": (1, 1)}  # those that take more are solved alone


@pytest.mark.parametrize("of", ["max", "mean", "median"])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("solve", [cusink.sinkhorn, cusink.sinkhorn_divergence])
def test_a_share_of_the_costs_of_each_pair(solve, metric, of):
    x, y, a, b = drawn()
    every = [cdist(u, v, metric) for u, v in zip(x, y, strict=True)]
    eps = 0.1 * np.array([getattr(np, of)(C) for C in every])
    A, B = measures(x, y, a, b)
    found = solve(A, B, metric, eps=cusink.RelativeEps(0.1, of), tol=1e-9)
    if solve is cusink.sinkhorn:
        np.testing.assert_allclose([found[k].eps for k in range(len(x))], eps, rtol=1e-12)
        for k, C in enumerate(every):
            np.testing.assert_allclose(found.cost[k], reference.optimum(a[k], b[k], C, eps[k])[0], atol=1e-7)
    else:
        want = alone(x, y, a, b, metric, solve, eps=eps, tol=1e-9)
        np.testing.assert_allclose(found.divergence, [one.divergence for one in want], atol=1e-8)


def check_together(which, pairs):
    """Hold what was solved together to what was meant to be."""
    share = pairs.solved.known.solved.mean()
    assert {"together": share == 1, "some": 0 < share < 1, "none": share == 0}[which]


CASES = [
    ("sqeuclidean", None, np.float64),
    ("euclidean", None, np.float64),
    ("cosine", None, np.float32),
    ("cosine", 0.5, np.float32),
]


@pytest.mark.parametrize(("metric", "reach", "dtype"), CASES)
def test_pairs_are_the_pairs_alone(metric, reach, dtype):
    eps = EPS * np.linspace(0.5, 2, len(SIZES)) if dtype == np.float64 else EPS
    given = drawn(dtype, 1.0 if reach is None else 1.5)
    near = {"rtol": 1e-9, "atol": 1e-9} if dtype == np.float64 else {"rtol": 2e-5, "atol": 2e-5}
    tol = 1e-12 if dtype == np.float64 else "auto"
    pairs = cusink.sinkhorn(*measures(*given), metric, eps=eps, reach=reach, tol=tol)
    each = alone(*given, metric, cusink.sinkhorn, eps, reach=reach, tol=tol)
    assert len(pairs) == len(SIZES) and pairs.f.dtype == dtype and pairs.converged.all()
    assert (pairs.solved.together is None) == (reach is not None)
    assert pairs.error.max() <= (1e-12 if dtype == np.float64 else 1e-5)
    for name in ("cost", "reg_cost", "entropic_cost"):
        np.testing.assert_allclose(getattr(pairs, name), [getattr(one, name) for one in each], **near)
    np.testing.assert_allclose(pairs.f, np.concatenate([one.f for one in each]), **near)
    np.testing.assert_allclose(pairs.g, np.concatenate([one.g for one in each]), **near)
    grad = np.linspace(-1, 2, len(SIZES)).astype(dtype)
    pulled = cusink.sinkhorn_adjoint(pairs, grad_cost=grad, grad_reg_cost=0.5, tol=1e-12)
    theirs = [
        cusink.sinkhorn_adjoint(r, grad_cost=float(w), grad_reg_cost=0.5, tol=1e-12)
        for r, w in zip(each, grad, strict=True)
    ]
    loose = {name: 10 * value for name, value in near.items()}
    for name in ("a", "b", "x", "y"):
        np.testing.assert_allclose(getattr(pulled, name), np.concatenate([getattr(g, name) for g in theirs]), **loose)
    np.testing.assert_allclose(pulled.eps, [g.eps for g in theirs], **loose)
    assert (pulled.reach is None) == (reach is None)
    if reach is not None:
        np.testing.assert_allclose(pulled.reach, [g.reach for g in theirs], **loose)
    assert pulled.C is None and pulled.axes is None and pulled.converged.all()
    for k, one in enumerate(each):
        np.testing.assert_allclose(pairs[k].plan(), one.plan(), **near)
        np.testing.assert_allclose(pairs[k].bounds(), one.bounds(), **near)
        assert pairs[k].n_iter == pairs.n_iter[k]
    np.testing.assert_allclose(pairs[-1].f, each[-1].f, **near)


@pytest.mark.parametrize(
    ("metric", "reach", "which"),
    [("sqeuclidean", None, which) for which in ITERATIONS] + [("euclidean", None, "some"), ("euclidean", 0.5, None)],
)
def test_divergences_are_those_of_the_pairs_alone(metric, reach, which, monkeypatch):
    monkeypatch.setattr(tiles, "ITERATIONS", ITERATIONS.get(which, tiles.ITERATIONS))
    given = drawn(mass=1.0 if reach is None else 1.5)
    eps = EPS if which == "together" else EPS * np.linspace(1, 2, len(SIZES))
    pairs = cusink.sinkhorn_divergence(*measures(*given), metric, eps=eps, reach=reach, tol=1e-12)
    each = alone(*given, metric, cusink.sinkhorn_divergence, eps, reach=reach, tol=1e-12)
    if reach is None:
        check_together(which, pairs)
    near = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(pairs.divergence, [one.divergence for one in each], **near)
    assert reach is not None or pairs.divergence[4] == 0
    for name in ("f", "g", "f_self", "g_self"):
        np.testing.assert_allclose(getattr(pairs, name), np.concatenate([getattr(one, name) for one in each]), **near)
    grad = np.linspace(-1, 2, len(SIZES))
    pulled = cusink.sinkhorn_divergence_adjoint(pairs, grad=grad)
    theirs = [cusink.sinkhorn_divergence_adjoint(r, grad=float(w)) for r, w in zip(each, grad, strict=True)]
    for name in ("a", "b", "x", "y"):
        np.testing.assert_allclose(getattr(pulled, name), np.concatenate([getattr(g, name) for g in theirs]), **near)
    np.testing.assert_allclose(pulled.eps, [g.eps for g in theirs], **near)
    if reach is not None:
        np.testing.assert_allclose(pulled.reach, [g.reach for g in theirs], **near)
    again = cusink.sinkhorn_divergence_adjoint(pairs[3], grad=float(grad[3]))
    np.testing.assert_allclose(again.x, theirs[3].x, **near)
    assert pairs[3].divergence == pairs.divergence[3]


def test_values_and_gradients_are_what_the_oracle_says():
    x, y, a, b = drawn()
    A, B = measures(x, y, a, b)

    def divergences(A):
        points, weights = split(A.points, [n for n, _ in SIZES]), split(A.weights, [n for n, _ in SIZES])
        return [
            reference.optimum(p, q, square(u, v), EPS).reg_cost
            - reference.optimum(p, p, square(u, u), EPS).reg_cost / 2
            - reference.optimum(q, q, square(v, v), EPS).reg_cost / 2
            for u, v, p, q in zip(points, y, weights, b, strict=True)
        ]

    def square(u, v):
        return ((u[:, None] - v) ** 2).sum(axis=2)

    found = cusink.sinkhorn_divergence(A, B, "sqeuclidean", eps=EPS, tol=1e-10)
    np.testing.assert_allclose(found.divergence, divergences(A), atol=1e-9)
    pulled = cusink.sinkhorn_divergence_adjoint(found)
    direction, step = np.random.default_rng(1).normal(size=A.points.shape), 1e-5
    moved = [divergences(cusink.Measures(A.offsets, A.weights, A.points + sign * step * direction)) for sign in (1, -1)]
    along = [part.sum() for part in split(pulled.x * direction, [n for n, _ in SIZES])]
    np.testing.assert_allclose(along, (np.array(moved[0]) - moved[1]) / (2 * step), atol=1e-7)


def test_potentials_have_equal_sums_whatever_the_mass():
    given = drawn(mass=1.0)
    x, y, a, b = given
    pairs = cusink.sinkhorn(*measures(x, y, [3 * w for w in a], [3 * w for w in b]), "sqeuclidean", eps=EPS)
    check_together("together", pairs)
    f, g = (split(potential, [size[side] for size in SIZES]) for side, potential in ((0, pairs.f), (1, pairs.g)))
    for u, v, p, q in zip(f, g, a, b, strict=True):
        np.testing.assert_allclose(u[p > 0].sum(), v[q > 0].sum(), atol=1e-12)


def test_a_cloud_in_several_pairs_is_solved_with_itself_once(monkeypatch):
    x, y, a, b = drawn()
    counts, solve = [], tiles.iterate_own
    monkeypatch.setattr(tiles, "iterate_own", lambda A, *rest: counts.append(len(A)) or solve(A, *rest))
    A, B = cusink.Measures.of([x[0], x[1], x[1], x[1]], [a[0], a[1], a[1], a[1]]), cusink.Measures.of(x[:4], a[:4])
    eps = np.array([EPS, EPS, EPS, 2 * EPS])
    pairs = cusink.sinkhorn_divergence(A, B, "sqeuclidean", eps=eps, tol=1e-12)
    assert sum(counts) == 5  # 0, 1, 2; and 1 and 3 at another eps
    np.testing.assert_array_equal(pairs.divergence[:2], 0)
    for k in (2, 3):
        cloud = cusink.PointCloud(x[1], x[k])
        one = cusink.sinkhorn_divergence(a[1], a[k], cloud, eps=float(eps[k]), tol=1e-12)
        np.testing.assert_allclose(pairs.divergence[k], one.divergence, rtol=1e-9)
    pulled = cusink.sinkhorn_divergence_adjoint(pairs)
    np.testing.assert_array_equal(pulled.x[: len(x[0]) + len(x[1])], 0)


def test_pairs_too_steep_for_a_kernel_are_solved_alone():
    x, y, a, b = drawn()
    y[1] = y[1] + 30
    A, B = measures(x, y, a, b)
    pairs = cusink.sinkhorn_divergence(A, B, "sqeuclidean", eps=EPS)
    assert (~pairs.solved.known.solved).nonzero()[0].tolist() == [1]
    one = cusink.sinkhorn_divergence(a[1], b[1], cusink.PointCloud(x[1], y[1]), eps=EPS)
    np.testing.assert_allclose(pairs.divergence[1], one.divergence, rtol=1e-9)
    assert pairs.converged.all()


def test_batches_take_every_pair_once_and_within_the_limit():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 200, 500), rng.integers(1, 200, 500)
    limit = 1 << 22
    found = batches(sizes, 8, limit)
    np.testing.assert_array_equal(np.sort(np.concatenate([batch.pairs for batch in found])), np.arange(500))
    for pairs, n, m in found:
        assert n == sizes[0][pairs].max() and m == sizes[1][pairs].max()
        assert len(pairs) == 1 or len(pairs) * n * m * 8 <= limit // 8
    taken = sum(len(batch.pairs) * batch.n * batch.m for batch in batches(sizes, 8))
    assert taken < 1.5 * (sizes[0] * sizes[1]).sum()  # of a batch of all: 4 times
    assert len(batches((np.full(300, 20), np.full(300, 10)), 8)) == 1


def test_a_small_memory_limit_changes_nothing():
    given = measures(*drawn())
    whole = cusink.sinkhorn(*given, "sqeuclidean", eps=EPS, tol=1e-12)
    parts = cusink.sinkhorn(*given, "sqeuclidean", eps=EPS, tol=1e-12, memory_limit=4096)
    assert whole.solved.known.solved.all() and 0 < parts.solved.known.solved.mean() < 1
    np.testing.assert_allclose(parts.cost, whole.cost, rtol=1e-11)


def test_a_pair_that_does_not_converge_is_told_of_once():
    with pytest.warns(cusink.ConvergenceWarning, match="of 7 problems") as told:
        pairs = cusink.sinkhorn(*measures(*drawn()), "sqeuclidean", eps=1e-3, max_iter=3)
    assert len(told) == 1 and not pairs.converged.all() and (pairs.error[~pairs.converged] > 1e-6).all()
    with pytest.warns(cusink.ConvergenceWarning, match="of 7 problems had not converged") as told:
        cusink.sinkhorn_adjoint(pairs, grad_reg_cost=1.0)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs[2]  # noqa: B018


def test_bad_pairs_are_refused_before_any_work():
    x, y, a, b = drawn()
    A, B = measures(x, y, a, b)
    solve, message = cusink.sinkhorn, pytest.raises
    with message(ValueError, match="equally many measures"):
        solve(A, B[:3], "sqeuclidean", eps=EPS)
    with message(TypeError, match="must both be cusink.Measures"):
        solve(A, np.ones(3), "sqeuclidean", eps=EPS)
    with message(TypeError, match="name of a metric"):
        solve(A, B, np.ones((3, 3)), eps=EPS)
    with message(ValueError, match="'C' must be one of"):
        solve(A, B, "chebyshev", eps=EPS)
    with message(ValueError, match="one dimension"):
        solve(A, cusink.Measures.of([p[:, :1] for p in y], b), "sqeuclidean", eps=EPS)
    with message(ValueError, match="item 1 has none"):
        solve(cusink.Measures([0, 2, 2, 3], None, np.ones((3, 2))), B[:3], "sqeuclidean", eps=EPS)
    with message(ValueError, match="with weight; item 0 has none"):
        solve(cusink.Measures([0, 2], [0.0, 0.0], np.ones((2, 2))), B[:1], "sqeuclidean", eps=EPS)
    with message(ValueError, match=r"same mass .* in pair 2"):
        heavier = [w * (1.5 if k == 2 else 1) for k, w in enumerate(b)]
        solve(A, cusink.Measures.of(y, heavier), "sqeuclidean", eps=EPS)
    with message(TypeError, match="share one dtype"):
        solve(A, cusink.Measures.of([p.astype(np.float32) for p in y]), "sqeuclidean", eps=EPS)
    with message(ValueError, match="zero vector"):
        solve(cusink.Measures.of([np.zeros((2, 2))]), B[:1], "cosine", eps=EPS)
    with message(ValueError, match="'init' must be None"):
        solve(A, B, "sqeuclidean", eps=EPS, init=(A.weights, B.weights))
    with message(ValueError, match="'C_aa' must be None"):
        cusink.sinkhorn_divergence(A, B, "sqeuclidean", eps=EPS, C_aa=np.ones((2, 2)))
    with message(ValueError, match=r"relative to the max of 'C', which must be positive; got 0 in problem 1\. Pass"):
        solve(*measures([[0.0, 1.0], [2.0]], [[3.0], [2.0]], [[1, 1.0], [2]], [[2.0], [2]]), "euclidean", eps=SHARE)
    with message(ValueError, match="each of the 7 pairs; got shape"):
        solve(A, B, "sqeuclidean", eps=np.full(3, EPS))
    with message(ValueError, match=r"'eps' must be positive and finite; got 0 at \[2\]"):
        cusink.sinkhorn_divergence(A, B, "sqeuclidean", eps=np.array([1, 1, 0, 1, 1, 1, 1.0]))
    with message(ValueError, match="'max_iter'"):
        solve(A, B, "sqeuclidean", eps=EPS, max_iter=0)
    pairs = solve(A, B, "sqeuclidean", eps=EPS)
    with message(ValueError, match=r"'grad_cost' must have shape \(7,\)"):
        cusink.sinkhorn_adjoint(pairs, grad_cost=np.ones(3))
    with message(ValueError, match="'grad_f' must be None"):
        cusink.sinkhorn_adjoint(pairs, grad_f=pairs.f)
    with message(IndexError, match="from -7 to 6"):
        pairs[7]
