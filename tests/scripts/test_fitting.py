"""The generative model's derivative, Adam, and short fits by each divergence."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import reference as oracle

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "examples").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from examples import fitting  # noqa: E402
from examples.model import NOISE, TRUTH, Model, observe  # noqa: E402


def some_model(degree=3):
    rng = np.random.default_rng(degree)
    return Model(p=0.4, sigmas=np.array([0.3, -0.7]), coefficients=rng.normal(size=(degree + 1, 2)))


# The model


def test_a_sample_is_what_the_definition_says():
    """Point by point and power by power, with an odd number of points."""
    model, z = some_model(), np.random.default_rng(0).standard_normal(7)
    weights, points = model.sample(z)
    share = 1 / (1 + np.exp(-0.4))
    for i in range(7):
        sigma, centre, mass, count = (0.3, -1, share, 3) if i < 3 else (-0.7, 1, 1 - share, 4)
        t = sigma * z[i] + centre
        assert weights[i] == pytest.approx(mass / count)
        np.testing.assert_allclose(points[i], sum(c * t**k for k, c in enumerate(model.coefficients)))
    assert weights.sum() == pytest.approx(1)


def test_packing_keeps_every_parameter_in_its_place():
    model = some_model()
    again = Model.unpack(model.pack())
    assert again.p == model.p
    np.testing.assert_array_equal(again.sigmas, model.sigmas)
    np.testing.assert_array_equal(again.coefficients, model.coefficients)


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("count", [2, 9])
def test_the_adjoint_is_the_derivative_of_the_sample(degree, count):
    """Centred differences for the Jacobian, then <J u, v> = <u, J'v> for every u and random v."""
    rng = np.random.default_rng(count)
    model, z = some_model(degree), rng.standard_normal(count)
    grad_weights, grad_points = rng.normal(size=count), rng.normal(size=(count, 2))
    adjoint = model.sample_adjoint(z, grad_weights, grad_points).pack()
    for k, unit in enumerate(np.eye(len(adjoint))):

        def moved(t, unit=unit):
            weights, points = Model.unpack(model.pack() + t * unit).sample(z)
            return np.concatenate([weights, points.ravel()])

        slope = oracle.derivative(moved, step=1e-3)
        assert adjoint[k] == pytest.approx(slope @ np.concatenate([grad_weights, grad_points.ravel()]), abs=1e-9)


def test_the_notebooks_start_and_truth():
    start = Model.start(2)
    np.testing.assert_array_equal(start.pack(), [0, *[0.1] * 8])
    t = np.array([-1.5, 0.5])
    x, y = -0.2 + t + 0.2 * t**2 - 0.3 * t**3, -1 - 0.5 * t + 0.9 * t**2 + 0.2 * t**3
    np.testing.assert_allclose(TRUTH.curve(t), np.stack([x, y], axis=1))
    weights, points = observe(np.random.default_rng(3), 4000)
    assert weights[:2000].sum() == pytest.approx(1 / (1 + np.exp(-1)))
    clean = TRUTH.sample(np.random.default_rng(3).standard_normal(4000))[1]
    assert (points - clean).std() == pytest.approx(NOISE, rel=0.05)


# Adam


def test_adam_takes_the_steps_of_its_paper():
    adam, parameters = fitting.Adam(rate=0.5, eps=0.25), np.array([1.0, -2.0])
    gradients = np.array([[2.0, -1.0], [0.5, 3.0], [-4.0, 0.0]])
    mean = square = 0.0
    expected = parameters
    for count, gradient in enumerate(gradients, start=1):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        expected = expected - 0.5 * (mean / (1 - 0.9**count)) / (np.sqrt(square / (1 - 0.999**count)) + 0.25)
        parameters = adam.step(parameters, gradient)
        np.testing.assert_allclose(parameters, expected)


# Divergences and fits


CASES = {
    "kernel": {"kernel": "energy", "scale": 0.25},
    "likelihood": {"kernel": "gaussian", "scale": 0.25},
    "sinkhorn": {"scale": 0.3},
}


def notebook_cost(name, x, a, y, b):
    """Compute the notebook's formulas with every pair of points written out."""
    s = CASES[name]["scale"]

    def squares(p, q):
        return ((p[:, None] - q) ** 2).sum(axis=2)

    if name == "kernel":
        pairs = [(x, a, x, a, 1), (y, b, y, b, 1), (x, a, y, b, -2)]
        return sum(sign * (w @ (squares(p, q) + s**2) ** -0.25 @ v) for p, w, q, v, sign in pairs)
    if name == "likelihood":
        return -b @ np.log(np.exp(-squares(y, x) / s**2) @ a)
    return oracle.optimum(a, b, squares(x, y), s**2).entropic_cost


@pytest.mark.parametrize("name", CASES)
def test_the_cost_is_the_notebooks_and_the_gradient_its_slope(name):
    rng = np.random.default_rng(0)
    b, y = observe(rng, 6)
    z = rng.standard_normal(5)
    model = Model.unpack(Model.start(2).pack() + 0.2 * rng.normal(size=9))
    a, x = model.sample(z)
    given = SimpleNamespace(**CASES[name], tau=None, missed=[])
    cost, by_a, by_x, behind = fitting.DIVERGENCES[name](x, a, y, b, given)
    assert cost == pytest.approx(notebook_cost(name, x, a, y, b), rel=1e-6) and behind is None
    gradient = model.sample_adjoint(z, by_a, by_x).pack()

    def along(t):
        weights, points = Model.unpack(model.pack() + t * direction).sample(z)
        return notebook_cost(name, points, weights, y, b)

    for direction in rng.normal(size=(3, 9)) / 3:
        assert gradient @ direction == pytest.approx(oracle.derivative(along, step=1e-2), rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transport_converges_where_the_notebooks_plain_iteration_is_no_number(dtype):
    """At its start, s = 0.15, whole columns of exp(-C / s^2) are zero in float32, the notebook's precision."""
    rng = np.random.default_rng(0)
    (b, y), (a, x) = observe(rng, 50), Model.start(2).sample(rng.standard_normal(50))
    given = fitting.parse([])
    squares = ((x[:, None] - y) ** 2).sum(axis=2)

    def plain(a, b, K):
        v = np.ones_like(b)
        for _ in range(200):
            u = a / (K @ v)
            v = b / (K.T @ u)
        return given.scale**2 * (a @ np.log(u) + b @ np.log(v))

    with np.errstate(all="ignore"):
        single = plain(*(array.astype(np.float32) for array in (a, b, np.exp(-squares / given.scale**2))))
    exact = plain(a, b, np.exp(-squares / given.scale**2))
    cost, by_a, by_x, _ = fitting.sinkhorn(*(array.astype(dtype) for array in (x, a, y, b)), given)
    assert np.isnan(single) and given.missed == [] and cost.dtype == dtype
    assert cost == pytest.approx(exact, rel=1e-6 if dtype is np.float64 else 1e-5)
    assert np.isfinite(by_a).all() and np.isfinite(by_x).all()


@pytest.mark.parametrize("name", CASES)
def test_what_is_behind_the_points(name):
    rng = np.random.default_rng(0)
    (a, x), (b, y) = Model.start(2).sample(rng.standard_normal(4)), observe(rng, 5)
    grid = fitting.cells()
    assert grid.shape == (fitting.CELLS, fitting.CELLS, 2)
    np.testing.assert_allclose([grid[0, 0], grid[0, -1]], [[-1.98, -1.98], [1.98, -1.98]])
    *_, behind = fitting.DIVERGENCES[name](x, a, y, b, SimpleNamespace(**CASES[name], tau=-0.5, missed=[]), grid)
    at = grid[30, 70]
    distances = [((at - points) ** 2).sum(axis=1) for points in (x, y)]
    if name == "kernel":
        field = a @ (distances[0] + 0.0625) ** -0.25 - b @ (distances[1] + 0.0625) ** -0.25
        assert behind[30, 70] == pytest.approx(field)
    elif name == "likelihood":
        assert behind[30, 70] == pytest.approx(np.log(a @ np.exp(-distances[0] / 0.0625)))
    else:
        np.testing.assert_allclose(behind.sum(axis=1), a)


@pytest.mark.parametrize("name", CASES)
def test_a_short_fit_lowers_the_cost_the_same_way_each_time(name):
    words, seen = f"--divergence {name} --points 12 --scale {CASES[name]['scale']} --iterations 50 --frames 25", []
    runs = [fitting.fit(fitting.parse(words.split()), lambda *report: seen.append(report)) for _ in range(2)]
    (model, costs), (_, again) = runs
    assert len(costs) == 51 and costs[-5:].max() < 0.6 * costs[0]
    np.testing.assert_array_equal(costs, again)
    assert [report[:2] for report in seen[:3]] == [(k, costs[k]) for k in (0, 25, 50)]
    assert np.abs(model.pack() - fitting.Model.start(2).pack()).max() > 0.1
    other = fitting.fit(fitting.parse(["--seed", "1", *words.split()]), lambda *report: None)[1]
    assert abs(other[0] - costs[0]) > 1e-3


@pytest.mark.parametrize("name", ["likelihood", "sinkhorn"])
def test_the_command_prints_and_draws(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fitting, "TRUTH_SAMPLES", 2)
    folder = tmp_path / "new" / "folder"
    words = f"--divergence {name} --points 12 --scale 0.4 --iterations 4 --frames 2 --output {folder}"
    assert fitting.main(words.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    cost = fitting.fit(fitting.parse(words.split()), lambda *report: None)[1][0]
    assert lines[0] == f"Iteration  0 Cost =  {cost:.6g}" and "5 iterations" in lines[2]
    assert {path.name for path in folder.iterdir()} == {"iteration_0000.png", "cost.png", "fit.gif", "summary.png"}
    from PIL import Image

    with Image.open(folder / "fit.gif") as animation:
        assert animation.n_frames == 3


def test_the_truth_costs_little_beside_its_own_data(monkeypatch):
    """Samples of the truth, other than the data: of 300 points they are nearly equal in the norm."""
    monkeypatch.setattr(fitting, "TRUTH_SAMPLES", 5)
    given = fitting.parse("--divergence kernel --points 300".split())
    found = fitting.costs_of_truth(given)
    assert len(set(found)) == 5 and found.min() > 0 and found.max() < 0.02


def test_a_cost_that_is_no_number_ends_the_fit(monkeypatch):
    given = fitting.parse("--divergence kernel --points 5".split())
    monkeypatch.setitem(fitting.DIVERGENCES, "kernel", lambda x, a, *rest: (np.nan, a, x, None))
    assert len(fitting.fit(given, lambda *report: None)[1]) == 1


def test_plans_that_stop_early_are_counted_and_give_a_gradient_all_the_same(monkeypatch):
    monkeypatch.setattr(fitting, "MAX_ITER", 3)
    rng = np.random.default_rng(0)
    (a, x), (b, y) = Model.start(2).sample(rng.standard_normal(4)), observe(rng, 5)
    given = fitting.parse(["--tau", "0"])
    _, by_a, by_x, _ = fitting.sinkhorn(x, a, y, b, given)
    assert len(given.missed) == 1 and 1e-6 < given.missed[0] < 1
    assert np.isfinite(by_a).all() and np.isfinite(by_x).all()


def test_the_over_relaxed_fit_is_the_plain_one():
    runs = [
        fitting.fit(fitting.parse(f"--points 10 --iterations 8 {tau}".split()), lambda *situation: None)[1]
        for tau in ("--tau -0.5", "--tau 0", "")
    ]
    np.testing.assert_allclose(runs[1:], runs[:1] * 2, rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--divergence distance", "--divergence"),
        ("--kernel energy", "--kernel gaussian; leave it out"),
        ("--divergence kernel --kernel exponential", "laplace"),
        ("--scale 0", "--scale"),
        ("--tau 0.5", "--tau must be above -1"),
        ("--divergence likelihood --tau -0.5", "--tau"),
        ("--points 1", "--points must be at least 2"),
        ("--iterations 0", "--iterations 1"),
        ("--degree 0", "--degree"),
    ],
)
def test_bad_arguments_are_one_line(words, part, capsys):
    assert fitting.main(words.split()) == 2
    err = capsys.readouterr().err
    assert part in err and len(err.splitlines()) == 1
