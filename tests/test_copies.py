"""Every public result comes back from a pickle and from a deep copy, and answers as it did."""

import copy
import pickle

import numpy as np
import pytest

import cusink

rng = np.random.default_rng(5)
X, Y = rng.random((5, 2)), rng.random((6, 2))
A, B = rng.dirichlet(np.ones(5), 3), rng.dirichlet(np.ones(6), 3)
C = ((X[:, None] - Y) ** 2).sum(axis=-1)
ONE = np.ones(3)
FIRST, SECOND = (cusink.Measures.of([rng.random((size, 2)) for size in (k, k + 2, k + 1)]) for k in (3, 4))
FIRST, SECOND = FIRST.normalised(), SECOND.normalised()


def solved(cost=C, **options):
    return cusink.sinkhorn(A, B, cost, eps=0.2, tol=1e-8, **options)


def pairs(**options):
    return cusink.sinkhorn(FIRST, SECOND, "sqeuclidean", eps=0.2, **options)


def divergences(**options):
    return cusink.sinkhorn_divergence(FIRST, SECOND, "sqeuclidean", eps=0.2, **options)


def free(**options):
    return cusink.free_barycenter(FIRST, x=X, eps=0.2, **options)


def of_gradients(grads):
    return [grads.a, grads.b, grads.eps, grads.x, grads.y]


def of_result(result):
    return [result.plan(), *result.bounds(), *of_gradients(cusink.sinkhorn_adjoint(result, grad_cost=ONE))]


def of_pairs(result):
    return [*of_gradients(cusink.sinkhorn_adjoint(result, grad_cost=ONE)), result[1].plan(), result.cost]


def of_divergences(result):
    return [*of_gradients(cusink.sinkhorn_divergence_adjoint(result)), result.divergence, result[1].f_self]


def of_free(result):
    grads = cusink.free_barycenter_adjoint(result, grad_points=np.ones_like(X))
    return [result.points, grads.y, grads.weights]


def of_map(axis, result):
    values, shape = (Y, X.shape) if axis == 1 else (X, Y.shape)
    return cusink.barycentric_map_adjoint(result, values, np.ones((3, *shape)), axis=axis)


CLOUD = cusink.PointCloud(X, Y)
CASES = {
    "a result": (lambda: solved(), of_result),
    "a result of a cloud": (lambda: solved(CLOUD), of_result),
    "a result with reach": (lambda: solved(reach=0.5), of_result),
    "pairs": (pairs, of_pairs),
    "pairs in the log domain": (lambda: pairs(method="log"), of_pairs),
    "pairs with reach": (lambda: pairs(reach=0.5), of_pairs),
    "gradients of pairs": (lambda: cusink.sinkhorn_adjoint(pairs(), grad_cost=ONE), of_gradients),
    "divergences of pairs": (divergences, of_divergences),
    "divergences of pairs with reach": (lambda: divergences(reach=0.5), of_divergences),
    "gradients of divergences": (lambda: cusink.sinkhorn_divergence_adjoint(divergences()), of_gradients),
    "a free barycenter": (free, of_free),
    "a debiased free barycenter": (lambda: free(debiased=True), of_free),
    "gradients of plans": (lambda: cusink.sinkhorn_adjoint(solved(CLOUD), grad_plan=C + 0 * ONE[:, None, None]), None),
    "gradients of thin plans": (lambda: cusink.sinkhorn_adjoint(solved(CLOUD), grad_plan=(X, Y)), None),
    "gradients of entropic costs": (
        lambda: cusink.sinkhorn_adjoint(solved(CLOUD, reach=0.5), grad_entropic_cost=ONE),
        None,
    ),
    "gradients of maps": (lambda: of_map(1, solved(CLOUD)), None),
    "gradients of maps of columns": (lambda: of_map(0, solved(CLOUD, reach=0.5)), None),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_result_answers_after_a_pickle_as_before(name, again):
    make, answers = CASES[name]
    answers = answers or of_gradients
    copied = again(make())  # before anything of it is read
    for one, other in zip(answers(copied), answers(make()), strict=True):
        np.testing.assert_array_equal(one, other)
