"""`cusink.jax` between points of every metric, and on grids whose spacing is learnt: derivatives, maps, input."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import cusink  # noqa: E402
from cusink import jax as bridge  # noqa: E402
from cusink.jax import PointCloud, sinkhorn_divergence, sinkhorn_loss  # noqa: E402

TIGHT = {"tol": 1e-11, "max_iter": 20000}
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
METRICS = {  # those with parameters of their own, or that are made in blocks
    "minkowski": {"p": 3.0, "power": 3.0},
    "hellinger": {"power": 2.0},
    "kl": {},
    "haversine": {"radius": 2.0, "power": 2.0},
}


@pytest.fixture(autouse=True)
def double_precision():
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def some(*shape, low=0.2, high=1.2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, shape))


def clouds(n=4, m=3, k=3):
    """Points (n, 2) and (m, 2), and a factor (2, k)."""
    return some(n, 2), some(m, 2, seed=1), some(2, k, low=-1, high=1, seed=2)


def learnt(x, y, factor, power=2.0):
    return PointCloud(x, y, "mahalanobis", factor=factor, power=power)


FUNCTIONS = {
    "cost": lambda C, new: sinkhorn_loss(None, None, C, 0.3, **TIGHT),
    "divergence": lambda C, new: sinkhorn_divergence(None, None, C, 0.3, **TIGHT),
    "potentials": lambda C, new: bridge.sinkhorn_potentials(None, None, C, 0.3, **TIGHT),
    "potential": lambda C, new: bridge.potential_at(None, None, C, 0.3, new, **TIGHT),
    "map": lambda C, new: bridge.entropic_map(None, None, C, 0.3, new, axis=0, **TIGHT),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_learnt_factor_passes_check_grads_in_both_modes(name):
    def function(x, y, factor, new):
        return FUNCTIONS[name](learnt(x, y, factor), new)

    check_grads(function, (*clouds(), some(2, 2, seed=3)), 2 if name in ("cost", "divergence") else 1, **CLOSE)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["cost", "divergence", "map"])
def test_every_metric_passes_check_grads_in_both_modes(metric, name):
    def function(x, y, new):
        return FUNCTIONS[name](PointCloud(x, y, metric, **METRICS[metric]), new)

    if (metric, name) == ("kl", "divergence"):
        with pytest.raises(ValueError, match="symmetric"):
            function(*clouds()[:2], None)
        return
    check_grads(function, (*clouds()[:2], some(2, 2, seed=3)), 2 if name == "cost" else 1, **CLOSE)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("far", [0.0, 1e6])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_factor_is_that_of_the_package(far, dtype, traced):
    x, y, factor = clouds()
    x, y = ((p * 16).round() / 16 + far for p in (x, y))  # of which a float holds every digit
    cloud = cusink.PointCloud(*map(np.asarray, (x, y)), "mahalanobis", factor=np.asarray(factor), power=2)
    result = cusink.sinkhorn(None, None, cloud, eps=0.3, tol=1e-8, max_iter=20000)
    rtol, tol = (1e-6, 1e-8) if dtype == "float64" else (1e-3, 1e-5)
    loss = jax.value_and_grad(lambda *p: sinkhorn_loss(None, None, learnt(*p), 0.3, tol=tol, max_iter=20000), 2)
    value, by_factor = (jax.jit(loss) if traced else loss)(*(p.astype(dtype) for p in (x, y, factor)))
    assert value.dtype == by_factor.dtype == dtype
    np.testing.assert_allclose(value, result.cost, rtol=rtol)
    expected = cusink.sinkhorn_adjoint(result, grad_cost=1.0).metric["factor"]
    np.testing.assert_allclose(by_factor, expected, rtol=rtol, atol=rtol)


def test_what_a_factor_maps_are_the_points_themselves():
    """At new points as between the bins; the images of the factor stay inside."""
    (x, y, factor), new = clouds(), some(5, 2, seed=3)
    cloud = cusink.PointCloud(*map(np.asarray, (x, y)), "mahalanobis", factor=np.asarray(factor))
    at = cusink.sinkhorn(None, None, cloud, eps=0.1, tol=1e-10).at(x=np.asarray(new))
    C = PointCloud(x, y, "mahalanobis", factor=factor)
    np.testing.assert_allclose(bridge.entropic_map(None, None, C, 0.1, new, tol=1e-10), at.map(), rtol=1e-7)
    np.testing.assert_allclose(bridge.potential_at(None, None, C, 0.1, new, tol=1e-10), at.potential, rtol=1e-7)
    assert repr(C) == "PointCloud(x=[4, 2], y=[3, 2], factor=[2, 3], metric='mahalanobis', power=1.0)"


@pytest.mark.parametrize("traced", [False, True])
def test_factors_map(traced):
    x, y, factor = clouds()

    def loss(x, factor):
        return sinkhorn_loss(None, None, learnt(x, y, factor), cusink.RelativeEps(0.1), **TIGHT)

    factors, gradient = jnp.stack([factor, 2 * factor, -factor]), jax.grad(loss, argnums=(0, 1))
    mapped = jax.vmap(gradient, in_axes=(None, 0))
    found = (jax.jit(mapped) if traced else mapped)(x, factors)
    for k in range(3):
        for got, wanted in zip(found, gradient(x, factors[k]), strict=True):
            np.testing.assert_allclose(got[k], wanted, rtol=1e-7, atol=1e-10)


def test_half_precision_and_barycenters_have_a_factor():
    x, y, factor = (p.astype("bfloat16") for p in clouds())
    exact = sinkhorn_loss(None, None, learnt(*(p.astype("float32") for p in (x, y, factor))), 0.3)
    assert sinkhorn_loss(None, None, learnt(x, y, factor), 0.3) == exact.astype("bfloat16")
    x, y, factor = clouds()
    A = jnp.asarray(np.random.default_rng(4).dirichlet(np.ones(4), 2))

    def mean(factor):
        return bridge.barycenter(A, learnt(x, y, factor), eps=0.5, tol=1e-12, max_iter=20000) @ jnp.arange(3.0)

    check_grads(mean, (factor,), 1, modes=["rev"], **CLOSE)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metric": "mahalanobis"}, ValueError, "'factor' must be given for metric 'mahalanobis'"),
        ({"factor": jnp.eye(2)}, ValueError, "'factor' must be None unless 'metric' is 'mahalanobis'; got"),
        ({"metric": "mahalanobis", "factor": jnp.eye(3)}, ValueError, "a row for each of the 2 coordinates of 'x'"),
        ({"metric": "mahalanobis", "factor": jnp.ones(2)}, ValueError, "'factor' must have two axes"),
        ({"metric": "mahalanobis", "factor": "I"}, TypeError, "'factor' must"),
        ({"metric": jnp.sqrt}, TypeError, "'metric' must be one of 'sqeuclidean'"),
    ],
)
def test_bad_metrics(options, error, message):
    with pytest.raises(error) as caught:
        PointCloud(*clouds()[:2], **options)
    assert message in str(caught.value)


# ---- grids whose spacing is learnt ---------------------------------------------------------------------------------


def spaced(height, gaps, metric="sqeuclidean"):
    return bridge.Grid((3, 4), metric, spacing=(height, gaps))


def on_grid(B=2):
    """Histograms (B, 12), one spacing, and distances between four cells."""
    a, b = (jnp.asarray(np.random.default_rng(seed).dirichlet(np.ones(12), B)) for seed in (0, 1))
    return a, b, jnp.asarray(0.7), some(3, low=0.4)


ON_GRIDS = {
    "cost": lambda a, b, C: sinkhorn_loss(a, b, C, 0.3, reduction="none", **TIGHT),
    "unbalanced": lambda a, b, C: sinkhorn_loss(a, b, C, 0.3, reach=0.7, reduction="none", **TIGHT),
    "divergence": lambda a, b, C: sinkhorn_divergence(a, b, C, 0.3, reduction="none", **TIGHT),
    "potentials": lambda a, b, C: bridge.sinkhorn_potentials(a, b, C, 0.3, **TIGHT),
    "product": lambda a, b, C: bridge.apply_plan(a, b, C, 0.3, some(12, 2), **TIGHT),
    "means": lambda a, b, C: bridge.barycentric_map(a, b, C, 0.3, some(12, 2), **TIGHT),
    "barycenter": lambda a, b, C: bridge.barycenter(jnp.stack([a, b], 1), C, eps=0.3, tol=1e-12, max_iter=20000),
}


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock"])
@pytest.mark.parametrize("name", ON_GRIDS)
def test_a_learnt_spacing_passes_check_grads(name, metric):
    a, b, height, gaps = on_grid()

    def function(height, gaps):
        return ON_GRIDS[name](a, b, spaced(height, gaps, metric))

    check_grads(function, (height, gaps), 1, modes=["rev"], **CLOSE)


@pytest.mark.parametrize("wide", [True, False])
def test_a_learnt_spacing_has_the_numbers_of_the_package(wide):
    a, b, height, gaps = (np.asarray(x) for x in on_grid())
    result = cusink.sinkhorn(a, b, cusink.Grid((3, 4), spacing=(0.7, gaps)), eps=0.3, tol=1e-9)
    rows, _ = cusink.sinkhorn_adjoint(result, grad_cost=np.ones(2), tol=1e-9).axes
    jax.config.update("jax_enable_x64", wide)
    rtol, dtype = (1e-7, "float64") if wide else (1e-3, "float32")

    def loss(height):
        return sinkhorn_loss(
            a, b, spaced(height, gaps), 0.3, reduction="sum", tol=1e-9 if wide else 1e-5, normalise=True
        )

    for way in (loss, jax.jit(loss)):
        value, by_height = jax.value_and_grad(way)(jnp.asarray(height))
        assert value.dtype == by_height.dtype == dtype
        np.testing.assert_allclose(value, result.cost.sum(), rtol=rtol)
        np.testing.assert_allclose(by_height, rows @ np.arange(3), rtol=rtol)


@pytest.mark.parametrize("function", [sinkhorn_loss, sinkhorn_divergence])
@pytest.mark.parametrize("traced", [False, True])
def test_spacings_map(function, traced):
    a, b, height, gaps = on_grid(3)

    def one(a, b, height, gaps):
        return function(a, b, spaced(height, gaps), cusink.RelativeEps(0.1), **TIGHT)

    heights, gradient = jnp.stack([height, 2 * height, 3 * height]), jax.grad(one, argnums=(0, 2, 3))
    for axes in ((0, 0, 0, None), (0, 0, None, None), (None, None, 0, None)):
        each = zip((a, b, heights), (a[0], b[0], height), axes, strict=False)
        given = (*(x if axis is not None else y for x, y, axis in each), gaps)
        mapped = jax.vmap(gradient, in_axes=axes)
        found = (jax.jit(mapped) if traced else mapped)(*given)
        for k in range(3):
            at = [x if axis is None else x[k] for x, axis in zip(given, axes, strict=True)]
            for got, wanted in zip(found, gradient(*at), strict=True):
                np.testing.assert_allclose(got[k], wanted, rtol=1e-6, atol=1e-9)
    jacobian = jax.jacrev(lambda h: function(a, b, spaced(h, gaps), 0.3, reduction="none", **TIGHT))(height)
    for k in range(3):
        expected = jax.grad(lambda h, k=k: function(a[k], b[k], spaced(h, gaps), 0.3, **TIGHT))(height)
        np.testing.assert_allclose(jacobian[k], expected, rtol=1e-6, atol=1e-9)


def test_what_has_no_derivative_by_a_spacing_is_refused():
    a, b, height, gaps = on_grid()
    for name, function in ON_GRIDS.items():
        rule = "differentiated once, and backwards only" if name == "barycenter" else "'spacing' has no derivative of"
        with pytest.raises(NotImplementedError, match=rule):
            jax.jvp(lambda h, f=function: f(a, b, spaced(h, gaps)), (height,), (height,))

    def loss(a, height):
        return sinkhorn_loss(a, b[0], spaced(height, gaps), 0.3, **TIGHT)

    with pytest.raises(NotImplementedError, match="'spacing' has no second derivative here"):
        jax.grad(jax.grad(loss, 1), 1)(a[0], height)
    assert jnp.abs(jax.hessian(loss)(a[0], height)).sum() > 0  # that by others stays


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"spacing": jnp.ones(3)}, ValueError, "'spacing' must be one number for all axes, or a tuple"),
        ({"spacing": (1.0, jnp.ones(4))}, ValueError, "or 3 distances between neighbours, for axis 1 of 4 cells; got"),
        ({"spacing": (jnp.asarray(1.0), 1.0), "periodic": True}, ValueError, "'periodic' must be False along axis 0"),
        ({"metric": "cosine"}, ValueError, "'metric' must be one of 'sqeuclidean', 'euclidean', 'cityblock'"),
    ],
)
def test_bad_grids(options, error, message):
    with pytest.raises(error) as caught:
        bridge.Grid((3, 4), **options)
    assert message in str(caught.value)


def test_what_a_grid_is_told_where_it_is_used():
    a, b, height, _ = on_grid()
    with pytest.raises(ValueError, match="'spacing' must be positive and finite"):
        sinkhorn_loss(a, b, bridge.Grid((3, 4), spacing=(-height, 1.0)), 0.3)
    with pytest.raises(TypeError, match="'spacing_0' must hold real numbers"):
        sinkhorn_loss(a, b, bridge.Grid((3, 4), spacing=(1j * height, 1.0)), 0.3)
    grid = bridge.Grid((3, 4), "euclidean", spacing=(height, 2.0), periodic=(False, True))
    assert repr(grid) == "Grid((3, 4), 'euclidean', spacing=(given, 2.0), periodic=(False, True))"


# ---- eps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["max", "mean", "median"])
@pytest.mark.parametrize("kind", ["stored", "clouds", "grid", "spaced"])
def test_an_eps_of_a_barycenter_may_be_relative(kind, of):
    rng, relative = np.random.default_rng(0), cusink.RelativeEps(0.1, of)
    A, C = rng.dirichlet(np.ones(4), 2), rng.random((4, 4))
    x, y = rng.random((4, 2)), rng.random((4, 2))
    costs = {
        "stored": (C, jnp.asarray(C)),
        "clouds": (cusink.PointCloud(x, y), PointCloud(jnp.asarray(x), jnp.asarray(y))),
        "grid": (cusink.Grid(4), cusink.Grid(4)),
        "spaced": (cusink.Grid(4, spacing=0.5), bridge.Grid(4, spacing=jnp.asarray(0.5))),
    }
    plain, own = costs[kind]
    expected = cusink.barycenter(A, plain, eps=relative, tol=1e-9)
    found = bridge.barycenter(jnp.asarray(A), own, eps=relative, tol=1e-9)
    np.testing.assert_allclose(found, expected.barycenter, rtol=1e-7)


@pytest.mark.parametrize("eps", [[0.1, 0.2], "mean", None, {}])
def test_what_may_be_an_eps_is_said_in_one_place(eps):
    x = clouds()[0]
    rule = r"'eps' must be a number, an array of one or of one per problem, or a share of the costs, such as"
    for call in (
        lambda: sinkhorn_loss(None, None, PointCloud(x), eps),
        lambda: sinkhorn_divergence(None, None, PointCloud(x), eps),
        lambda: bridge.barycenter(jnp.asarray(np.eye(4)[:2]), PointCloud(x), eps=eps),
        lambda: bridge.entropic_map(None, None, PointCloud(x), eps, x),
    ):
        with pytest.raises(TypeError, match=rule):
            call()
