"""Divergences in PyTorch and JAX with a price for each side: the numbers of the core, and slopes of differences."""

import numpy as np
import pytest

import cusink

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import cusink.jax  # noqa: E402
import cusink.torch  # noqa: E402

TIGHT = {"tol": 1e-12, "max_iter": 20000}
RNG = np.random.default_rng(6)
A, B, X, Y = RNG.random(5) + 0.2, RNG.random(4) + 0.3, RNG.random((5, 2)), RNG.random((4, 2)) + 0.3


@pytest.fixture(autouse=True)
def doubles():
    with jax.enable_x64(True):
        yield


def of_core(reach):
    return cusink.sinkhorn_divergence(A, B, cusink.PointCloud(X, Y), eps=0.2, reach=reach, **TIGHT)


def of_torch(reach, a=A, b=B, x=X, y=Y):
    a, b, x, y = (torch.as_tensor(v) for v in (a, b, x, y))
    cloud = cusink.torch.PointCloud(x, y)
    return cusink.torch.sinkhorn_divergence(a, b, cloud, 0.2, reach=reach, **TIGHT)


def of_jax(reach, a=A, b=B, x=X, y=Y):
    cloud = cusink.jax.PointCloud(jnp.asarray(x), jnp.asarray(y))
    return cusink.jax.sinkhorn_divergence(jnp.asarray(a), jnp.asarray(b), cloud, 0.2, reach=reach, **TIGHT)


@pytest.mark.parametrize("reach", [(0.3, 0.9), [0.3, 0.9], np.array([0.3, 0.9]), (0.5, None), (None, 0.5), 0.4])
def test_values_and_gradients_are_those_of_the_core(reach):
    wanted = of_core(reach)
    grads = cusink.sinkhorn_divergence_adjoint(wanted)
    leaves = [torch.tensor(v, requires_grad=True) for v in (A, B, X, Y)]
    loss = of_torch(reach, *leaves)
    loss.backward()
    value, slopes = jax.value_and_grad(lambda *given: of_jax(reach, *given), argnums=(0, 1, 2, 3))(A, B, X, Y)
    np.testing.assert_allclose([loss.item(), value], wanted.divergence, rtol=1e-12)
    for name, leaf, slope in zip("abxy", leaves, slopes, strict=True):
        np.testing.assert_allclose(leaf.grad, getattr(grads, name), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(slope, getattr(grads, name), rtol=1e-9, atol=1e-12)


def test_prices_are_learnt():
    prices = np.array([0.3, 0.9])
    grads, given = cusink.sinkhorn_divergence_adjoint(of_core((0.3, 0.9))), torch.tensor(prices, requires_grad=True)
    of_torch(given).backward()
    slope = jax.jit(jax.grad(of_jax))(jnp.asarray(prices))
    for found in (given.grad, slope):
        np.testing.assert_allclose(found, grads.reach, rtol=1e-9)
    check_grads(of_jax, (jnp.asarray(prices),), 1, ("fwd", "rev"), atol=1e-5, rtol=1e-5)
    one = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    of_torch(one).backward()
    np.testing.assert_allclose(one.grad, cusink.sinkhorn_divergence_adjoint(of_core(0.4)).reach, rtol=1e-9)
    price = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    loss = of_torch((price, 0.9))
    loss.backward()
    np.testing.assert_allclose(price.grad, grads.reach[0], rtol=1e-9)
    batch = np.array([[0.3, 0.9], [0.4, 0.4], [0.5, np.inf]])
    each = [of_core(tuple(None if rho == np.inf else rho for rho in row)).divergence for row in batch]
    np.testing.assert_allclose(jax.vmap(of_jax)(jnp.asarray(batch)), each, rtol=1e-9)
    np.testing.assert_allclose(torch.func.vmap(of_torch)(torch.tensor(batch)), each, rtol=1e-9)
    module = cusink.torch.SinkhornDivergence(
        eps=0.2, reach=(torch.nn.Parameter(torch.tensor(0.3).double()), 0.9), **TIGHT
    )
    assert [name for name, _ in module.named_parameters()] == ["reach_0"]
    module(*(torch.tensor(v) for v in (A, X, B, Y))).backward()
    np.testing.assert_allclose(module.reach_0.grad, grads.reach[0], rtol=1e-6)


@pytest.mark.parametrize("reach", [(0.6, 0.2), (0.6, None)])
def test_second_derivatives_are_slopes(reach):
    leaves = [torch.tensor(v, requires_grad=True) for v in (A, B, X, Y)]
    assert torch.autograd.gradgradcheck(lambda *given: of_torch(reach, *given), leaves, atol=1e-5)
    check_grads(lambda *given: of_jax(reach, *given), (A, B, X, Y), 2, ("fwd", "rev"), atol=1e-4, rtol=1e-4)


def test_pairs_of_clouds_take_two_prices():
    offsets, (a, b, x, y) = ([0, 2, 5], [0, 3, 4]), (A, B, X, Y)
    sides = [cusink.Measures(at, w, p) for at, w, p in zip(offsets, (a, b), (x, y), strict=True)]
    reach = (0.3, 0.9)
    pairs = cusink.sinkhorn_divergence(*sides, "sqeuclidean", eps=0.2, reach=reach, **TIGHT)
    grads = cusink.sinkhorn_divergence_adjoint(pairs)
    for bridge, array in ((cusink.torch, torch.as_tensor), (cusink.jax, jnp.asarray)):
        for prices in (reach, list(reach)):
            given = [bridge.Measures(at, array(w), array(p)) for at, w, p in zip(offsets, (a, b), (x, y), strict=True)]
            found = bridge.sinkhorn_divergence(*given, "sqeuclidean", 0.2, reach=prices, reduction="none", **TIGHT)
            np.testing.assert_allclose(found, pairs.divergence, rtol=1e-10)
    points = torch.tensor(x, requires_grad=True)
    given = (
        cusink.torch.Measures(offsets[0], torch.tensor(a), points),
        cusink.torch.Measures(offsets[1], torch.tensor(b), torch.tensor(y)),
    )
    cusink.torch.sinkhorn_divergence(
        *given, "sqeuclidean", 0.2, reach=np.array(reach), reduction="sum", **TIGHT
    ).backward()
    np.testing.assert_allclose(points.grad, grads.x, rtol=1e-8, atol=1e-10)
