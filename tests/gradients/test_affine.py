"""Blocks of arrays that are affine in the costs and their moves: the same entries by plain NumPy."""

from dataclasses import replace

import numpy as np
import pytest

import cusink
from cusink.gradients import motion
from cusink.gradients.affine import Affine
from cusink.gradients.parts import Directions

SIZE, N, M = 3, 7, 5
EPS = np.array([0.5, 1.0, 2.0])


def stored(kind, rng):
    """Return a stored cost, its direction, and both as they are, with 0 for a forbidden pair."""
    C, dC = rng.random((2, SIZE, N, M)) if kind == "own costs" else rng.random((2, N, M))
    known = C.copy()
    if kind == "forbidden":
        C[0, :2] = C[4, 1:] = np.inf
        known[0, :2] = known[4, 1:] = 0
    return C, {"dC": dC}, known, dC


def clouds(kind, rng):
    """Return a cloud, the direction of its points, the costs and how these move."""
    lead, d = (SIZE,) if kind == "own points" else (), 9 if kind == "thick" else 2
    (x, dx), (y, dy) = rng.normal(size=(2, *lead, N, d)), rng.normal(size=(2, *lead, M, d))
    if kind == "x moves":
        dy *= 0
    apart, moving = (p[..., :, None, :] - q[..., None, :, :] for p, q in ((x, y), (dx, dy)))
    squares, moves = (apart**2).sum(-1), 2 * (apart * moving).sum(-1)
    C = cusink.PointCloud(x, y, "euclidean", power=4 if kind == "powers" else 2)
    if kind == "powers":
        return C, {"dx": dx, "dy": dy}, squares**2, 2 * squares * moves
    return C, {"dx": dx, "dy": dy}, squares, moves


@pytest.mark.parametrize(
    "kind", ["stored", "forbidden", "own costs", "points", "own points", "x moves", "powers", "thick"]
)
def test_blocks_are_those_of_plain_numpy(monkeypatch, kind):
    rng = np.random.default_rng(2)
    C, direction, costs, moves = (stored if kind in ("stored", "forbidden", "own costs") else clouds)(kind, rng)
    a, b = rng.dirichlet(np.ones(N), SIZE), rng.dirichlet(np.ones(M), SIZE)
    result = cusink.sinkhorn(a, b, C, eps=EPS, tol=1e-9, max_iter=5000)
    given = motion.solved(result.problem)
    along = Directions(
        eps=rng.random(SIZE), cost=result.problem.C.direction(dict.fromkeys(("dC", "dx", "dy")) | direction)
    )
    rows, columns, cost, move = (rng.normal(size=shape) for shape in ((SIZE, N), (SIZE, M), SIZE, SIZE))
    arrays = {
        "all": Affine(rows=rows, columns=columns, cost=cost, move=move),
        "without costs": Affine(rows=rows, columns=columns),
        "rows and costs": Affine(rows=rows, cost=cost),
        "columns and moves": Affine(columns=columns, move=move),
        "moves": Affine(move=move),
        "shift": given.shift(along),
    }
    each = cost[:, None, None] * costs, move[:, None, None] * moves
    want = {
        "all": rows[:, :, None] + columns[:, None, :] + each[0] + each[1],
        "without costs": rows[:, :, None] + columns[:, None, :],
        "rows and costs": rows[:, :, None] + each[0],
        "columns and moves": columns[:, None, :] + each[1],
        "moves": each[1],
    }
    Z = (result.f[:, :, None] + result.g[:, None, :] - costs) / EPS[:, None, None]
    forbidden = np.broadcast_to(np.isinf(C) if kind == "forbidden" else False, Z.shape)
    want["shift"] = moves + Z * along.eps[:, None, None]
    for entries in (1 << 16, N * M, 2 * M):  # all problems, one, some of its rows
        monkeypatch.setattr(motion, "BLOCK_ENTRIES", entries)
        seen = np.zeros((SIZE, N), int)
        for pairs in given.pairs(along, *arrays.values()):
            at = pairs.problems, pairs.rows
            seen[at] += 1
            np.testing.assert_allclose(pairs.log_ratio, np.where(forbidden, 0, Z)[at], rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(pairs.density, np.where(forbidden, 0, np.exp(Z))[at], rtol=1e-12)
            for (name, expected), block in zip(want.items(), pairs.others, strict=True):
                found = np.broadcast_to(block, expected[at].shape)
                np.testing.assert_allclose(found, expected[at], rtol=1e-12, atol=1e-12, err_msg=name)
        assert (seen == 1).all()


def test_arrays_add_up_and_scale():
    rng = np.random.default_rng(3)
    full = [
        Affine(rows=rng.random((2, 4)), columns=rng.random((2, 3)), cost=rng.random(2), move=rng.random(2))
        for _ in "ab"
    ]
    factor = np.array([2.0, -0.5])
    found = {"plus": full[0].plus(full[1]), "minus": full[0].minus(full[1])}
    for name in vars(full[0]):
        x, y = (getattr(one, name) for one in full)
        np.testing.assert_array_equal(getattr(found["plus"], name), x + y)
        np.testing.assert_array_equal(getattr(found["minus"], name), x - y)
        np.testing.assert_array_equal(getattr(full[0].times(factor), name), (x.T * factor).T)
        np.testing.assert_array_equal(getattr(full[0].times(3.0), name), 3 * x)
        np.testing.assert_array_equal(getattr(full[0].of(slice(1, 2)), name), x[1:])
    some = Affine(rows=full[0].rows, cost=full[0].cost)
    for sum_ in (some.plus(Affine()), Affine().plus(some), some.minus(Affine())):
        assert vars(sum_) == vars(some)
    other = Affine().minus(some)
    assert other.columns is None and other.move is None
    np.testing.assert_array_equal(other.rows, -some.rows)


@pytest.mark.parametrize("spread", [1.0, 1e5])
def test_exponents_of_near_points_keep_their_digits(spread):
    """Costs of 1e10 eps between far points, beside those of about eps between near ones: a product would lose these."""
    rng = np.random.default_rng(4)
    centres = spread * rng.normal(size=(6, 3))
    x, y = centres + rng.normal(size=(6, 3)), centres + rng.normal(size=(6, 3))
    result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=1.0, tol=None, max_iter=1)
    given = motion.solved(replace(result.problem, f=np.zeros((1, 6)), g=np.zeros((1, 6))))
    (pairs,) = given.pairs(Directions())
    exact = -((x.astype(np.longdouble)[:, None] - y.astype(np.longdouble)) ** 2).sum(-1)
    near = np.diag_indices(6)
    np.testing.assert_allclose(pairs.log_ratio[0][near], exact[near].astype(float), rtol=0, atol=1e-11)
