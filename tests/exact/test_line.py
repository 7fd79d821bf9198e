"""Exact transport on the line against POT, SciPy and a linear programme; its gradients against differences."""

import numpy as np
import ot
import pytest
from scipy.optimize import linprog
from scipy.stats import wasserstein_distance

import cusink

POWERS = (1, 1.5, 2, 4)
NAMES = ("x", "a", "y", "b")


def problems(size, n, m, seed=0):
    """Points and weights of a batch, with zero weights and points that meet."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(size, n)), rng.normal(size=(size, m)) + 0.3
    a, b = rng.dirichlet(np.ones(n), size), rng.dirichlet(np.ones(m), size)
    if n > 3:
        a[:, 1] = 0
        a[0, np.argmax(x[0])] = a[0, np.argmin(x[0])] = 0  # at both ends
        x[:, 0] = x[:, 2]
    if m > 3:
        b[:, -1] = 0
    a /= a.sum(axis=1, keepdims=True)
    b /= b.sum(axis=1, keepdims=True)
    return x, a, y, b


def linear_programme(x, a, y, b, power):
    """Return the minimum, from all pairs."""
    C = abs(x[:, None] - y) ** power
    rows = np.kron(np.eye(len(x)), np.ones(len(y)))
    columns = np.kron(np.ones(len(x)), np.eye(len(y)))
    return linprog(C.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([a, b]), method="highs").fun


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize(("n", "m"), [(9, 6), (1, 7), (5, 1), (1, 1), (33, 40)])
def test_the_cost_is_that_of_the_others(xp, n, m, power):
    given = problems(3, n, m)
    found = cusink.wasserstein_1d(*map(xp, given), power=power)
    assert found.shape == (3,) and found.dtype == np.float64
    x, a, y, b = given
    peer = [ot.wasserstein_1d(*each, p=power) for each in zip(x, y, a, b, strict=True)]
    np.testing.assert_allclose(xp.numpy(found), peer, rtol=1e-12)
    if power == 1:
        scipys = [wasserstein_distance(*each) for each in zip(x, y, a, b, strict=True)]
        np.testing.assert_allclose(xp.numpy(found), scipys, rtol=1e-12)
    if n * m < 100:
        np.testing.assert_allclose(xp.numpy(found)[0], linear_programme(*(g[0] for g in given), power), rtol=1e-9)
    alone = cusink.wasserstein_1d(*(xp(g[1]) for g in given), power=power)
    assert alone.shape == () and float(alone) == pytest.approx(float(found[1]), rel=1e-14)


@pytest.mark.parametrize("side", [1, -1])
def test_little_masses_far_out_keep_their_digits(xp, side):
    for far, little in ((1e6, 1e-12), (1e14, 1e-14), (1e16, 1e-16), (1e30, 1e-20)):
        x, a = xp(np.array([0.0, side * far])), xp(np.array([1 - little, little]))
        y, b = xp(np.array([0.0, side * 0.5])), xp(np.array([1 - little / 4, little / 4]))
        found = cusink.wasserstein_1d(x, a, y, b)
        # A quarter of the mass far out goes to the other point, the rest to the origin.
        want = little / 4 * (far - 0.5) + little * 3 / 4 * far
        assert float(found) == pytest.approx(want, rel=1e-14)
        gradients = cusink.wasserstein_1d_adjoint(x, a, y, b)
        np.testing.assert_allclose(xp.numpy(gradients.x), [0, side * little], rtol=1e-13, atol=1e-30)


@pytest.mark.parametrize("power", POWERS)
def test_gradients_are_those_of_differences(xp, power):
    x, a, y, b = problems(3, 6, 9, seed=1)
    x[:, 0] += 0.05  # where points of one side meet there is a kink
    grad = np.array([1.0, -2.0, 0.5])
    found = cusink.wasserstein_1d_adjoint(*map(xp, (x, a, y, b)), xp(grad), power=power)
    rng = np.random.default_rng(2)

    def value(**change):
        given = {"x": x, "a": a, "y": y, "b": b} | change
        return (grad * cusink.wasserstein_1d(*given.values(), power=power)).sum()

    for name, of in (("x", x), ("y", y), ("a", a), ("b", b)):
        move = rng.normal(size=of.shape)
        if name in "ab":
            move *= of > 0  # so that weights may fall
            move -= (of > 0) * (move.sum(axis=1) / (of > 0).sum(axis=1))[:, None]
            np.testing.assert_allclose(xp.numpy(getattr(found, name)).mean(axis=1), 0, atol=1e-12)
        step = 1e-6
        difference = (value(**{name: of + step * move}) - value(**{name: of - step * move})) / (2 * step)
        assert (xp.numpy(getattr(found, name)) * move).sum() == pytest.approx(difference, rel=1e-6, abs=1e-8)


def test_an_empty_bin_has_the_slope_of_a_first_bit(xp):
    """Differences to one side: the weight of a point without any can only grow."""
    x, a, y, b = (g[0] for g in problems(1, 6, 9, seed=3))
    assert a[1] == 0 and b[-1] == 0
    found = cusink.wasserstein_1d_adjoint(*map(xp, (x, a, y, b)), power=2)
    value, step = cusink.wasserstein_1d(x, a, y, b, power=2), 1e-7
    for name, weights, empty in (("a", a, 1), ("b", b, -1)):
        more = weights * (1 - step)
        more[empty] += step
        given = {"x": x, "a": a, "y": y, "b": b} | {name: more}
        slope = (cusink.wasserstein_1d(*given.values(), power=2) - value) / step
        gradient = xp.numpy(getattr(found, name))
        assert slope == pytest.approx(gradient[empty] - gradient @ weights, rel=1e-5)


def test_the_potentials_prove_the_cost():
    """``f_i + g_j <= C_ij`` everywhere, and their value is the cost: no other plan is cheaper."""
    for power in POWERS:
        x, a, y, b = (g[0] for g in problems(1, 12, 17, seed=4))
        found = cusink.wasserstein_1d_adjoint(x, a, y, b, power=power, wrt=("a", "b"))
        C = abs(x[:, None] - y) ** power
        shift = (C - found.a[:, None] - found.b).min()  # projected potentials have lost a constant
        assert a @ found.a + b @ found.b + shift == pytest.approx(cusink.wasserstein_1d(x, a, y, b, power=power))


def test_inputs_that_all_share_get_the_sum(xp):
    x, a, y, b = problems(4, 6, 9)
    shared = cusink.wasserstein_1d_adjoint(xp(x[0]), None, xp(y), xp(b[0]))
    each = [cusink.wasserstein_1d_adjoint(xp(x[0]), None, xp(y[k]), xp(b[0])) for k in range(4)]
    assert shared.x.shape == (6,) and shared.a.shape == (6,) and shared.y.shape == (4, 9) and shared.b.shape == (9,)
    for name in ("x", "a", "b"):
        total = sum(xp.numpy(getattr(g, name)) for g in each)
        np.testing.assert_allclose(xp.numpy(getattr(shared, name)), total, atol=1e-13)
    only = cusink.wasserstein_1d_adjoint(xp(x[0]), None, xp(y), None, wrt="y")
    assert only.x is None and only.a is None and "LineGradients" in repr(only)


def test_equal_measures_are_at_no_distance(xp):
    x, a, _, _ = problems(2, 9, 6)
    turned = np.random.default_rng(0).permutation(9)
    assert not xp.numpy(cusink.wasserstein_1d(*map(xp, (x, a, x, a)))).any()
    assert xp.numpy(cusink.wasserstein_1d(*map(xp, (x, a, x[:, turned], a[:, turned])))).max() < 1e-15
    gradient = cusink.wasserstein_1d_adjoint(*map(xp, (x, a, x, a)))
    assert not xp.numpy(gradient.x).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrow_inputs_are_computed_in_float64(xp, dtype):
    x, a, y, b = (g.astype(dtype) for g in problems(3, 33, 40, seed=5))
    found = cusink.wasserstein_1d(*map(xp, (x, a, y, b)), power=2)
    wide = [g.astype(np.float64) for g in (x, a, y, b)]
    wide[3] *= wide[1].sum(axis=1, keepdims=True) / wide[3].sum(axis=1, keepdims=True)
    assert found.dtype == dtype
    np.testing.assert_allclose(xp.numpy(found), cusink.wasserstein_1d(*wide, power=2), rtol=np.finfo(dtype).eps)
    assert cusink.wasserstein_1d_adjoint(*map(xp, (x, a, y, b))).a.dtype == dtype


def test_mass_scales_the_cost_and_far_points_lose_nothing(xp):
    x, a, y, b = problems(2, 9, 6)
    once = xp.numpy(cusink.wasserstein_1d(*map(xp, (x, a, y, b)), power=2))
    np.testing.assert_allclose(xp.numpy(cusink.wasserstein_1d(*map(xp, (x, 3 * a, y, 3 * b)), power=2)), 3 * once)
    far = cusink.wasserstein_1d(xp(np.round(x, 3) + 2**20), xp(a), xp(np.round(y, 3) + 2**20), xp(b))
    near = cusink.wasserstein_1d(xp(np.round(x, 3)), xp(a), xp(np.round(y, 3)), xp(b))
    np.testing.assert_allclose(xp.numpy(far), xp.numpy(near), rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"power": 0.5}, "'power' must be at least 1"),
        ({"power": np.inf}, "'power' must be at least 1"),
        ({"power": "2"}, "'power' must be a number"),
        ({"x": np.ones((2, 3, 1))}, r"'x' must have shape \(points,\) or \(B, points\)"),
        ({"y": [np.nan, 1.0]}, "'y' must be finite"),
        ({"b": [0.5, 0.6]}, r"must have the same mass.*Divide each by its sum$"),
        ({"a": [-1.0, 2.0, 0.0]}, "'a' must be non-negative"),
        ({"a": [0.0, 0.0, 0.0]}, "'a' must have a positive sum"),
        ({"a": [0.5, 0.5]}, r"'a' must have shape \(3,\)"),
        ({"x": [0.0, 1e200, 2.0], "power": 2}, "must lie so close"),
        ({"x": [0.0, 1e308, -1e308]}, "must lie so close"),
        ({"x": np.ones((2, 3)), "y": np.ones((4, 2))}, "batch sizes must be equal or 1"),
    ],
)
def test_bad_input_is_one_clear_error(change, message):
    given = {"x": [0.0, 1.0, 2.0], "a": None, "y": [0.5, 1.5], "b": [0.5, 0.5]} | change
    with pytest.raises((TypeError, ValueError), match=message):
        cusink.wasserstein_1d(**given)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("mass", "size"), [(2.0**-700, 2.0**530), (2.0**-1000, 2.0**530), (2.0**900, 2.0**-560)])
@pytest.mark.parametrize("power", [2, 1.5])
def test_costs_are_numbers_where_powers_of_distances_are_none(mass, size, power):
    x, a, y, b = problems(3, 7, 5)
    scale = np.exp2(np.log2(mass) + power * np.log2(size))
    found = cusink.wasserstein_1d(size * x, mass * a, size * y, mass * b, power=power)
    np.testing.assert_allclose(found / scale, cusink.wasserstein_1d(x, a, y, b, power=power), rtol=1e-12)
    found = cusink.wasserstein_1d_adjoint(size * x, mass * a, size * y, mass * b, power=power, wrt=("x", "y"))
    want = cusink.wasserstein_1d_adjoint(x, a, y, b, power=power, wrt=("x", "y"))
    for name in "xy":
        np.testing.assert_allclose(getattr(found, name) / (scale / size), getattr(want, name), rtol=1e-11, atol=1e-300)
