"""Adjoints of barycentric maps, and of potentials and maps at new points, held to differences of full solves."""

import tracemalloc

import numpy as np
import pytest

import cusink
from cusink.gradients import motion

TIGHT = {"tol": 1e-13, "max_iter": 20_000}
EXACT = {"tol": 1e-13}
pytestmark = pytest.mark.filterwarnings("ignore::cusink.ConvergenceWarning")  # tolerances are those of rounding


class Inputs:
    """Weights, a cost, eps and prices, which may be changed by name."""

    def __init__(self, kind, reach=None, seed=0):
        rng = np.random.default_rng(seed)
        n, m = (6, 6) if kind in ("grid", "alone") else (6, 5)
        a, b = rng.dirichlet(np.ones(n), 2), rng.dirichlet(np.ones(m), 2)
        a[0, 2] = b[1, 3] = 0  # whose means, and first bits of weight, count too
        self.kind, self.reach = kind, reach
        self.now = {"a": a / a.sum(axis=1, keepdims=True), "b": b / b.sum(axis=1, keepdims=True), "eps": np.array(0.3)}
        if reach is not None:
            self.now["reach"] = np.array(reach)
        if kind == "shared":
            self.now["C"] = rng.random((n, m))
        elif kind == "own":
            self.now["C"] = rng.random((2, n, m))
        elif kind == "cloud":
            self.now |= {"x": rng.normal(size=(n, 2)), "y": rng.normal(size=(m, 2))}
        elif kind == "own clouds":
            self.now |= {"x": rng.normal(size=(2, n, 2)), "y": rng.normal(size=(2, m, 2))}
        elif kind == "alone":
            self.now["x"] = rng.normal(size=(n, 2))
        self.shape = (n, m)

    def solve(self, **changed):
        x = self.now | changed
        if "C" in x:
            C = x["C"]
        elif "x" in x:
            C = cusink.PointCloud(x["x"], x.get("y"), "euclidean", power=1.5)
        else:
            C = cusink.Grid((2, 3), spacing=0.5)
        reach = None if self.reach is None else tuple(x["reach"])
        return cusink.sinkhorn(x["a"], x["b"], C, eps=float(x["eps"]), reach=reach, **TIGHT)

    def direction(self, rng):
        """Return changes by name; weights keep their mass in balanced transport, and those of empty bins stay."""
        moves = {name: rng.normal(size=x.shape) for name, x in self.now.items()}
        moves["eps"] *= 0.1
        for name in "ab":
            x, move = self.now[name], self.now[name] * moves[name]
            moves[name] = move - x * move.sum(axis=1, keepdims=True) if self.reach is None else move
        return moves

    def moved(self, moves, t):
        """Return the inputs on the way."""
        return {name: self.now[name] + t * move for name, move in moves.items()}


def slope(function, step=3e-4):
    """Centred difference of fourth order of a function of t at 0."""
    before, after = (function(k * step) for k in (-1, 1))
    return (8 * (after - before) - (function(2 * step) - function(-2 * step))) / (12 * step)


CASES = [
    ("shared", None),
    ("own", None),
    ("cloud", None),
    ("own clouds", (0.7, 0.4)),
    ("alone", None),
    ("grid", (0.5, np.inf)),
]


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize(("kind", "reach"), CASES)
def test_barycentric_map_adjoint_is_the_slope_of_the_map(kind, reach, axis):
    inputs, rng = Inputs(kind, reach), np.random.default_rng(1)
    kept, bins = inputs.shape if axis == 1 else inputs.shape[::-1]
    values, grad = rng.normal(size=(2, bins, 3)), rng.normal(size=(2, kept, 3))
    grads = cusink.barycentric_map_adjoint(inputs.solve(), values, grad, axis=axis, **EXACT)
    assert grads.converged.all() and grads.values.shape == values.shape

    def loss(values=values, **changed):
        return (grad * inputs.solve(**changed).barycentric_map(values, axis)).sum()

    moves, move = inputs.direction(rng), rng.normal(size=values.shape)
    wanted = slope(lambda t: loss(values + t * move, **inputs.moved(moves, t)))
    found = np.vdot(grads.values, move)
    for name, move in moves.items():
        of = getattr(grads, name)
        found += np.vdot(of.sum(axis=0) if name in ("eps", "reach") else of, move)  # which both problems share
    assert found == pytest.approx(wanted, rel=2e-7)
    if reach is not None and np.inf in reach:
        assert grads.reach[:, 1].tolist() == [0, 0]


@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("mapped", ["points", "values"])
@pytest.mark.parametrize(("kind", "reach"), [("cloud", None), ("own clouds", (0.7, 0.4)), ("alone", None)])
def test_extension_adjoint_is_the_slope_at_new_points_and_of_the_solution(kind, reach, mapped, side):
    """Its own gradients, and that by the potential sent on to the inputs of the solve."""
    inputs, rng = Inputs(kind, reach), np.random.default_rng(2)
    partners = "x" if kind == "alone" or side == "y" else "y"
    other = inputs.now[partners]
    new = rng.normal(size=(*other.shape[:-2], 4, 2))
    values = rng.normal(size=(other.shape[-2], 3)) if mapped == "values" else None
    grad_map, grad_potential = rng.normal(size=(2, 4, 2 if values is None else 3)), rng.normal(size=(2, 4))
    grad_gradient = rng.normal(size=(2, 4, 2))

    def loss(new, values, **changed):
        there = inputs.solve(**changed).at(**{side: new})
        images = there.map() if values is None else there.barycentric_map(values)
        of_potential = (grad_potential * there.potential).sum() + (grad_gradient * there.gradient()).sum()
        return of_potential + (grad_map * images).sum()

    result = inputs.solve()
    grads = cusink.extension_adjoint(
        result.at(**{side: new}),
        grad_potential=grad_potential,
        grad_map=grad_map,
        grad_gradient=grad_gradient,
        values=values,
    )
    assert grads.points.shape == new.shape and grads.partners.shape == other.shape
    assert (grads.values is None) == (values is None)
    moves, move, of_values = inputs.direction(rng), rng.normal(size=new.shape), 0
    found = np.vdot(grads.points, move)
    if values is not None:
        of_values = rng.normal(size=values.shape)
        found += np.vdot(grads.values, of_values)
    potential, weights = ("grad_g", "b") if side == "x" else ("grad_f", "a")
    of_solve = cusink.sinkhorn_adjoint(result, **{potential: grads.potential}, **EXACT)
    direct = {weights: grads.weights, "eps": grads.eps, "reach": grads.reach, partners: grads.partners}
    for name, by in moves.items():
        of = getattr(of_solve, name) + direct.get(name, 0)
        found += np.vdot(of.sum(axis=0) if name in ("eps", "reach") else of, by)
    wanted = slope(
        lambda t: loss(new + t * move, None if values is None else values + t * of_values, **inputs.moved(moves, t))
    )
    assert found == pytest.approx(wanted, rel=2e-7)


@pytest.mark.parametrize("axis", [1, 0])
def test_a_first_bit_of_weight_in_an_empty_bin_counts(axis):
    inputs, rng = Inputs("shared"), np.random.default_rng(3)
    kept, bins = inputs.shape if axis == 1 else inputs.shape[::-1]
    values, grad, h = rng.normal(size=(bins, 2)), rng.normal(size=(2, kept, 2)), 1e-4
    grads = cusink.barycentric_map_adjoint(inputs.solve(), values, grad, axis=axis, **EXACT)
    for name, problem, bin_ in (("a", 0, 2), ("b", 1, 3)):
        weights = inputs.now[name]
        move = np.zeros(weights.shape)
        move[problem] = np.eye(weights.shape[1])[bin_] - weights[problem]

        def loss(t, name=name, weights=weights, move=move):
            return (grad * inputs.solve(**{name: weights + t * move}).barycentric_map(values, axis)).sum()

        wanted = (-11 * loss(0) + 18 * loss(h) - 9 * loss(2 * h) + 2 * loss(3 * h)) / (6 * h)  # one-sided
        assert np.vdot(getattr(grads, name), move) == pytest.approx(wanted, rel=1e-6), name


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_both_libraries_and_dtypes_agree(xp, dtype):
    rng = np.random.default_rng(4)
    x, y, new, grad = (rng.random((k, 2)).astype(dtype) for k in (5, 4, 3, 5))
    wanted = cusink.sinkhorn(None, None, cusink.PointCloud(*(p.astype(float) for p in (x, y))), eps=0.2, **TIGHT)
    found = cusink.sinkhorn(None, None, cusink.PointCloud(xp(x), xp(y)), eps=0.2, tol=1e-7)
    tolerance = 1e-6 if dtype == np.float64 else 1e-4
    pairs = [
        (cusink.barycentric_map_adjoint(r, of(y), of(grad), tol=1e-9), ("values", "a", "b", "x", "y", "eps"))
        for r, of in ((found, xp), (wanted, np.float64))
    ]
    pairs += [
        (
            cusink.extension_adjoint(r.at(of(new)), grad_map=of(grad[:3]), grad_gradient=of(grad[1:4])),
            ("points", "potential", "partners", "eps"),
        )
        for r, of in ((found, xp), (wanted, np.float64))
    ]
    for (got, names), (want, _) in (pairs[:2], pairs[2:]):
        for name in names:
            assert getattr(got, name).dtype == dtype
            np.testing.assert_allclose(xp.numpy(getattr(got, name)), getattr(want, name), atol=tolerance, err_msg=name)


def test_numbers_stay_numbers_and_images_are_bins():
    line = cusink.sinkhorn(None, None, cusink.PointCloud([0.0, 1.0], [0.5, 2.0]), eps=0.5)
    found = cusink.barycentric_map_adjoint(line, [0.5, 2.0], [1.0, 0.0])
    assert found.values.shape == found.x.shape == (2,)
    there = cusink.extension_adjoint(line.at([0.1, 0.2, 0.3]), grad_map=[1.0, 0.0, 2.0], grad_gradient=[1.0, 2.0, 3.0])
    assert there.points.shape == (3,) and there.partners.shape == (2,)
    image, grid = np.full((2, 3), 1 / 6), cusink.Grid((2, 3), spacing=0.5)
    values, grad = np.random.default_rng(5).normal(size=(2, 2, 3))
    of_image = cusink.barycentric_map_adjoint(cusink.sinkhorn(image, image, grid, eps=0.5), values, grad)
    of_bins = cusink.barycentric_map_adjoint(cusink.sinkhorn(None, None, grid, eps=0.5), values.ravel(), grad.ravel())
    assert of_image.a.shape == of_image.values.shape == (2, 3)
    np.testing.assert_allclose(of_image.values.ravel(), of_bins.values)
    np.testing.assert_allclose(of_image.b.ravel(), of_bins.b)


def test_a_bin_without_partners_takes_nothing():
    C = np.array([[0.0, 1.0], [np.inf, np.inf]])
    result = cusink.sinkhorn([1.0, 0.0], [0.5, 0.5], C, eps=0.1)
    found = cusink.barycentric_map_adjoint(result, [2.0, 4.0], [0.0, 1.0])
    assert not any(np.any(x) for x in (found.values, found.a, found.b, found.C, found.eps))


def test_what_does_not_fit_is_refused():
    result = cusink.sinkhorn(None, None, cusink.PointCloud(np.zeros((2, 3)), np.ones((4, 3))), eps=1.0)
    with pytest.raises(ValueError, match=r"'grad_map' must have shape \(2, 5\) to match the map of 'values'; got \(4"):
        cusink.barycentric_map_adjoint(result, np.ones((4, 5)), np.ones((4, 5)))
    with pytest.raises(TypeError, match=r"'grad_map' must be an array of shape \(4, 5\); got None"):
        cusink.barycentric_map_adjoint(result, np.ones((2, 5)), None, axis=0)
    with pytest.raises(TypeError, match="'extension' must be what SinkhornResult.at returned"):
        cusink.extension_adjoint(result, grad_map=np.ones((2, 3)))
    there = result.at(np.zeros((6, 3)))
    with pytest.raises(ValueError, match=r"'grad_map' must have shape \(6, 3\) to match the map; got \(6, 2\)"):
        cusink.extension_adjoint(there, grad_map=np.ones((6, 2)))
    with pytest.raises(ValueError, match=r"'grad_potential' must have shape \(6,\) to match the potential; got \(4,\)"):
        cusink.extension_adjoint(there, grad_potential=np.ones(4))
    with pytest.raises(ValueError, match="at least one of 'grad_potential', 'grad_map', 'grad_gradient'"):
        cusink.extension_adjoint(there)
    with pytest.raises(ValueError, match=r"'grad_gradient' must have shape \(6, 3\) to match the gradient; got \(6,\)"):
        cusink.extension_adjoint(there, grad_gradient=np.ones(6))
    cloud = cusink.PointCloud(np.zeros((2, 3)), np.ones((4, 3)), lambda x, y: x @ y.T)
    of_function = cusink.sinkhorn(None, None, cloud, eps=1.0).at(np.zeros((6, 3)))
    with pytest.raises(ValueError, match="'grad_gradient' must be None for a 'metric' that is a function"):
        cusink.extension_adjoint(of_function, grad_gradient=np.ones((6, 3)))
    with pytest.raises(ValueError, match="'values' must come with 'grad_map'"):
        cusink.extension_adjoint(there, grad_potential=np.ones(6), values=np.ones(4))


def test_problems_of_a_batch_with_an_eps_each_are_those_alone():
    rng = np.random.default_rng(6)
    (x, new), y, eps = rng.random((2, 5, 2)), rng.random((4, 2)), np.array([0.2, 0.5])
    grad = rng.normal(size=(2, 5, 2))
    both = cusink.sinkhorn(np.full((2, 5), 0.2), None, cusink.PointCloud(x, y), eps=eps, **TIGHT)
    of_map = cusink.barycentric_map_adjoint(both, y, grad, **EXACT)
    of_new = cusink.extension_adjoint(both.at(new), grad_map=grad, grad_gradient=grad)
    alone = [cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=float(e), **TIGHT) for e in eps]
    maps = [cusink.barycentric_map_adjoint(result, y, g, **EXACT) for result, g in zip(alone, grad, strict=True)]
    there = [
        cusink.extension_adjoint(result.at(new), grad_map=g, grad_gradient=g)
        for result, g in zip(alone, grad, strict=True)
    ]
    for found, parts, own, summed in (
        (of_map, maps, ("a", "b", "eps"), ("x", "y", "values")),
        (of_new, there, ("potential", "weights", "eps"), ("points", "partners")),
    ):
        for name in own:
            np.testing.assert_allclose(getattr(found, name), [getattr(p, name) for p in parts], atol=1e-10)
        for name in summed:
            np.testing.assert_allclose(getattr(found, name), sum(getattr(p, name) for p in parts), atol=1e-10)


@pytest.mark.parametrize("batch", ["both", "x", "weights", "new"])
@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("d", [1, 2])
def test_a_batch_of_one_is_the_problem_alone(d, side, batch):
    rng = np.random.default_rng(9)
    x, y, new, weights = rng.random((6, d)), rng.random((5, d)), rng.random((4, d)), np.full((1, 6), 1 / 6)
    alone = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=0.3, **TIGHT)
    shared = cusink.PointCloud(x[None] if batch in ("both", "x") else x, y[None] if batch == "both" else y)
    given = new if batch == "weights" else new[None]
    result = cusink.sinkhorn(weights if batch == "weights" else None, None, shared, eps=0.3, **TIGHT)
    there, wanted = result.at(**{side: given}), alone.at(**{side: new})
    logits = (alone.g - cusink.cost_matrix(new, y) if side == "x" else alone.f - cusink.cost_matrix(new, x)) / 0.3
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    oracle = 2 * (new - shares @ (y if side == "x" else x))
    assert there.gradient().shape == there.map().shape == (*there.potential.shape, d)
    assert there.potential.size == 4 and there.gradient().ndim == (2 if batch == "new" else 3)
    np.testing.assert_allclose(there.gradient().reshape(4, d), oracle, atol=1e-9)
    np.testing.assert_allclose(there.map().reshape(4, d), new - oracle / 2, atol=1e-9)
    grads = dict(zip(("grad_map", "grad_gradient"), rng.normal(size=(2, 4, d)), strict=True))
    found = cusink.extension_adjoint(there, **{name: g.reshape(there.map().shape) for name, g in grads.items()})
    of_alone = cusink.extension_adjoint(wanted, **grads)
    for name in ("points", "partners", "potential", "weights", "eps"):
        want = getattr(of_alone, name)
        np.testing.assert_allclose(getattr(found, name).reshape(want.shape), want, atol=1e-9, err_msg=name)
    assert found.points.shape == given.shape


def test_memory_does_not_grow_with_the_pairs(monkeypatch):
    monkeypatch.setattr(motion, "BLOCK_ENTRIES", 1 << 13)
    x, y, grad = np.random.default_rng(7).random((3, 2000, 2))
    result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=2.0, memory_limit=1 << 18)
    there = result.at(grad)
    tracemalloc.start()
    of_map = cusink.barycentric_map_adjoint(result, y, grad)
    of_new = cusink.extension_adjoint(there, grad_map=grad)
    assert np.isfinite(of_map.x).all() and np.isfinite(of_new.points).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * 8 * 2000**2


@pytest.mark.parametrize("reach", [None, 0.7])
def test_gradients_of_a_map_are_linear_in_their_cotangents_of_any_size(reach):
    rng = np.random.default_rng(8)
    a, b = rng.dirichlet(np.ones(5), 2), rng.dirichlet(np.ones(6), 2)
    values, grad = rng.normal(size=(6, 2)), rng.normal(size=(2, 5, 2))
    result = cusink.sinkhorn(a, b, rng.random((5, 6)), eps=0.1, reach=reach, tol=1e-10)
    one = cusink.barycentric_map_adjoint(result, values, grad)
    for scale in (1e-200, 1e155, 1e290):
        scaled = cusink.barycentric_map_adjoint(result, values, grad * scale)
        for by in ("a", "b", "C", "eps", "values"):
            want = getattr(one, by)
            np.testing.assert_allclose(getattr(scaled, by) / scale, want, rtol=0, atol=1e-5 * abs(want).max())
