"""Derivatives along directions, second ones, and those through the plan: dense algebra, differences, symmetry."""

import tracemalloc
from dataclasses import replace

import emulated
import numpy as np
import pytest
import reference
from emulated.cupy_stand_in import operators

import cusink
from cusink.gradients import motion

TIGHT = {"tol": 1e-13, "max_iter": 20_000}
WEIGHTS = np.array([1.0, -0.5, 2.0])
CLOUDS = {
    "points": ("sqeuclidean", 1),
    "cosine": ("cosine", 1.5),
    "power": ("euclidean", 1.5),
    "cityblock": ("cityblock", 2),
}
KINDS = ("dense", "own", *CLOUDS, "alone", "grid")
pytestmark = pytest.mark.filterwarnings("ignore::cusink.ConvergenceWarning")  # tolerances are those of rounding


class Path:
    """Inputs that move along a straight line: weights, cost and eps at a time t, and their directions by name."""

    def __init__(self, kind, seed=0, balanced=True, xp=np.asarray):
        rng = np.random.default_rng(seed)
        n, m = 6, 6 if kind in ("alone", "grid") else 5
        self.xp, self.kind, self.eps = xp, kind, 0.3
        self.a, self.b = rng.dirichlet(np.ones(n), 3), rng.dirichlet(np.ones(m), 3)
        self.a[0, 2] = 0
        self.a /= self.a.sum(axis=1, keepdims=True)
        self.inputs = {}
        if kind in ("dense", "own"):
            self.inputs["dC"] = rng.random((n, m) if kind == "dense" else (3, n, m))
        elif kind != "grid":
            self.inputs["dx"] = rng.normal(size=(n, 2))
            if kind in CLOUDS:
                self.inputs["dy"] = rng.normal(size=(m, 2)) + 0.5
        self.along = {name: rng.normal(size=x.shape) for name, x in self.inputs.items()}
        self.along["deps"] = 0.1 * rng.normal(size=3)[:1].repeat(3)
        for name, w in (("da", self.a), ("db", self.b)):
            move = w * rng.normal(size=w.shape)
            self.along[name] = move - w * move.sum(axis=1, keepdims=True) if balanced else move

    def at(self, t):
        xp, moved = self.xp, {name: self.xp(x + t * self.along[name]) for name, x in self.inputs.items()}
        if "dC" in moved:
            C = moved["dC"]
        elif self.kind == "grid":
            C = cusink.Grid((2, 3), spacing=0.5)
        else:
            metric, power = CLOUDS.get(self.kind, ("sqeuclidean", 1))
            C = cusink.PointCloud(moved["dx"], moved.get("dy"), metric, power=power)
        a, b = (w + t * self.along[name] for w, name in ((self.a, "da"), (self.b, "db")))
        return xp(a), xp(b), C, self.eps + t * float(self.along["deps"][0])

    def directions(self):
        return {name: self.xp(x) for name, x in self.along.items()}

    def solve(self, t, reach=None):
        a, b, C, eps = self.at(t)
        return cusink.sinkhorn(a, b, C, eps=eps, reach=reach, **TIGHT)


def difference(function, names, step=3e-4):
    """Centred differences of fourth order of the attributes of what a function of t returns, in NumPy."""
    far, near, after, beyond = (function(k * step) for k in (-2, -1, 1, 2))

    def of(name):
        x = [getattr(y, name) for y in (far, near, after, beyond)]
        return None if x[0] is None else (8 * (x[2] - x[1]) - (x[3] - x[0])) / (12 * step)

    return {name: of(name) for name in names}


def assert_moves(xp, found, want, rtol=1e-7):
    for name, expected in want.items():
        got = getattr(found, name)
        assert (got is None) == (expected is None), name
        if expected is not None:
            got, expected = (np.asarray(x.get() if hasattr(x, "get") else x) for x in (got, expected))
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize(
    ("kind", "reach"), [*((kind, None) for kind in KINDS), ("own", 0.7), ("points", (0.5, None)), ("grid", 0.7)]
)
def test_outputs_move_as_the_jvp_says(kind, reach):
    path = Path(kind, balanced=reach is None)
    tangents = cusink.sinkhorn_jvp(path.solve(0, reach), **path.directions(), tol=1e-13)
    assert tangents.converged.all()
    want = difference(lambda t: path.solve(t, reach), ("f", "g", "cost", "reg_cost", "entropic_cost"))
    assert_moves(np, tangents, want)


@pytest.mark.parametrize("forbid", [False, True])
def test_the_jvp_is_that_of_dense_linear_algebra(xp, forbid):
    """Directions that fill empty bins too, each alone."""
    rng = np.random.default_rng(1)
    a, b, C = rng.dirichlet(np.ones(7)), rng.dirichlet(np.ones(5)), rng.random((7, 5))
    a[[1, 4]], b[2] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    if forbid:
        C[0, :2] = C[4, 1:] = np.inf
    result = cusink.sinkhorn(xp(a), xp(b), xp(C), eps=0.1, **TIGHT)
    J = reference.jacobian(a, b, C, 0.1, *(xp.numpy(x) for x in (result.f, result.g)))
    sizes = {"a": (7,), "b": (5,), "C": (7, 5), "eps": ()}
    for name, shape in sizes.items():
        direction = rng.random(shape)
        direction = direction - direction.mean() if name in "ab" else direction
        tangents = cusink.sinkhorn_jvp(result, **{f"d{name}": xp(direction)}, tol=1e-13)
        for output in ("cost", "reg_cost", "entropic_cost", "f", "g"):
            expected = J[output][name] @ np.atleast_1d(direction).ravel()
            found = xp.numpy(getattr(tangents, output))
            if output in "fg":  # up to the constant between them
                constant = np.mean(found - expected)
                found = found - constant
            np.testing.assert_allclose(
                found, expected.reshape(found.shape), rtol=1e-8, atol=1e-8, err_msg=output + name
            )


@pytest.mark.parametrize(
    ("kind", "value", "reach"),
    [
        *((kind, value, None) for kind in KINDS for value in ("cost", "reg_cost")),
        ("dense", "entropic_cost", None),
        ("points", "entropic_cost", None),
        ("own", "reg_cost", 0.7),
        ("points", "reg_cost", (0.5, None)),
        ("grid", "reg_cost", 0.7),
        ("dense", "cost", (0.7, 0.4)),
        ("own", "cost", 0.7),
        ("points", "cost", (0.5, None)),
        ("grid", "cost", 0.7),
        ("dense", "entropic_cost", (0.7, 0.4)),
        ("points", "entropic_cost cost", (0.5, None)),
        ("grid", "entropic_cost cost reg_cost", 0.7),
    ],
)
def test_gradients_move_as_the_hvp_says(xp, kind, value, reach):
    path = Path(kind, 2, balanced=reach is None, xp=xp)
    cotangent = {f"grad_{each}": xp(WEIGHTS) for each in value.split()}
    product = cusink.sinkhorn_hvp(path.solve(0, reach), **cotangent, **path.directions(), tol=1e-13)
    assert product.converged.all()
    want = difference(
        lambda t: cusink.sinkhorn_adjoint(path.solve(t, reach), **cotangent, tol=1e-13),
        ("a", "b", "C", "eps", "x", "y"),
    )
    assert_moves(xp, product, want)


@pytest.mark.parametrize(
    ("kind", "value", "reach"),
    [
        *((kind, value, None) for kind in KINDS for value in ("cost", "reg_cost")),
        *((kind, "cost", reach) for kind in ("own", "cosine") for reach in (0.7, (None, 0.3))),
        ("own", "entropic_cost", (None, 0.3)),
    ],
)
def test_the_hessian_is_symmetric(kind, value, reach):
    path = Path(kind, 3, balanced=reach is None)
    first, second = path.directions(), Path(kind, 4, balanced=reach is None).directions()
    result = path.solve(0, reach)
    cotangents = {f"grad_{value}": 1.0}
    images = [cusink.sinkhorn_hvp(result, **cotangents, **u, tol=1e-14) for u in (first, second)]

    def product(u, image):
        return sum((x * getattr(image, name.removeprefix("d"))).sum() for name, x in u.items())

    for u in (first, second) if reach is None else ():  # weights move on the simplex alone
        for name in ("da", "db"):
            u[name] = u[name] - u[name].mean(axis=1, keepdims=True)
    forth, back = product(first, images[1]), product(second, images[0])
    assert forth == pytest.approx(back, rel=1e-9) and abs(forth) > 1e-3


@pytest.mark.parametrize(
    ("kind", "reach"),
    [("dense", None), ("three costs", 0.7), ("points", 0.7), ("cosine", None), ("alone", None), ("grid", None)],
)
def test_gradients_of_the_divergence_move_as_its_hvp_says(kind, reach):
    three = kind == "three costs"
    path = Path("dense" if three else kind, 5, balanced=reach is None)
    rng, own, moves = np.random.default_rng(6), {}, {}
    for name, k in (("C_aa", 6), ("C_bb", 5)) if three else ():
        own[name], moves[f"d{name}"] = ((M + M.T) / 2 for M in rng.random((2, k, k)))
    if kind == "dense":  # bins that both sides share
        path = Path("alone", 5, balanced=reach is None)
        points = rng.random((2, 6, 1))
        path.inputs, cost = {"dC": abs(points[0] - points[0].T)}, path.along
        path.along = {name: x for name, x in cost.items() if name != "dx"} | {"dC": abs(points[1] - points[1].T)}

    def solve(t):
        a, b, C, eps = path.at(t)
        costs = {name: C_own + t * moves[f"d{name}"] for name, C_own in own.items()}
        return cusink.sinkhorn_divergence(a, b, C, eps=eps, reach=reach, **costs, tol=1e-13, max_iter=5000)

    product = cusink.sinkhorn_divergence_hvp(solve(0), grad=WEIGHTS, **path.directions(), **moves, tol=1e-13)
    assert product.converged.all()
    names = ("a", "b", "eps", "C", "C_aa", "C_bb", "x", "y")
    assert_moves(np, product, difference(lambda t: cusink.sinkhorn_divergence_adjoint(solve(t), grad=WEIGHTS), names))


def test_one_problem_and_batches_of_one_have_the_shapes_of_their_inputs():
    rng = np.random.default_rng(7)
    x, y = rng.random((1, 4, 2)), rng.random((1, 3, 2))
    batch = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=0.5)
    single = cusink.sinkhorn(None, None, cusink.PointCloud(x[0], y[0]), eps=0.5)
    of_batch = cusink.sinkhorn_hvp(batch, grad_cost=1.0, dx=x)
    of_single = cusink.sinkhorn_hvp(single, grad_cost=1.0, dx=x[0])
    assert of_batch.x.shape == x.shape and of_batch.eps.shape == (1,) and of_single.eps.shape == ()
    np.testing.assert_allclose(of_batch.x[0], of_single.x, rtol=1e-12)
    line = cusink.sinkhorn(None, None, cusink.PointCloud([0.0, 1.0, 3.0]), eps=0.5)
    assert cusink.sinkhorn_hvp(line, grad_reg_cost=1.0, dx=[1.0, 0.0, 0.0]).x.shape == (3,)
    cost = cusink.sinkhorn(None, None, rng.random((1, 4, 3)), eps=0.5)
    assert cusink.sinkhorn_hvp(cost, grad_reg_cost=1.0, dC=np.ones((1, 4, 3))).C.shape == (1, 4, 3)


@pytest.mark.parametrize("shared", ["x", "y"])
def test_one_cloud_for_all_problems_moves_as_points_where_all_sizes_are_equal(shared):
    """As many problems as points and as coordinates: their directions are no numbers on a line."""
    rng = np.random.default_rng(0)
    given = {"x": rng.random((3, 3, 3)), "y": rng.random((3, 3, 3))}
    given[shared] = given[shared][0]
    move = rng.random((3, 3)) - 0.5

    def solve(t):
        return cusink.sinkhorn(
            None, None, cusink.PointCloud(**given | {shared: given[shared] + t * move}), **TIGHT, eps=1
        )

    found = cusink.sinkhorn_jvp(solve(0), **{f"d{shared}": move})
    np.testing.assert_allclose(found.cost, difference(solve, ["cost"])["cost"], rtol=1e-7)
    slope = cusink.sinkhorn_adjoint(solve(0), grad_cost=1.0)
    np.testing.assert_allclose((getattr(slope, shared) * move).sum(), found.cost.sum(), rtol=1e-7)


def test_memory_does_not_grow_with_the_pairs(monkeypatch):
    monkeypatch.setattr(motion, "BLOCK_ENTRIES", 1 << 13)
    rng = np.random.default_rng(8)
    x, y, dx = rng.random((3, 1500, 3))
    result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=2.0, memory_limit=1 << 18)
    tracemalloc.start()
    product = cusink.sinkhorn_hvp(result, grad_cost=1.0, dx=dx).x
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.isfinite(product).all() and peak < 0.5 * 8 * 1500**2


@pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")
def test_the_cupy_operators_give_the_same():
    path = Path("dense", 9)
    result = path.solve(0)
    want = cusink.sinkhorn_hvp(result, grad_cost=WEIGHTS, **path.directions(), tol=1e-12)
    with operators() as ops:
        problem = result.problem
        other = replace(result, problem=replace(problem, C=replace(problem.C, ops=ops.OPERATORS)))
        found = cusink.sinkhorn_hvp(other, grad_cost=WEIGHTS, **path.directions(), tol=1e-12)
        for name in ("a", "b", "C", "eps"):
            np.testing.assert_allclose(getattr(found, name), getattr(want, name), rtol=1e-7, atol=1e-9)
        assert ops.launched


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({}, ValueError, "at least one of 'da', 'db', 'deps', 'dC', 'dx', 'dy' must be given"),
        ({"da": np.ones(4)}, ValueError, "'da' must have shape (3,)"),
        ({"da": np.ones(3, np.float16)}, TypeError, "one dtype"),
        ({"dC": np.ones((2, 2))}, ValueError, "'dC' must have shape (3, 2)"),
        ({"dC": np.full((3, 2), np.nan)}, ValueError, "'dC' must be finite"),
        ({"dx": np.ones((3, 1))}, ValueError, "'dx' must be None for a stored cost, which has no points"),
        ({"da": np.array([1, np.inf, 0])}, ValueError, "'da' must be finite"),
        ({"deps": "much"}, TypeError, "'deps'"),
        ({"da": np.ones(3), "tol": None}, TypeError, "'tol' must be a number"),
    ],
)
def test_bad_directions(change, error, message):
    result = cusink.sinkhorn(None, None, np.ones((3, 2)), eps=0.5)
    for call in (cusink.sinkhorn_jvp, lambda *x, **y: cusink.sinkhorn_hvp(*x, grad_cost=1.0, **y)):
        with pytest.raises(error) as caught:
            call(result, **change)
        assert message in str(caught.value)


def test_what_a_cost_or_a_solve_does_not_have():
    cloud = cusink.sinkhorn(None, None, cusink.PointCloud([0.0, 1.0]), eps=0.5)
    with pytest.raises(ValueError, match="'dC' must be None for a PointCloud"):
        cusink.sinkhorn_jvp(cloud, dC=np.ones((2, 2)))
    with pytest.raises(ValueError, match="'dy' must be None for a PointCloud of 'x' alone"):
        cusink.sinkhorn_jvp(cloud, dy=[0.0, 1.0])
    with pytest.raises(ValueError, match="at least one of 'grad_cost'"):
        cusink.sinkhorn_hvp(cloud, dx=[0.0, 1.0])
    divergence = cusink.sinkhorn_divergence(None, None, 1 - np.eye(2), eps=0.5)
    with pytest.raises(ValueError, match="'dC_aa' must be None, as the divergence was computed without 'C_aa'"):
        cusink.sinkhorn_divergence_hvp(divergence, dC_aa=np.eye(2))
    with pytest.raises(ValueError, match="at least one of"):
        cusink.sinkhorn_divergence_hvp(divergence)


def test_forbidden_pairs_and_first_weights_after_a_solve_with_reach():
    """A row that may send nothing, single pairs, and empty bins that take their first weight."""
    rng = np.random.default_rng(10)
    a, b, C = 1.5 * rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(4)), rng.random((5, 4))
    a[1] = b[2] = 0
    C[3] = C[0, 1] = np.inf
    along = {"da": rng.random(5), "db": rng.random(4), "dC": rng.normal(size=(5, 4)), "deps": 0.1}
    along["da"][3] = 0  # of a bin that may send nothing no direction is taken

    def gradients(t):
        moved = (x + t * along[name] for x, name in ((a, "da"), (b, "db"), (C, "dC")))
        result = cusink.sinkhorn(*moved, eps=0.3 + t * 0.1, reach=(0.7, 0.4), **TIGHT)
        return cusink.sinkhorn_adjoint(result, grad_cost=1.0, grad_reg_cost=0.5, tol=1e-13)

    result = cusink.sinkhorn(a, b, C, eps=0.3, reach=(0.7, 0.4), **TIGHT)
    product = cusink.sinkhorn_hvp(result, grad_cost=1.0, grad_reg_cost=0.5, **along, tol=1e-13)
    steps, h = [gradients(k * 1e-3) for k in range(5)], 1e-3
    for name, at in (("a", [0, 1, 2, 4]), ("b", ...), ("C", ...), ("eps", ...)):  # one-sided: no weight is below 0
        x = [getattr(step, name) for step in steps]
        want = (-25 * x[0] + 48 * x[1] - 36 * x[2] + 16 * x[3] - 3 * x[4]) / (12 * h)
        np.testing.assert_allclose(getattr(product, name)[at], want[at], rtol=0, atol=1e-6, err_msg=name)


def test_a_point_out_of_reach_leaves_the_others_alone():
    """Of its weight nothing is left in float64, 20 away a part of 1e-176. Its own potential moves all the same."""
    found = []
    for far in (20.0, 60.0):
        cloud = cusink.PointCloud([0.0, 1.0, 2.0], [0.0, 1.0, far])
        result = cusink.sinkhorn(None, None, cloud, eps=0.3, reach=0.5, tol=1e-11)
        of_cost = cusink.sinkhorn_hvp(result, grad_cost=1.0, grad_reg_cost=0.5, dx=np.ones(3), tol=1e-10)
        of_map = cusink.barycentric_map_adjoint(result, [1.0, 2.0, 3.0], [1.0, 2.0, -1.0], tol=1e-10)
        of_plan = cusink.sinkhorn_adjoint(result, grad_plan=np.eye(3), tol=1e-10)
        tangents = cusink.sinkhorn_jvp(result, dx=np.ones(3), tol=1e-10)
        found.append([(x.a, x.b, x.x, x.y, x.eps) for x in (of_cost, of_map, of_plan)])
        found[-1].append((tangents.f, tangents.g[:2], tangents.cost, tangents.reg_cost))
        of_nearest = 2 * (2.0 - far) - tangents.f[2]  # of the costs to x = 2, which has all of its share
        assert tangents.g[2] == pytest.approx(0.5 / (0.5 + 0.3) * of_nearest, rel=1e-7)
    for near, far in zip(*found, strict=True):
        for x, y in zip(near, far, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-7)


def test_a_system_that_is_not_solved_warns():
    rng = np.random.default_rng(9)
    result = cusink.sinkhorn(None, None, cusink.PointCloud(rng.random((30, 2))), eps=0.01)
    with pytest.warns(cusink.ConvergenceWarning, match="linear system"):
        cusink.sinkhorn_jvp(result, deps=1.0, max_iter=1)


# ---- through the plan ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reach", "outputs"),
    [
        ("dense", None, "plan"),
        ("own", None, "thin"),
        ("points", None, "thin"),
        ("grid", None, "thin"),
        ("alone", 0.7, "plan"),
        ("own", 0.7, "entropic_cost"),
        ("points", (0.5, None), "entropic_cost"),
        ("dense", (0.5, None), "all"),
    ],
)
def test_gradients_through_the_plan_are_slopes(xp, kind, reach, outputs):
    path = Path(kind, 6, balanced=reach is None, xp=xp)
    rng = np.random.default_rng(7)
    (_, n), m = path.a.shape, path.b.shape[1]
    U, V = rng.normal(size=(3, n, 2)), rng.normal(size=(m, 2))
    M = U @ V.T
    cotangents = {
        "plan": {"grad_plan": xp(M)},
        "thin": {"grad_plan": (xp(U), xp(V))},
        "entropic_cost": {"grad_entropic_cost": xp(WEIGHTS)},
        "all": {"grad_plan": (xp(U), xp(V)), "grad_cost": xp(WEIGHTS), "grad_entropic_cost": xp(WEIGHTS)},
    }[outputs]
    grads = cusink.sinkhorn_adjoint(path.solve(0, reach), **cotangents, tol=1e-13)
    assert grads.converged.all()

    def value(t):
        result = path.solve(t, reach)
        total = (M * xp.numpy(result.plan())).sum() if "grad_plan" in cotangents else 0.0
        for name in ("cost", "entropic_cost"):
            total += (WEIGHTS * xp.numpy(getattr(result, name))).sum() if f"grad_{name}" in cotangents else 0.0
        return total

    found = [(xp.numpy(getattr(grads, name[1:])) * move).sum() for name, move in path.along.items()]
    assert sum(found) == pytest.approx(reference.derivative(value, 3e-4), rel=1e-7)


def test_empty_bins_have_gradients_through_the_plan():
    """By a first bit of weight: the one-sided slope."""
    rng = np.random.default_rng(8)
    a, b, C = np.array([0.5, 0.0, 0.3, 0.2]), rng.dirichlet(np.ones(3)), rng.random((4, 3))
    M = rng.normal(size=(4, 3))
    direction = np.array([-0.4, 1.0, -0.3, -0.3])
    gradient = cusink.sinkhorn_adjoint(cusink.sinkhorn(a, b, C, eps=0.2, **TIGHT), grad_plan=M, tol=1e-13).a

    def value(t):
        return (M * cusink.sinkhorn(a + t * direction, b, C, eps=0.2, **TIGHT).plan()).sum()

    slopes = [(value(t) - value(0)) / t for t in (1e-4, 2e-4)]
    assert (gradient * direction).sum() == pytest.approx(2 * slopes[0] - slopes[1], rel=1e-5)


@pytest.mark.parametrize(
    ("grad_plan", "message"),
    [
        (np.ones((2, 3)), r"'grad_plan' must have shape \(3, 2\); got \(2, 3\)"),
        ((np.ones((3, 1)), np.ones((3, 1))), r"'grad_plan\[1\]' must have shape \(2, 1\); got \(3, 1\)"),
        (np.full((3, 2), np.inf), "'grad_plan' must be finite"),
        ([np.ones((3, 1)), np.ones((2, 2))], r"'grad_plan\[1\]' must have shape \(2, 1\); got \(2, 2\)"),
        ([np.ones((3, 1))] * 3, r"'grad_plan' must have shape \(3, 2\); got \(3, 3, 1\)"),
        ((np.ones((1, 3, 1)), np.ones((2, 1))), r"'grad_plan\[0\]' must have shape \(3, 1\); got \(1, 3, 1\)"),
    ],
)
def test_bad_gradients_by_the_plan(grad_plan, message):
    result = cusink.sinkhorn(None, None, np.ones((3, 2)), eps=0.5)
    with pytest.raises(ValueError, match=message):
        cusink.sinkhorn_adjoint(result, grad_plan=grad_plan)


def test_a_gradient_by_the_plans_is_a_matrix_or_two_for_one_problem_or_all():
    rng = np.random.default_rng(3)
    a, b, C = rng.dirichlet(np.ones(4), 2), rng.dirichlet(np.ones(3), 2), rng.random((4, 3))
    result = cusink.sinkhorn(a, b, C, eps=0.3, **TIGHT)
    U, V = rng.normal(size=(2, 4, 2)), rng.normal(size=(2, 3, 2))
    each = cusink.sinkhorn_adjoint(result, grad_plan=U @ V.swapaxes(1, 2), tol=1e-12)
    thin = cusink.sinkhorn_adjoint(result, grad_plan=[U, V], tol=1e-12)
    np.testing.assert_allclose(thin.a, each.a, rtol=1e-9)
    for k in range(2):
        alone = cusink.sinkhorn(a[k], b[k], C, eps=0.3, **TIGHT)
        np.testing.assert_allclose(each.a[k], cusink.sinkhorn_adjoint(alone, grad_plan=(U[k], V[k])).a, atol=1e-7)
        both = cusink.sinkhorn_adjoint(result, grad_plan=(U[k], V[k]), tol=1e-12)  # one for all problems
        np.testing.assert_allclose(both.a[k], each.a[k], rtol=1e-9)


# ---- far pairs, and bins without weight ----------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [10.0, 1000.0, 1200.0])
def test_potentials_move_right_where_hardly_any_mass_is_carried(cost):
    """With a price of 1.7 a pair at cost 1000 carries 1e-109: a plan without mass is no reason for any slope."""
    a, b, eps, reach = np.array([0.683266]), np.array([0.79927]), 0.5171, 1.734
    result = cusink.sinkhorn(a, b, np.array([[cost]]), eps=eps, reach=reach)
    # f + g - C, and f - g: both potentials fall by the same share of the cost, by the equations of one pair.
    slope = reach / (2 * reach + eps)
    moved = cusink.sinkhorn_jvp(result, dC=np.ones((1, 1)))
    np.testing.assert_allclose([*moved.f, *moved.g], slope, rtol=1e-6)
    pulled = cusink.sinkhorn_adjoint(result, grad_f=np.ones(1))
    np.testing.assert_allclose(pulled.C, slope, rtol=1e-6)
    near = [cusink.sinkhorn(a, b, np.array([[cost + d]]), eps=eps, reach=reach) for d in (-0.5, 0.5)]
    np.testing.assert_allclose(near[1].f - near[0].f, slope, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_first_bit_of_weight_far_away_spoils_no_other_derivative(dtype):
    """An empty bin beside a full one that sends all of its mass away: its derivative leaves the range of numbers."""
    a, b = np.array([0, 0.9520585, 0.32843223], dtype), np.array([0.07976792, 0.2975847], dtype)
    C = np.array([[0.0575, 0.4614], [164973.8, 2.17e12], [1.46e13, 0.5911]], dtype)
    result = cusink.sinkhorn(a, b, C, eps=0.485, reach=0.01417)
    kept = cusink.sinkhorn(a[1:], b, C[1:], eps=0.485, reach=0.01417)
    for name in ("grad_cost", "grad_reg_cost", "grad_entropic_cost"):
        pulled, alone = (cusink.sinkhorn_adjoint(r, **{name: 1.0}) for r in (result, kept))
        of, of_alone = (
            cusink.sinkhorn_hvp(r, **{name: 1.0}, dC=np.ones(r.plan().shape, dtype)) for r in (result, kept)
        )
        for found, wanted in ((pulled, alone), (of, of_alone)):
            assert np.isfinite(found.a).all() and np.isfinite(found.b).all()
            np.testing.assert_allclose(found.a[1:], wanted.a, rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(found.C[1:], wanted.C, rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(found.eps, wanted.eps, rtol=1e-3, atol=1e-6)
    moved = cusink.sinkhorn_jvp(result, dC=np.ones(C.shape, dtype))
    assert np.isfinite([moved.cost, moved.reg_cost, moved.entropic_cost]).all()


@pytest.mark.parametrize("large", [1e4, 1e8, 1e10])
def test_derivatives_by_a_first_bit_of_weight_do_not_depend_on_the_rounding_of_its_potential(large):
    """One pair and an empty bin at a large cost: in float32 the density there was off by a factor of e**100."""
    a, b, C = np.float32([0.74]), np.float32([0, 0.74]), np.float32([[large, 0.3538]])
    result = cusink.sinkhorn(a, b, C, eps=0.0548)
    moved = cusink.sinkhorn_hvp(result, grad_cost=1.0, dC=np.float32([[1, 0]]))
    np.testing.assert_allclose(moved.b, [0.5, -0.5], rtol=1e-4)  # f + g = C there, and gradients have mean zero


@pytest.mark.filterwarnings("ignore::cusink.ConvergenceWarning")
def test_potentials_that_solve_nothing_are_flagged_without_a_word_of_numpys():
    for C, eps in (([[0.0], [3.98954562668849e19]], 0.02), ([[7e19], [0.9]], 0.3)):
        result = cusink.sinkhorn([0.2, 0.2], [1.0], np.array(C), eps=eps, reach=0.1, max_iter=20_000)
        assert not result.converged and not np.isnan(result.cost)
        for name in ("grad_cost", "grad_reg_cost", "grad_entropic_cost"):
            pulled = cusink.sinkhorn_adjoint(result, **{name: 1.0})
            moved = cusink.sinkhorn_hvp(result, **{name: 1.0}, dC=np.ones((2, 1)))
            for found in (pulled, moved):
                assert [found.a.shape, found.b.shape, found.C.shape, found.eps.shape] == [(2,), (1,), (2, 1), ()]
        assert cusink.sinkhorn_jvp(result, dC=np.ones((2, 1))).f.shape == (2,)


@pytest.mark.parametrize("reach", [None, 0.7])
def test_derivatives_along_directions_of_any_size_are_linear_in_them(reach):
    rng = np.random.default_rng(8)
    a, b = rng.dirichlet(np.ones(5), 2), rng.dirichlet(np.ones(6), 2)
    result = cusink.sinkhorn(a, b, rng.random((5, 6)), eps=0.1, reach=reach, tol=1e-10)
    moves = {"da": rng.normal(size=(2, 5)), "db": rng.normal(size=(2, 6)), "dC": rng.normal(size=(5, 6)), "deps": 0.3}
    for name, move in moves.items():
        first = cusink.sinkhorn_jvp(result, **{name: move})
        second = cusink.sinkhorn_hvp(result, grad_cost=1.0, **{name: move})
        for scale in (1e-200, 1e155, 1e290):
            scaled = cusink.sinkhorn_jvp(result, **{name: move * scale})
            for by in ("f", "g", "cost", "reg_cost", "entropic_cost"):
                np.testing.assert_allclose(getattr(scaled, by) / scale, getattr(first, by), rtol=1e-5, atol=1e-5)
            scaled = cusink.sinkhorn_hvp(result, grad_cost=1.0, **{name: move * scale})
            for by in ("a", "b", "eps", "C"):
                want = getattr(second, by)
                np.testing.assert_allclose(getattr(scaled, by) / scale, want, rtol=0, atol=1e-5 * abs(want).max())
