"""``sinkhorn(..., gap=...)``: bounds as close as asked for, beside POT's network simplex."""

import numpy as np
import ot
import pytest

import cusink
from cusink.solver import gap as programme

GAP = 1e-3


def drawn(n=30, m=23, size=3, seed=0):
    """Weights (size, n) and (size, m) with zeros, of masses 2, and points."""
    rng = np.random.default_rng(seed)
    a, b = rng.random((size, n)), rng.random((size, m))
    a[0, 3] = a[1, -1] = b[0, 0] = b[2, 1] = 0
    a, b = (2 * w / w.sum(axis=1, keepdims=True) for w in (a, b))
    return a, b, rng.random((n, 2)), rng.random((m, 2))


def exact(a, b, C):
    """Return the minimum of one problem by POT, which takes no pairs that are forbidden."""
    return ot.emd2(a / a.sum(), b / b.sum(), np.where(np.isfinite(C), C, 1e4)) * a.sum()


def costs(kind, x, y):
    """Return a cost, and the arrays (B, n, m) that it stands for."""
    C = ((x[:, None] - y) ** 2).sum(axis=-1)
    if kind == "cloud":
        return cusink.PointCloud(x, y), [C] * 3
    if kind == "each":
        C = np.stack([C, C[::-1], C - 0.5])  # the last has costs of both signs
        return C, C
    if kind == "forbidden":
        C = np.where(C < 0.8, C, np.inf)
    return C, [C] * 3


@pytest.mark.parametrize("kind", ["shared", "each", "cloud", "forbidden"])
@pytest.mark.parametrize("poor", [False, True])
def test_bounds_enclose_the_minimum_as_closely_as_asked(xp, kind, poor):
    """Potentials of one iteration at a large eps rule out the wrong pairs; those that are missing are added."""
    a, b, x, y = drawn()
    C, each = costs(kind, x, y)
    options = {"eps": 2.0, "tol": None, "max_iter": 1} if poor else {"eps": 0.02}
    given = xp(a), xp(b), xp(C) if isinstance(C, np.ndarray) else cusink.PointCloud(xp(x), xp(y))
    plain = cusink.sinkhorn(*given, **options)
    found = cusink.sinkhorn(*given, gap=GAP, **options)
    lower, upper = map(xp.numpy, found.bounds())
    right = np.array([exact(*one) for one in zip(a, b, each, strict=True)])
    assert (lower <= right + 1e-12).all() and (right <= upper + 1e-12).all()
    assert (upper - lower <= GAP * np.maximum(abs(lower), abs(upper))).all()
    np.testing.assert_array_equal(xp.numpy(found.cost), xp.numpy(plain.cost))
    np.testing.assert_array_equal(xp.numpy(found.f), xp.numpy(plain.f))


def test_the_gap_of_a_plain_solve_is_larger_and_more_pairs_close_it(monkeypatch):
    """With one pair per bin the first programme misses pairs, and a close gap takes several of them."""
    a, b, x, y = drawn()
    C, each = costs("shared", x, y)
    lower, upper = cusink.sinkhorn(a, b, C, eps=0.1).bounds()
    assert (upper - lower > 10 * GAP * upper).all()
    solved = []
    solve = programme._programme
    monkeypatch.setattr(programme, "_programme", lambda *given: solved.append(len(given[3])) or solve(*given))
    monkeypatch.setattr(programme, "PAIRS_PER_BIN", 1)
    lower, upper = cusink.sinkhorn(a, b, C, eps=0.1, gap=1e-10).bounds()
    np.testing.assert_allclose(lower, [exact(*one) for one in zip(a, b, each, strict=True)], rtol=1e-10)
    assert (upper - lower <= 1e-10 * upper).all()
    assert len(solved) > 3 and max(solved) < C.size / 2


def test_a_grid_and_one_pair_and_float32():
    rng = np.random.default_rng(1)
    a, b = rng.dirichlet(np.ones(20), 2)
    grid = cusink.Grid((4, 5))
    cells = np.stack(np.mgrid[:4, :5], -1).reshape(-1, 2)
    C = ((cells[:, None] - cells) ** 2).sum(axis=-1).astype(float)
    for dtype in (np.float64, np.float32):
        lower, upper = cusink.sinkhorn(a.astype(dtype), b.astype(dtype), grid, eps=0.5, gap=GAP).bounds()
        assert lower.shape == () and lower.dtype == dtype
        assert lower <= exact(a, b, C) * (1 + 1e-6) and exact(a, b, C) <= upper * (1 + 1e-6)
        assert upper - lower <= GAP * upper
    with pytest.warns(cusink.ConvergenceWarning, match="1 of 1 problems did not reach gap=1e-09"):
        cusink.sinkhorn(a.astype(np.float32), b.astype(np.float32), grid, eps=0.5, gap=1e-9)


def test_equal_measures_have_no_relative_gap_and_are_not_warned_of():
    a, _, x, _ = drawn()
    lower, upper = cusink.sinkhorn(a, a, cusink.PointCloud(x), eps=0.05, gap=GAP).bounds()
    assert (lower <= 0).all() and (upper >= 0).all() and (upper - lower < 1e-12).all()


def test_a_missing_share_is_sent_somewhere():
    """The plan of a programme may miss mass by its tolerance: what it then costs is that of a feasible plan."""
    a, b, x, y = (w[0] if w.ndim == 2 and w.shape[0] == 3 else w for w in drawn())
    C, _ = costs("shared", x, y)
    plan = ot.emd(a / 2, b / 2, C).ravel() * 2
    pairs = np.flatnonzero(plan)
    right = exact(a, b, C)
    assert programme._cost_of_rounded(a, b, C, plan[pairs], pairs) == pytest.approx(right, rel=1e-12)
    less, more = plan[pairs] * 0.9, plan[pairs] * 1.5
    assert right < programme._cost_of_rounded(a, b, C, less, pairs) < right + 0.2 * C.max()
    assert programme._cost_of_rounded(a, b, C, more, pairs) == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"gap": 0}, ValueError, "'gap' must be positive and finite; got 0"),
        ({"gap": -1e-3}, ValueError, "'gap' must be positive and finite"),
        ({"gap": "auto"}, TypeError, "'gap' must be a number or None"),
        ({"reach": 1.0}, ValueError, "'gap' must be None with 'reach'"),
    ],
)
def test_bad_input_is_one_clear_error(change, kind, message):
    a, b, x, y = drawn()
    with pytest.raises(kind, match=message):
        cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=0.1, **{"gap": GAP, **change})


def test_measures_have_no_gap():
    clouds = cusink.Measures([0, 2, 4], None, np.arange(4.0))
    with pytest.raises(ValueError, match="'gap' must be None where 'a' and 'b' are cusink.Measures"):
        cusink.sinkhorn(clouds, clouds, "euclidean", eps=0.1, gap=GAP)


@pytest.mark.filterwarnings("ignore::cusink.ConvergenceWarning")
def test_costs_that_allow_no_plan_are_an_error():
    """Each bin has a partner, and two of them one alone."""
    C = np.array([[0.0, np.inf, np.inf], [1.0, np.inf, np.inf], [0.0, 1.0, 0.0]])
    with pytest.raises(ValueError, match="'C' must allow a plan between 'a' and 'b' for 'gap' to be proved; problem 0"):
        cusink.sinkhorn([0.4, 0.3, 0.3], [0.3, 0.3, 0.4], C, eps=0.1, gap=GAP, max_iter=20)


@pytest.mark.parametrize("gap", [1e-2, None])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bounds_enclose_the_cost_in_the_dtype_that_they_come_in(dtype, gap):
    for seed in range(30):
        C = np.random.default_rng(seed).random((8, 4)).astype(dtype)
        result = cusink.sinkhorn(None, None, C, eps=0.02, gap=gap, tol=1e-2)
        lower, upper = map(float, result.bounds())
        want = exact(np.full(8, 1 / 8), np.full(4, 1 / 4), C.astype(np.float64))  # no rounding but that of the bounds
        assert result.bounds()[0].dtype == dtype and lower <= want + 1e-14 and want - 1e-14 <= upper
        assert gap is None or upper - lower <= gap * upper


def test_a_gap_that_half_precision_cannot_tell_is_warned_of():
    C = np.random.default_rng(0).random((8, 4)).astype(np.float16)
    with pytest.warns(cusink.ConvergenceWarning, match="did not reach gap=1e-05; .* rounding leads"):
        cusink.sinkhorn(None, None, C, eps=0.02, gap=1e-5)
    cusink.sinkhorn(None, None, 0 * C, eps=0.02, gap=1e-5)  # 0 is a number of any dtype


def test_the_lower_bound_of_a_cost_beyond_half_precision_is_none_too_large():
    C = np.full((2, 2), 40000, np.float16)
    with pytest.warns(RuntimeWarning, match="exceeds the range of float16"):
        result = cusink.sinkhorn([4, 4], [4, 4], C, eps=4000)
    with pytest.warns(RuntimeWarning, match="exceeds the range of float16"):
        bounds = result.bounds()
    lower, upper = map(float, bounds)
    assert lower <= 320000 and upper == np.inf
