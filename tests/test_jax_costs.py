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
