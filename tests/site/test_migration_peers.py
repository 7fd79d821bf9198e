"""The rows of docs/migration.md that are marked as compared with GeomLoss, OTT-JAX or faiss: both give one number.

GeomLoss takes a fixed number of steps, at which it is a few thousandths from the solution; tolerances are for that.
"""

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import cusink

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("geomloss", "ott-jax", "faiss-cpu")

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the other libraries, about what they import

TIGHT = {"tol": 1e-12, "max_iter": 20_000}
BLUR, REACH = 1.0, 0.8
BY_GEOMLOSS = {"rtol": 1e-3, "atol": 1e-3}
EPS = 0.2


def test_the_page_names_the_releases_that_the_tests_and_the_benchmarks_install():
    """One release of each peer is compared, timed and written on the page."""
    given = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tested = dict(need.split("==") for need in given["project"]["optional-dependencies"]["test"] if "==" in need)
    timed = dict(re.findall(r"([\w-]+)==([\w.]+)", (ROOT / "scripts" / "bench").read_text(encoding="utf-8")))
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    said = {
        name: rf"{shown} {timed[name]}\b" for name, shown in zip(PEERS, ("GeomLoss", "OTT-JAX", "faiss"), strict=True)
    }
    assert {name: tested[name] for name in PEERS} == {name: timed[name] for name in PEERS}
    assert all(re.search(words, page) for words in said.values()), said
    assert re.search(rf"POT {timed['POT']}\b", page)


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 2)), rng.normal(size=(15, 2)) + 0.5
    return rng.dirichlet(np.ones(20)), x, rng.dirichlet(np.ones(15)), y


# GeomLoss


@pytest.fixture(scope="module")
def samples_loss():
    torch, geomloss = pytest.importorskip("torch"), pytest.importorskip("geomloss")

    def loss(name, given, **options):
        """Return the loss, or the potentials, of arrays."""
        criterion = geomloss.SamplesLoss(name, blur=BLUR, scaling=0.99, backend="tensorized", **options)
        found = criterion(*map(torch.as_tensor, given))
        return tuple(part.numpy() for part in found) if isinstance(found, tuple) else found.numpy()

    return loss


def cusink_calls(p, given, reach):
    """Return the divergence and the solve of the page's rows, and by what GeomLoss's values are smaller."""
    a, x, b, y = given
    cost = cusink.PointCloud(x, y, metric="sqeuclidean" if p == 2 else "euclidean")
    unit = 2 if p == 2 else 1
    options = {"eps": unit * BLUR**p, "reach": None if reach is None else unit * reach**p, **TIGHT}
    return cusink.sinkhorn_divergence(a, b, cost, **options), cusink.sinkhorn(a, b, cost, **options), unit


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(("reach", "mass"), [(None, 1.0), (REACH, 1.0), (REACH, 1.5)])
def test_losses_of_geomloss(samples_loss, points, p, reach, mass):
    a, x, b, y = points
    given = (a, x, mass * b, y)
    divergence, solved, unit = cusink_calls(p, given, reach)
    theirs = samples_loss("sinkhorn", given, p=p, reach=reach)
    np.testing.assert_allclose(divergence.divergence / unit, theirs, **BY_GEOMLOSS)
    biased = samples_loss("sinkhorn", given, p=p, reach=reach, debias=False)
    ours = solved.reg_cost + unit * BLUR**p * ((1 + mass) / 2 - mass)
    np.testing.assert_allclose(ours / unit, biased, **BY_GEOMLOSS)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("reach", [None, REACH])
def test_potentials_of_geomloss(samples_loss, points, p, reach):
    divergence, solved, unit = cusink_calls(p, points, reach)
    debiased = (divergence.f - divergence.f_self, divergence.g - divergence.g_self)
    for ours, debias in ((debiased, True), ((solved.f, solved.g), False)):
        theirs = samples_loss("sinkhorn", points, p=p, reach=reach, potentials=True, debias=debias)
        f, g = (mine / unit - other for mine, other in zip(ours, theirs, strict=True))
        shift = (f.mean() - g.mean()) / 2 if reach is None else 0
        np.testing.assert_allclose(f - shift, 0, atol=5e-3)
        np.testing.assert_allclose(g + shift, 0, atol=5e-3)


def test_the_code_before_the_table_of_geomloss(samples_loss, points):
    torch = pytest.importorskip("torch")
    a, x, b, y = points
    result, _, _ = cusink_calls(2, points, None)
    moved = torch.as_tensor(x).clone().requires_grad_()
    geomloss = pytest.importorskip("geomloss")
    geomloss.SamplesLoss("sinkhorn", p=2, blur=BLUR, scaling=0.99)(*map(torch.as_tensor, (a, moved, b, y))).backward()
    ours = cusink.sinkhorn_divergence_adjoint(result, grad=0.5).x
    np.testing.assert_allclose(ours, moved.grad.numpy(), atol=1e-3)


def test_batches_of_geomloss(samples_loss, points):
    given = tuple(np.stack([part, part[::-1] + shift]) for part, shift in zip(points, (0, 0.3, 0, 0), strict=True))
    divergence, _, unit = cusink_calls(2, given, None)
    np.testing.assert_allclose(divergence.divergence / unit, samples_loss("sinkhorn", given), **BY_GEOMLOSS)


def test_a_cost_that_is_a_function(samples_loss, points):
    a, x, b, y = points

    def theirs(p, q):
        return (1 + ((p[:, :, None] - q[:, None]) ** 2).sum(-1)).sqrt()

    def cost(p, q):
        return np.sqrt(1 + ((p[:, None] - q) ** 2).sum(-1))

    cloud = cusink.PointCloud(x, y, cost)
    ours = cusink.sinkhorn_divergence(a, b, cloud, eps=BLUR**2, **TIGHT).divergence
    np.testing.assert_allclose(ours, samples_loss("sinkhorn", points, p=2, cost=theirs), **BY_GEOMLOSS)


@pytest.mark.parametrize(
    ("name", "kernel", "scale"),
    [("gaussian", "gaussian", np.sqrt(2) * BLUR), ("laplacian", "exponential", BLUR), ("energy", "distance", None)],
)
def test_kernel_norms_of_geomloss(samples_loss, points, name, kernel, scale):
    a, x, b, y = points
    options = {} if scale is None else {"scale": scale}
    ours = cusink.kernel_distance(x, a, y, b, kernel=kernel, **options) / 2
    np.testing.assert_allclose(ours, samples_loss(name, points), rtol=1e-3)


# OTT-JAX


@pytest.fixture(scope="module")
def ott():
    jax = pytest.importorskip("jax")
    names = ("geometry.geometry", "geometry.pointcloud", "geometry.grid", "geometry.costs", "solvers.linear")
    modules = {name.split(".")[-1]: pytest.importorskip(f"ott.{name}") for name in names}
    divergences = pytest.importorskip("ott.tools.sinkhorn_divergence")
    with jax.enable_x64(True):
        yield SimpleNamespace(**modules, jax=jax, divergences=divergences)


PRECISE = {"threshold": 1e-12, "max_iterations": 20_000}


@pytest.fixture(scope="module")
def few():
    rng = np.random.default_rng(0)
    a, b, x, y = rng.dirichlet(np.ones(7)), rng.dirichlet(np.ones(9)), rng.normal(size=(7, 2)), rng.normal(size=(9, 2))
    return a, b, x, y, cusink.cost_matrix(x, y)


def test_a_solve_of_ott(ott, few):
    a, b, x, y, C = few
    out = ott.linear.solve(ott.pointcloud.PointCloud(x, y, epsilon=EPS), a, b, **PRECISE)
    result = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=EPS, **TIGHT)
    np.testing.assert_allclose(result.plan(), out.matrix, atol=1e-10)
    values = [out.primal_cost, out.reg_ot_cost, out.ent_reg_cost, out.dual_cost]
    ours = [result.cost, result.reg_cost, result.entropic_cost, result.entropic_cost]
    np.testing.assert_allclose(ours, values, rtol=1e-9)
    for potential, weights, theirs in ((result.f, a, out.f), (result.g, b, out.g)):
        assert np.ptp(potential + EPS * np.log(weights) - theirs) < 1e-9
    for axis, vector in ((0, a), (1, b)):
        np.testing.assert_allclose(result.apply(vector, axis=axis), out.apply(vector, axis=axis), atol=1e-10)


def test_costs_of_ott(ott, few):
    _, _, x, y, C = few
    np.testing.assert_allclose(C, ott.pointcloud.PointCloud(x, y).cost_matrix, rtol=1e-9)
    for name, metric in (("Euclidean", "euclidean"), ("Cosine", "cosine")):
        theirs = ott.pointcloud.PointCloud(x, y, cost_fn=getattr(ott.costs, name)()).cost_matrix
        np.testing.assert_allclose(cusink.PointCloud(x, y, metric=metric).dense(), theirs, atol=1e-7)
    columns, rows = np.array([0.0, 0.2, 0.7, 1.0]), np.array([0.0, 0.3, 1.0])
    for given, spacing in (
        ({"x": [rows, columns]}, (np.diff(rows), np.diff(columns))),
        ({"grid_size": (3, 4)}, (1 / 2, 1 / 3)),
    ):
        theirs = ott.grid.Grid(**given).apply_cost(np.eye(12))
        np.testing.assert_allclose(cusink.Grid((3, 4), spacing=spacing).dense(), theirs, atol=1e-12)


def test_the_eps_that_ott_takes(ott, few):
    _, _, x, y, C = few
    assert np.isclose(0.05 * C.std(), ott.pointcloud.PointCloud(x, y).epsilon, rtol=1e-9)
    for share in (None, 0.1):
        ours = {"mean": (share or 0.05) * C.mean(), "std": (share or 0.05) * C.std()}
        for name, eps in ours.items():
            theirs = ott.pointcloud.PointCloud(x, y, epsilon=share, relative_epsilon=name).epsilon
            assert np.isclose(eps, theirs, rtol=1e-9)
    a = np.full(7, 1 / 7)
    for theirs, ours in (("max_cost", "max"), ("mean", "mean"), ("median", "median")):
        geometry = ott.geometry.Geometry(C, epsilon=EPS, scale_cost=theirs)
        result = cusink.sinkhorn(a, None, C, eps=cusink.RelativeEps(EPS, ours), **TIGHT)
        np.testing.assert_allclose(C / result.eps, geometry.cost_matrix / geometry.epsilon, rtol=1e-9)


@pytest.mark.parametrize(("taus", "mass"), [((0.9, 0.8), 1.5), ((1.0, 0.8), 1.0)])
def test_unbalanced_transport_of_ott(ott, few, taus, mass):
    a, b, _, _, C = few
    b = mass * b
    geometry = ott.geometry.Geometry(C, epsilon=EPS)
    out = ott.linear.solve(geometry, a, b, tau_a=taus[0], tau_b=taus[1], **PRECISE)
    reach = tuple(None if tau == 1 else EPS * tau / (1 - tau) for tau in taus)
    result = cusink.sinkhorn(a, b, C + EPS * np.log(np.outer(a, b)), eps=EPS, reach=reach, **TIGHT)
    np.testing.assert_allclose(result.plan(), out.matrix, atol=1e-9)
    np.testing.assert_allclose((result.plan() * C).sum(), out.primal_cost, rtol=1e-9)


@pytest.mark.parametrize(("name", "value"), [("reg_ot_cost", "reg_cost"), ("primal_cost", "cost")])
def test_gradients_of_ott(ott, few, name, value):
    a, b, _, _, C = few
    losses = pytest.importorskip("cusink.jax")
    theirs = ott.jax.grad(
        lambda cost: getattr(ott.linear.solve(ott.geometry.Geometry(cost, epsilon=EPS), a, b, **PRECISE), name)
    )(ott.jax.numpy.asarray(C))
    given = (ott.jax.numpy.asarray(a), ott.jax.numpy.asarray(b))
    option = {} if value == "cost" else {"value": value}
    ours = ott.jax.grad(lambda cost: losses.sinkhorn_loss(*given, cost, EPS, **option, **TIGHT))(
        ott.jax.numpy.asarray(C)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_the_divergence_of_ott(ott, few):
    a, b, x, y, _ = few
    given = {"a": a, "b": b, "epsilon": EPS, "solve_kwargs": PRECISE}
    theirs = ott.divergences.sinkhorn_divergence(ott.pointcloud.PointCloud, x, y, **given)[0]
    ours = cusink.sinkhorn_divergence(a, b, cusink.PointCloud(x, y), eps=EPS, **TIGHT).divergence
    np.testing.assert_allclose(ours, theirs, rtol=1e-8)


@pytest.mark.parametrize("power", [1.5, 2.0])
def test_the_line_of_ott(ott, few, power):
    a, b, x, y, _ = (ott.jax.numpy.asarray(part) for part in few)
    if power == 2:
        cost, unit = ott.costs.SqEuclidean(), 1
    else:
        cost, unit = ott.costs.PNormP(power), power  # OTT's is |x - y|**p / p
    geometry = ott.pointcloud.PointCloud(x[:, :1], y[:, :1], cost_fn=cost)
    theirs = unit * ott.linear.solve_univariate(geometry, a, b).ot_costs
    x, a, y, b = (np.asarray(part) for part in (x[:, 0], a, y[:, 0], b))
    np.testing.assert_allclose(cusink.wasserstein_1d(x, a, y, b, power=power), np.squeeze(theirs), rtol=1e-9)


# faiss


def test_an_index_of_faiss(tmp_path):
    """Histograms of one bin each: transport costs are the distances between the points, which faiss searches."""
    faiss = pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    q, x = rng.normal(size=(5, 8)).astype(np.float32), rng.normal(size=(20, 8)).astype(np.float32)
    theirs = faiss.IndexFlatL2(8)
    theirs.add(x[:15])
    theirs.add(x[15:])
    faiss.write_index(theirs, str(tmp_path / "faiss"))
    distances, indices = faiss.read_index(str(tmp_path / "faiss")).search(q, 3)

    queries, items, C = np.eye(5, dtype=np.float32), np.eye(20, dtype=np.float32), cusink.cost_matrix(q, x)
    index = cusink.Index(items[:15], C, eps=0.1)
    index.add(items[15:])
    assert len(index) == theirs.ntotal
    index.save(tmp_path / "index")
    for found in (
        index.search(queries, 3),
        cusink.Index.load(tmp_path / "index").search(queries, 3),
        cusink.nearest(queries, items, C, k=3, eps=0.1),
        index.search(queries, 3, candidates=theirs.search(q, 10)[1]),
    ):
        np.testing.assert_array_equal(found[1], indices)
        np.testing.assert_allclose(found[0], distances, rtol=1e-5)
