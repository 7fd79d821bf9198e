"""Gradients by the factor of "mahalanobis" and by a table of labels, of costs and of what is built on them.

The oracles are central differences in float64, and the chain rule through the gradient by a stored cost.
"""

import numpy as np
import pytest
import reference

import cusink
from cusink.costs import matrix

RNG = np.random.default_rng(0)
X, Y = RNG.random((6, 3)), RNG.random((5, 3))
FACTOR = RNG.normal(size=(3, 2))
LABELS = np.array([0, 1, 2, 0, 1, 2]), np.array([2, 2, 0, 3, 1])
TABLE = RNG.random((3, 4)) + 0.5
SQUARE = RNG.random((3, 3)) + 0.5
OF_FACTOR, OF_TABLE = RNG.normal(size=FACTOR.shape), RNG.normal(size=TABLE.shape)
BOTH = {"factor": FACTOR, "labels": LABELS, "table": TABLE}
OPTIONS = {"eps": 0.5, "tol": 1e-11, "max_iter": 10_000}


def clouds(batch):
    return (np.stack([X, X + 0.3]), np.stack([Y, 2 * Y])) if batch else (X, Y)


def along(metric, factor=OF_FACTOR, table=OF_TABLE):
    """Return the product of gradients by parameters with a move of these."""
    return (metric["factor"] * factor).sum() + (metric["table"] * table).sum()


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("power", [1, 2, 0.7])
def test_costs_have_gradients_by_factor_and_table(xp, batch, power, monkeypatch):
    (x, y), shape = clouds(batch), ((2,) if batch else ()) + (6, 5)
    grad = RNG.normal(size=shape)

    def cost(t):
        moved = {"factor": FACTOR + t * OF_FACTOR, "labels": LABELS, "table": TABLE + t * OF_TABLE}
        return (grad * cusink.cost_matrix(x, y, "mahalanobis", power=power, **moved)).sum()

    wanted = reference.derivative(cost, 1e-4)
    given = BOTH | {name: xp(BOTH[name]) for name in ("factor", "table")}
    for entries in (matrix.ADJOINT_ENTRIES, 11):  # at once, and in blocks of two rows
        monkeypatch.setattr(matrix, "ADJOINT_ENTRIES", entries)
        found = cusink.cost_matrix_adjoint(xp(x), xp(y), xp(grad), "mahalanobis", power=power, **given).metric
        assert set(found) == {"factor", "table"} and all(xp.owns(part) for part in found.values())
        assert along({name: xp.numpy(part) for name, part in found.items()}) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("metric", ["sqeuclidean", "cityblock", "kl", "minkowski"])
def test_every_metric_has_a_gradient_by_a_table(metric):
    grad = RNG.normal(size=(6, 6))
    found = cusink.cost_matrix_adjoint(X, None, grad, metric, labels=LABELS[0], table=SQUARE)
    wanted = np.zeros((3, 3))
    np.add.at(wanted, (LABELS[0][:, None], LABELS[0]), grad)
    np.testing.assert_allclose(found.metric["table"], wanted, rtol=1e-13)
    assert found.y is None and set(found.metric) == {"table"}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_from_zero_a_gradient_by_the_factor_keeps_its_digits(dtype):
    x, y, grad = ((p + s).astype(dtype) for p, s in ((X, 1000), (Y, 1000), (RNG.normal(size=(6, 5)), 0)))
    found = cusink.cost_matrix_adjoint(x, y, grad, "mahalanobis", factor=FACTOR, power=2).metric["factor"]
    d = (x.astype(np.float64)[:, None] - y).reshape(-1, 3)
    wanted = 2 * d.T @ (grad.reshape(-1, 1) * (d @ FACTOR))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, wanted, rtol=0, atol=100 * np.finfo(dtype).eps * np.abs(wanted).max())


@pytest.mark.parametrize("batch", [False, True])
def test_the_chain_through_a_stored_cost_is_the_gradient_of_the_cloud(batch):
    x, y = clouds(batch)
    given = {"metric": "mahalanobis", "power": 2, **BOTH}
    stored = cusink.sinkhorn(None, None, cusink.cost_matrix(x, y, **given), **OPTIONS)
    by_cost = cusink.sinkhorn_adjoint(stored, grad_cost=1.0, tol=1e-11).C
    chained = cusink.cost_matrix_adjoint(x, y, by_cost, **given)
    direct = cusink.sinkhorn(None, None, cusink.PointCloud(x, y, **given), **OPTIONS)
    grads = cusink.sinkhorn_adjoint(direct, grad_cost=1.0, tol=1e-11)
    for name, part in grads.metric.items():
        np.testing.assert_allclose(chained.metric[name], part, rtol=1e-7, atol=1e-9)
    for side in "xy":
        np.testing.assert_allclose(getattr(chained, side), getattr(grads, side), rtol=1e-7, atol=1e-9)


def test_gradients_unpack_as_those_of_both_sides():
    found = cusink.cost_matrix_adjoint(X, Y, np.ones((6, 5)), "mahalanobis", factor=FACTOR)
    gx, gy = found
    assert gx is found.x and gy is found.y and found[0] is gx and found[-1] is gy and len(found) == 2
    assert repr(found) == "CostGradients(x=float64[6, 3], y=float64[5, 3])"
    for metric in ("euclidean", "minkowski"):
        assert cusink.cost_matrix_adjoint(X, Y, np.ones((6, 5)), metric).metric == {}


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_gradients_are_arrays_of_the_library(library):
    module = pytest.importorskip("torch" if library == "torch" else "jax.numpy")
    x, y = (module.asarray(p.astype(np.float32)) for p in (X, Y))
    grad = module.ones((6, 5), dtype=module.float32)
    found = cusink.cost_matrix_adjoint(x, y, grad, "mahalanobis", **BOTH)
    wanted = cusink.cost_matrix_adjoint(*map(np.asarray, (x, y, grad)), "mahalanobis", **BOTH)
    gx, gy = found
    for one, other in ((gx, wanted.x), (gy, wanted.y), *((found.metric[k], wanted.metric[k]) for k in wanted.metric)):
        assert type(one) is type(x)
        np.testing.assert_allclose(np.asarray(one), other, rtol=1e-6)


def huber(x, y):
    return np.sqrt(1 + ((x[:, None] - y) ** 2).sum(axis=-1)) - 1


def huber_gradient(x, y, grad):
    grad /= huber(x, y) + 1
    pull = grad[..., None] * (x[:, None] - y)
    return pull.sum(axis=1), -pull.sum(axis=0)


def test_both_functions_take_the_gradient_of_a_function_and_leave_what_they_were_given_alone():
    grad = RNG.normal(size=(6, 5))
    grad.flags.writeable = False
    given = {"metric": huber, "gradient": huber_gradient}
    np.testing.assert_array_equal(cusink.cost_matrix(X, Y, **given), huber(X, Y))
    found = cusink.cost_matrix_adjoint(X, Y, grad, **given)
    wanted = reference.derivative(lambda t: (grad * huber(X + t * X, Y)).sum(), 1e-4)
    assert (found.x * X).sum() == pytest.approx(wanted, rel=1e-9)
    for call in (cusink.cost_matrix, lambda *points, **options: cusink.cost_matrix_adjoint(*points, grad, **options)):
        with pytest.raises(TypeError, match="'gradient' must be a function, and go with a 'metric' that is one"):
            call(X, Y, metric="euclidean", gradient=huber_gradient)


HISTOGRAMS = np.random.default_rng(1).dirichlet(np.ones(6), 3)
WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = {
    "plain": ({}, {"labels": LABELS, "table": TABLE}, 5, OF_TABLE),
    "debiased": ({"debiased": True}, {"labels": LABELS[0], "table": SQUARE + SQUARE.T}, 6, np.ones((3, 3)) + np.eye(3)),
    "an eps each": ({"eps": np.array([0.5, 0.8])}, {"labels": LABELS, "table": TABLE}, 5, OF_TABLE),
}


@pytest.mark.parametrize("kind", MEANS)
def test_barycenters_have_gradients_by_factor_and_table(kind):
    options, labelled, bins, of_table = MEANS[kind]
    options = {"eps": 0.5, "tol": 1e-12, "max_iter": 20_000} | options
    grad = np.random.default_rng(2).normal(size=bins)

    def mean(t):
        table = labelled["table"] + t * of_table
        y = None if bins == 6 else Y
        C = cusink.PointCloud(
            X, y, "mahalanobis", factor=FACTOR + t * OF_FACTOR, power=2, **labelled | {"table": table}
        )
        return cusink.barycenter(HISTOGRAMS, C, WEIGHTS, **options)

    result = mean(0.0)
    grads = cusink.barycenter_adjoint(
        result, grad_barycenter=np.broadcast_to(grad, result.barycenter.shape).copy(), tol=1e-10
    )
    wanted = reference.derivative(lambda t: (mean(t).barycenter * grad).sum(), 1e-3)
    assert along(grads.metric, table=of_table) == pytest.approx(wanted, rel=1e-6)
    stored = cusink.barycenter(HISTOGRAMS, cusink.Grid(6), WEIGHTS, **options)
    ones = np.ones(stored.barycenter.shape)
    assert cusink.barycenter_adjoint(stored, grad_barycenter=ones).metric == {}
