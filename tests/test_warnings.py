"""A warning names the line of the user's code, and comes once for each call of a public function."""

import inspect
import warnings

import numpy as np
import pytest
import scipy.sparse

import cusink

RNG = np.random.default_rng(0)
A, B, C = RNG.dirichlet(np.ones(6), 3), RNG.dirichlet(np.ones(6), 3), RNG.random((6, 6))
FAR = np.eye(300, dtype=np.float16)[[0, -1]]
LINE = np.arange(300, dtype=np.float16)
CLOUD = cusink.PointCloud(LINE)


def warned(function, category):
    """Return the message of the one warning of a call, which must name the line of this file that makes the call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        here = inspect.currentframe().f_lineno + 1
        function()
    assert [w.category for w in caught] == [category], [str(w.message) for w in caught]
    first = function.__code__.co_firstlineno
    assert caught[0].filename == __file__ and caught[0].lineno in (here, first, first + 1), caught[0].lineno
    return str(caught[0].message)


def overflowed(function):
    assert warned(function, RuntimeWarning).startswith("a result exceeds the range of float16")


@pytest.mark.parametrize("method", ["auto", "log"])
def test_solves_that_do_not_converge(method):
    options = {"eps": 1e-3, "max_iter": 2, "method": method}
    for call in (
        lambda: cusink.sinkhorn(A, B, C, **options),
        lambda: cusink.sinkhorn(A, B, C, reach=1.0, **(options | {"method": "auto"})),
        lambda: cusink.distance_matrix(A, B, C, **options),
        lambda: cusink.nearest(A, B, C, k=1, **options),
    ):
        assert "did not reach tol" in warned(call, cusink.ConvergenceWarning)


def test_other_solves_that_do_not_converge():
    S = C + C.T
    np.fill_diagonal(S, 0)
    options = {"eps": 1e-3, "max_iter": 2}
    for call in (
        lambda: cusink.sinkhorn_divergence(A, B, S, **options),
        lambda: cusink.barycenter(A, S, eps=1e-3, max_iter=1),
    ):
        assert "did not reach tol" in warned(call, cusink.ConvergenceWarning)


@pytest.mark.filterwarnings("ignore::cusink.ConvergenceWarning")
@pytest.mark.parametrize("metric", ["sqeuclidean", "cityblock", "cosine"])
@pytest.mark.parametrize("reach", [None, 0.5])
@pytest.mark.parametrize("eps", [1e-30, 1e-200])
def test_potentials_that_solve_nothing_give_no_warnings_of_numpy(metric, reach, eps):
    # Warnings are errors here: a call that says that it did not converge had one of an overflow beside it.
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 4, 2)), rng.random((2, 5, 2)) + 2
    a, b = rng.dirichlet(np.ones(4), 2), rng.dirichlet(np.ones(5), 2)
    cloud, options = cusink.PointCloud(x, y, metric), {"eps": eps, "reach": reach, "max_iter": 200}
    stored = np.stack([cusink.cost_matrix(p, q, metric) for p, q in zip(x, y, strict=True)])
    left = cusink.Measures([0, 4, 8], a.ravel(), np.concatenate(x))
    ragged = left, cusink.Measures([0, 5, 10], None, np.concatenate(y))
    unconverged = 0
    for left, right, C in ((a, b, cloud), (a, b, stored), (*ragged, metric)):
        result = cusink.sinkhorn(left, right, C, **options)
        unconverged += np.count_nonzero(~result.converged)
        for name in ("grad_cost", "grad_reg_cost", "grad_entropic_cost"):
            gradients = cusink.sinkhorn_adjoint(result, **{name: 1.0})
            assert all(getattr(gradients, part) is not None for part in ("a", "b", "eps"))
            assert C is stored or gradients.x.shape == (x if C is cloud else ragged[0].points).shape
        if C is not stored:
            divergence = cusink.sinkhorn_divergence(left, right, C, **options)
            unconverged += np.count_nonzero(~divergence.converged)
            assert cusink.sinkhorn_divergence_adjoint(divergence).x.shape == gradients.x.shape
    assert unconverged


def test_gradients_of_solves_that_did_not_converge():
    with pytest.warns(cusink.ConvergenceWarning):
        result = cusink.sinkhorn(A, B, C, eps=1e-3, max_iter=2)
    message = warned(lambda: cusink.sinkhorn_adjoint(result, grad_reg_cost=1.0), cusink.ConvergenceWarning)
    assert "had not converged" in message
    result = cusink.sinkhorn(A, B, C, eps=0.1)
    message = warned(lambda: cusink.sinkhorn_adjoint(result, grad_cost=1.0, max_iter=1), cusink.ConvergenceWarning)
    assert "linear system" in message


def test_items_without_weight():
    rows = scipy.sparse.csr_array(np.concatenate([A, np.zeros((1, 6))]))
    for call in (
        lambda: cusink.distance_matrix(rows, None, C + C.T, eps=0.1),
        lambda: cusink.nearest(rows, rows, C, k=1, eps=0.1),
    ):
        assert "no distance to anything" in warned(call, UserWarning)


def test_half_precision_solves():
    overflowed(lambda: cusink.sinkhorn(*FAR, cusink.Grid(300), eps=100.0))
    overflowed(lambda: cusink.sinkhorn(FAR, FAR[::-1], cusink.Grid(300), eps=100.0))
    overflowed(lambda: cusink.distance_matrix(FAR, FAR[::-1], cusink.Grid(300), eps=100.0))
    overflowed(lambda: cusink.distance_matrix(FAR, None, cusink.Grid(300), full_output=True, eps=100.0))
    for prune in (False, True):
        overflowed(lambda prune=prune: cusink.nearest(FAR, None, cusink.Grid(300), k=1, prune=prune, eps=100.0))
    overflowed(lambda: cusink.sinkhorn_divergence(*FAR, cusink.Grid(300), eps=100.0))


def test_half_precision_results():
    with pytest.warns(RuntimeWarning):
        result = cusink.sinkhorn(*FAR, CLOUD, eps=100.0)
    overflowed(lambda: result.bounds())
    overflowed(lambda: cusink.sinkhorn_adjoint(result, grad_cost=np.float16(60000)))
    points, heavy = np.array([[[0.0]], [[0.1]]], np.float16), np.full(1, 10, np.float16)
    result = cusink.sinkhorn(heavy, heavy, cusink.PointCloud(*points), eps=1.0)
    gradients = cusink.sinkhorn_adjoint(result, grad_reg_cost=np.float16(60000))
    overflowed(lambda: gradients.x)


def test_half_precision_costs():
    overflowed(lambda: CLOUD.dense())
    overflowed(lambda: cusink.cost_matrix(LINE))
    overflowed(lambda: cusink.cost_matrix_adjoint(LINE, LINE, np.full((300, 300), 10, np.float16)))


def test_half_precision_kernel_sums():
    x, y = np.array([0.0, 1.0], np.float16), np.array([200.0, 300.0], np.float16)
    many = np.full(2, 60000, np.float16)
    overflowed(lambda: cusink.kernel_product(x, x, many))
    overflowed(lambda: cusink.kernel_product_log(x, y, None, scale=0.5))
    overflowed(lambda: cusink.kernel_product_adjoint(x, x, many, many))
    overflowed(lambda: cusink.kernel_scalar_product(x, many, x, many))
    overflowed(lambda: cusink.kernel_distance(x, many, y, None, field_at=x))
    overflowed(lambda: cusink.kernel_distance_adjoint(x, many, y, None, grad=100.0))
    overflowed(lambda: cusink.kernel_neg_log_likelihood(x, None, y, None, scale=0.5, field_at=y))
    overflowed(lambda: cusink.kernel_neg_log_likelihood_adjoint(x, None, y, None, grad=10.0, scale=0.5))


def test_a_second_call_warns_again():
    for _ in range(2):
        overflowed(lambda: CLOUD.dense())


def test_the_pytorch_bridge():
    torch = pytest.importorskip("torch")
    from cusink.torch import SinkhornLoss, sinkhorn_loss

    a, b, cost = (torch.tensor(x) for x in (A, B, C))
    for call in (
        lambda: sinkhorn_loss(a, b, cost, 1e-3, max_iter=2),
        lambda: SinkhornLoss(cost, 1e-3, max_iter=2)(a, b),
    ):
        assert "did not reach tol" in warned(call, cusink.ConvergenceWarning)
    with pytest.warns(cusink.ConvergenceWarning):
        loss = sinkhorn_loss(a.requires_grad_(), b, cost, 1e-3, max_iter=2)
    assert "had not converged" in warned(lambda: loss.backward(), cusink.ConvergenceWarning)


def test_the_jax_bridge():
    jax = pytest.importorskip("jax")
    from cusink.jax import sinkhorn_loss

    a, b, cost = (jax.numpy.asarray(x) for x in (A, B, C))
    message = warned(lambda: sinkhorn_loss(a, b, cost, 1e-3, max_iter=2), cusink.ConvergenceWarning)
    assert "did not reach tol" in message
