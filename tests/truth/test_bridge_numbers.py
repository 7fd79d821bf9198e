"""Numbers of any kind given to the bridges: as NumPy has them, cut to nothing less."""

import jax
import numpy as np
import pytest
import reference
import torch
from truth.claims import gradient

import cusink
from cusink.jax import sinkhorn_loss
from cusink.torch import sinkhorn_loss as torch_loss

A, B, COST = [3, 1], [1, 3], [[0, 5], [5, 0]]
VALUES = ["cost", "reg_cost", "entropic_cost"]
KINDS = {
    "lists": lambda x: x,
    "tuples": lambda x: tuple(map(tuple, x)) if isinstance(x[0], list) else tuple(x),
    "NumPy integers": lambda x: np.array(x),
    "NumPy float64": lambda x: np.array(x, float),
    "JAX integers": lambda x: jax.numpy.array(x),
    "JAX floats": lambda x: jax.numpy.array(x, float),
}


def right(value, eps):
    return getattr(reference.optimum(np.array(A, float), np.array(B, float), np.array(COST, float), eps), value)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("eps", [4.9, 0.5, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_jax_takes_numbers_of_any_kind(kind, eps, value):
    made = KINDS[kind]
    loss = sinkhorn_loss(made(A), made(B), made(COST), eps, value=value, tol=1e-6)
    np.testing.assert_allclose(loss, right(value, eps), rtol=2e-6)
    np.testing.assert_allclose(loss, getattr(cusink.sinkhorn(A, B, COST, eps=eps), value), rtol=2e-6)


@pytest.mark.parametrize("integers", ["a", "b", "C", "ab"])
def test_jax_takes_integers_beside_floats(integers):
    given = {"a": A, "b": B, "C": COST}
    arrays = {name: jax.numpy.array(x, int if name in integers else np.float32) for name, x in given.items()}
    loss = sinkhorn_loss(arrays["a"], arrays["b"], arrays["C"], 4.9, value="reg_cost")
    np.testing.assert_allclose(loss, right("reg_cost", 4.9), rtol=2e-6)


def test_jax_takes_integers_under_jit():
    loss = jax.jit(lambda a, b, C: sinkhorn_loss(a, b, C, 4.9, value="reg_cost"))
    np.testing.assert_allclose(loss(*map(jax.numpy.array, (A, B, COST))), right("reg_cost", 4.9), rtol=2e-6)


@pytest.mark.parametrize("eps", [1, np.float32(0.5), np.array(0.5), jax.numpy.array(0.5), jax.numpy.array(2)], ids=repr)
def test_jax_takes_eps_of_any_kind(eps):
    a, b, C = (jax.numpy.array(x, np.float32) for x in (A, B, COST))
    loss = sinkhorn_loss(a, b, C, eps, value="reg_cost")
    np.testing.assert_allclose(loss, right("reg_cost", float(eps)), rtol=2e-6)


# Both bridges on a large number for forbidden pairs, and on +inf with an empty bin.

WEIGHTS = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])


def forbidden(big):
    return np.array([[0.2, 0.5, big], [0.7, 0.1, 0.4], [big, 0.6, 0.3]])


def value_and_gradients(library, a, b, C, eps):
    """Return the loss `reg_cost` and its gradients for a and C in float32."""
    a, b, C = (np.asarray(x, np.float32) for x in (a, b, C))
    if library == "jax":
        loss, grads = jax.value_and_grad(
            lambda a, C: sinkhorn_loss(a, jax.numpy.array(b), C, eps, value="reg_cost"), argnums=(0, 1)
        )(jax.numpy.array(a), jax.numpy.array(C))
        return float(loss), *map(np.asarray, grads)
    a, C = (torch.tensor(x, requires_grad=True) for x in (a, C))
    loss = torch_loss(a, torch.tensor(b), C, eps, value="reg_cost")
    loss.backward()
    return float(loss.detach()), a.grad.numpy(), C.grad.numpy()


@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("big", [1e8, 1e9, np.inf])
def test_losses_beside_forbidden_pairs(big, library):
    loss, of_a, of_C = value_and_gradients(library, *WEIGHTS, forbidden(big), 0.05)
    exact = forbidden(np.inf)
    np.testing.assert_allclose(loss, reference.optimum(*WEIGHTS, exact, 0.05).reg_cost, rtol=5e-6)
    want = gradient(lambda w: reference.optimum(w, WEIGHTS[1], exact, 0.05).reg_cost, WEIGHTS[0])
    np.testing.assert_allclose(of_a, want, atol=1e-4)
    solution = reference.solve(*WEIGHTS, exact, 0.05)
    np.testing.assert_allclose(of_C, reference.plan(*WEIGHTS, exact, 0.05, solution.f, solution.g), atol=1e-5)


@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("eps", [0.1, 5e-4])
def test_losses_beside_an_empty_bin_and_infinite_costs(eps, library):
    C = [[0.5, 0.8, 0.5], [np.inf, 0.9, 0.3]]
    loss, of_a, of_C = value_and_gradients(library, [0, 1], [0, 0.4, 0.6], C, eps)
    assert abs(loss - 0.54) < 1e-6
    assert np.isfinite(of_a).all()
    np.testing.assert_allclose(of_C, [[0, 0, 0], [0, 0.4, 0.6]], atol=1e-6)
