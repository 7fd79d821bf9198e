"""Forbidden pairs, as a large number or as +inf: the plan, the values and the gradients of the pairs that are left."""

import functools

import numpy as np
import pytest
import reference
from scipy.sparse import csr_array
from truth.claims import assert_claims_hold, assert_values, attempt, gradient, of_one_mass, unbalanced

import cusink

INF = np.inf
METHODS = ["auto", "log", "scaling"]
LAYOUTS = ["single", "shared cost", "a cost each"]
WEIGHTS = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])
# (dtype, number): from 1e8 and 1e16 on the digits of the dtype do not reach from the number to the other costs.
NUMBERS = [("float32", big) for big in (1e6, 1e8, 1e9, 1e12)] + [("float64", big) for big in (1e9, 1e16, 1e18)]
# No eps of this kind is reasonable beside such numbers: to be solved, or to be flagged.
HUGE = [("float32", 1e20), ("float32", 1e30), ("float64", 1e30), ("float64", 1e100), ("float64", 1e300)]


def cost(big):
    return np.array([[0.2, 0.5, big], [0.7, 0.1, 0.4], [big, 0.6, 0.3]])


def diagonal(big):
    return np.array([[0.3, big], [big, 1.7]])


@functools.cache
def right(eps=0.05):
    return reference.optimum(*WEIGHTS, cost(np.inf), eps)._asdict()


def arranged(layout, dtype, a, b, C):
    """Return one problem as a single one, or as the second of a batch."""
    a, b, C = (np.asarray(x, dtype) for x in (a, b, C))
    if layout == "single":
        return a, b, C
    a, b = np.stack([a[::-1], a, a[::-1]]), np.stack([b[::-1], b, b[::-1]])
    return (a, b, C) if layout == "shared cost" else (a, b, np.stack([C[::-1, ::-1], C, C[::-1, ::-1]]))


def solve(layout, dtype, a, b, C, eps, **options):
    """Return the outcome; all claims of the result hold. The second problem of a batch is the given one."""
    given = arranged(layout, dtype, a, b, C)
    outcome = attempt(cusink.sinkhorn, *given, eps=eps, **options)
    assert outcome.refused is None, repr(outcome.refused)
    assert_claims_hold(outcome.result, *given, eps, flags=outcome.flags)
    return outcome


def of(outcome, layout, name):
    value = np.asarray(getattr(outcome.result, name), np.float64)
    return value if layout == "single" else value[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "big"), NUMBERS)
def test_a_large_number_forbids(dtype, big, method, layout):
    outcome = solve(layout, dtype, *WEIGHTS, cost(big), 0.05, method=method)
    if of(outcome, layout, "converged"):
        rtol = 2e-6 if dtype == "float64" else 5e-6
        for name, value in right().items():
            np.testing.assert_allclose(of(outcome, layout, name), value, rtol=rtol, err_msg=name)
    else:  # the form may not reach so far; log-sum-exp does
        assert method == "scaling"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "big"), HUGE)
def test_a_huge_number_forbids_or_is_flagged(dtype, big, method):
    outcome = solve("single", dtype, *WEIGHTS, cost(big), 0.05, method=method)
    assert_values(outcome, 5e-6, may_flag=method == "scaling", **right())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "big"), [("float32", 1e8), ("float32", 1e10), ("float64", 1e14), ("float64", 1e16), ("float64", 1e20)]
)
def test_a_large_number_off_the_diagonal_forbids(dtype, big, method, layout):
    a = np.array([0.4, 0.6])
    outcome = solve(layout, dtype, a, a, diagonal(big), 1.0, method=method)
    if method != "scaling":
        assert of(outcome, layout, "converged")
    if of(outcome, layout, "converged"):
        value = 1.14 - 0.4 * np.log(0.4) - 0.6 * np.log(0.6)
        np.testing.assert_allclose(of(outcome, layout, "cost"), 1.14, rtol=1e-6)
        np.testing.assert_allclose(of(outcome, layout, "reg_cost"), value, rtol=1e-6)
        plan = outcome.result.plan() if layout == "single" else outcome.result.plan()[1]
        np.testing.assert_allclose(plan, np.diag(a), atol=1e-6)


@pytest.mark.parametrize("reach", [1.0, (0.5, None), (None, 0.5)])
@pytest.mark.parametrize(("dtype", "big"), [("float32", 1e9), ("float64", 1e16), ("float64", np.inf)])
def test_a_large_number_forbids_with_reach(dtype, big, reach):
    a, b, C = (np.asarray(x, dtype) for x in (*WEIGHTS, cost(big)))
    prices = tuple(np.inf if rho is None else rho for rho in (reach if isinstance(reach, tuple) else (reach, reach)))
    outcome = attempt(cusink.sinkhorn, a, b, C, eps=0.05, reach=reach)
    assert_claims_hold(outcome.result, a, b, C, 0.05, reach=prices, flags=outcome.flags)
    plan, value = unbalanced(a, b, cost(np.inf), 0.05, prices)
    want = reference.transport_cost(plan, cost(np.inf))
    assert_values(outcome, 1e-5, cost=want, reg_cost=value)


@pytest.mark.parametrize("value", ["reg_cost", "cost"])
@pytest.mark.parametrize(("dtype", "big"), [("float32", 1e8), ("float32", 1e9), ("float64", 1e16), ("float64", np.inf)])
def test_gradients_beside_a_large_number(dtype, big, value):
    a, b, C = (np.asarray(x, dtype) for x in (*WEIGHTS, cost(big)))
    grads = cusink.sinkhorn_adjoint(cusink.sinkhorn(a, b, C, eps=0.05, tol=1e-7), **{f"grad_{value}": 1.0})
    exact = cost(np.inf)
    for name, side in (("a", 0), ("b", 1)):

        def moved(w, side=side):
            weights = [w, WEIGHTS[1]] if side == 0 else [WEIGHTS[0], w]
            return getattr(reference.optimum(*weights, exact, 0.05), value)

        np.testing.assert_allclose(getattr(grads, name), gradient(moved, WEIGHTS[side]), atol=1e-4, err_msg=name)
    slope = reference.derivative(lambda t: getattr(reference.optimum(*WEIGHTS, exact, 0.05 + t), value), 1e-3)
    np.testing.assert_allclose(grads.eps, slope, rtol=1e-4)
    if value == "reg_cost":
        solution = reference.solve(*WEIGHTS, exact, 0.05)
        plan = reference.plan(*WEIGHTS, exact, 0.05, solution.f, solution.g)
        np.testing.assert_allclose(grads.C, plan, atol=1e-5)


def test_the_gradient_of_the_report():
    """It is [0.3, -0.1, -0.2] to one digit; the default tolerance of float32 gives three."""
    a, b, C = (np.asarray(x, np.float32) for x in (*WEIGHTS, cost(1e9)))
    grads = cusink.sinkhorn_adjoint(cusink.sinkhorn(a, b, C, eps=0.05), grad_reg_cost=1.0)
    want = gradient(lambda w: reference.optimum(w, WEIGHTS[1], cost(INF), 0.05).reg_cost, WEIGHTS[0])
    np.testing.assert_allclose(grads.a, want, atol=1e-3)
    np.testing.assert_array_equal(np.round(want, 1), [0.3, -0.1, -0.2])


ROWS = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.4, 0.3], [0.25, 0.5, 0.25], [0.45, 0.3, 0.25]])


@functools.cache
def right_matrix(value):
    return np.array([[getattr(reference.optimum(p, q, cost(np.inf), 0.05), value) for q in ROWS] for p in ROWS])


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("value", ["cost", "reg_cost", "entropic_cost"])
@pytest.mark.parametrize(("dtype", "big"), [("float32", 1e9), ("float64", 1e16), ("float64", np.inf)])
def test_matrices_and_neighbours(dtype, big, value, documents):
    A, C = ROWS.astype(dtype), cost(big).astype(dtype)
    items = csr_array(A) if documents else A
    D = attempt(cusink.distance_matrix, items, items, C, eps=0.05, value=value)
    assert D.refused is None and not D.flags
    np.testing.assert_allclose(D.result, right_matrix(value), rtol=1e-5)
    distances, indices = attempt(cusink.nearest, items, items, C, k=5, eps=0.05, value=value).result
    np.testing.assert_allclose(distances, np.sort(right_matrix(value), axis=1), rtol=1e-5)
    np.testing.assert_array_equal(indices, np.argsort(right_matrix(value), axis=1))


# Costs of +inf and bins that are empty on both sides.

HALF = np.array([[0.5, 0.8, 0.5], [INF, 0.9, 0.3]])
EMPTY = [
    # a, b, C, the only plan that is feasible gives the cost, or an eps at which it is as good as exact
    ([0, 1], [0, 0.4, 0.6], HALF, 0.54),
    ([1.0], [0.0, 1.0], [[INF, 0.0]], 0.0),
    ([0.0, 1.0], [1.0], [[INF], [0.25]], 0.25),
    ([0.0, 1.0], [0.0, 1.0], [[INF, INF], [INF, 2.0]], 2.0),
]


@pytest.mark.parametrize("eps", [1.0, 0.01, 5e-4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_infinite_costs_and_empty_bins(dtype, method, layout, eps):
    for a, b, C, value in EMPTY:
        given = [np.asarray(x, dtype) for x in (a, b, C)]
        if layout != "single":
            a2, b2, C2 = given
            given = [np.stack([a2, a2]), np.stack([b2, b2]), C2 if layout == "shared cost" else np.stack([C2, C2])]
        outcome = attempt(cusink.sinkhorn, *given, eps=eps, method=method)
        may_flag = method == "scaling"
        assert_values(outcome, 1e-6, cost=value, may_flag=may_flag)
        assert_claims_hold(outcome.result, *given, eps, flags=outcome.flags, exact=value)
        again = attempt(cusink.sinkhorn, *given, eps=eps, method=method, init=(outcome.result.f, outcome.result.g))
        assert again.refused is None, repr(again.refused)
        assert_values(again, 1e-6, cost=value, may_flag=may_flag)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_that_is_forbidden_and_empty(dtype, method):
    a, b, C = (np.asarray(x, dtype) for x in ([0.9, 0.1, 0.0], [0.3, 0.7], [[0, 1.0], [0.5, 0], [INF, INF]]))
    outcome = attempt(cusink.sinkhorn, a, b, C, eps=1e-4, method=method)
    assert_values(outcome, 1e-6, cost=0.6, may_flag=method == "scaling")
    assert_claims_hold(outcome.result, a, b, C, 1e-4, flags=outcome.flags, exact=0.6)
    again = attempt(cusink.sinkhorn, a, b, C, eps=1e-4, method=method, init=(outcome.result.f, outcome.result.g))
    assert again.refused is None, repr(again.refused)


def test_a_lost_problem_takes_no_other_with_it():
    a, b = np.array([[0, 1.0], [0.4, 0.6], [0, 1.0]]), np.array([[0, 0.4, 0.6], [0.2, 0.3, 0.5], [0, 0.4, 0.6]])
    for method in METHODS:
        outcome = attempt(cusink.sinkhorn, a, b, np.stack([HALF] * 3), eps=0.01, method=method)
        middle = reference.optimum(a[1], b[1], HALF, 0.01).cost
        assert_values(outcome, 1e-5, cost=[0.54, middle, 0.54])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_infinite_costs_with_reach(dtype):
    a, b, C = (np.asarray(x, dtype) for x in ([0, 1], [0, 0.4, 0.6], HALF))
    outcome = attempt(cusink.sinkhorn, a, b, C, eps=0.1, reach=5.0)
    assert_claims_hold(outcome.result, a, b, C, 0.1, reach=(5.0, 5.0), flags=outcome.flags)
    plan, value = unbalanced(a, b, HALF, 0.1, (5.0, 5.0))
    assert_values(outcome, 1e-5, cost=reference.transport_cost(plan, HALF), reg_cost=value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_with_reach_a_bin_without_a_partner_keeps_its_mass(dtype):
    a, b = np.array([0.3, 0.5, 0.2]), np.array([0.3, 0.3, 0.4])
    C = np.array([[0.1, INF, 0.4], [0.6, INF, 0.2], [INF, INF, INF]])
    given = [np.asarray(x, dtype) for x in (a, b, C)]
    outcome = attempt(cusink.sinkhorn, *given, eps=0.05, reach=1.0)
    assert outcome.refused is None, repr(outcome.refused)
    plan, value = unbalanced(a, b, C, 0.05, (1.0, 1.0))
    np.testing.assert_allclose(outcome.result.plan(), plan, atol=1e-5)
    assert_values(outcome, 1e-5, cost=reference.transport_cost(plan, C), reg_cost=value)


STRANDED = np.array([0.3, 0.5, 0.2]), np.array([0.3, 0.3, 0.4])
STRANDED_COST = np.array([[0.1, INF, 0.4], [0.6, INF, 0.2], [INF, INF, INF]])


@functools.cache
def without_entropy(eps=1e-3):
    """Return the objective of the bins that have a partner, and the price of what stays behind, to about eps."""
    plan, objective = unbalanced(*STRANDED, STRANDED_COST, eps, (1.0, 0.7))
    return objective - eps * (reference.kl_to_product(plan, *STRANDED) - plan.sum() + 1)


@pytest.mark.parametrize("eps", [0.5, 0.02])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", ["auto", "log"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bins_without_a_partner_in_any_layout(dtype, method, layout, eps):
    given = arranged(layout, dtype, *STRANDED, STRANDED_COST)
    outcome = attempt(cusink.sinkhorn, *given, eps=eps, reach=(1.0, 0.7), method=method)
    result = outcome.result
    assert np.asarray(result.converged).all(), outcome.flags
    plan, value = unbalanced(*STRANDED, STRANDED_COST, eps, (1.0, 0.7))
    cost = reference.transport_cost(plan, STRANDED_COST)
    np.testing.assert_allclose(of(outcome, layout, "cost"), cost, rtol=2e-5)
    np.testing.assert_allclose(of(outcome, layout, "reg_cost"), value, rtol=1e-5)
    np.testing.assert_allclose(
        of(outcome, layout, "entropic_cost"), cost - eps * reference.entropy(plan), rtol=1e-4, atol=1e-6
    )
    for axis, v in ((1, np.ones(3, dtype)), (0, np.arange(3, dtype=dtype))):
        applied = np.asarray(result.apply(v, axis=axis), float)
        np.testing.assert_allclose(
            applied if layout == "single" else applied[1], plan @ v if axis else v @ plan, atol=1e-5
        )
    low, high = (np.asarray(x, float) if layout == "single" else x[1] for x in result.bounds())
    assert low <= high < INF
    sharp = without_entropy()
    assert low - 1e-5 <= sharp <= high + 1e-3
    again = attempt(cusink.sinkhorn, *given, eps=eps, reach=(1.0, 0.7), method=method, init=(result.f, result.g))
    np.testing.assert_allclose(of(again, layout, "reg_cost"), value, rtol=1e-5)


@pytest.mark.parametrize("name", ["cost", "reg_cost"])
def test_gradients_of_bins_without_a_partner(name):
    prices, eps = (1.0, 0.7), 0.05
    result = cusink.sinkhorn(*STRANDED, STRANDED_COST, eps=eps, reach=prices, tol=1e-12)
    grads = cusink.sinkhorn_adjoint(result, **{f"grad_{name}": 1.0})

    def value(a, b, eps):
        plan, objective = unbalanced(a, b, STRANDED_COST, eps, prices)
        return objective if name == "reg_cost" else reference.transport_cost(plan, STRANDED_COST)

    for i in range(3):
        bit = np.eye(3)[i]
        by_a = reference.derivative(lambda t, d=bit: value(STRANDED[0] + t * d, STRANDED[1], eps), 1e-3)
        by_b = reference.derivative(lambda t, d=bit: value(STRANDED[0], STRANDED[1] + t * d, eps), 1e-3)
        np.testing.assert_allclose([grads.a[i], grads.b[i]], [by_a, by_b], rtol=1e-5, atol=1e-7)
    by_eps = reference.derivative(lambda t: value(*STRANDED, eps + t), 1e-3)
    np.testing.assert_allclose(grads.eps, by_eps, rtol=1e-5)
    assert np.isfinite(grads.C).all()


def test_a_divergence_with_bins_without_a_partner():
    a, b = STRANDED
    own = 1 - np.eye(3)
    found = attempt(
        cusink.sinkhorn_divergence, a, b, STRANDED_COST, eps=0.1, reach=1.0, C_aa=own, C_bb=own, tol=1e-10
    ).result
    parts = [(a, b, STRANDED_COST, 1.0), (a, a, own, -0.5), (b, b, own, -0.5)]
    want = sum(sign * unbalanced(p, q, K, 0.1, (1.0, 1.0))[1] for p, q, K, sign in parts)
    np.testing.assert_allclose(found.divergence, want, rtol=1e-8)
    grads = cusink.sinkhorn_divergence_adjoint(found)
    assert all(np.isfinite(x).all() for x in (grads.a, grads.b, grads.eps, grads.C, found.f, found.g))


def test_nothing_to_transport_is_refused():
    refused = attempt(cusink.sinkhorn, [1.0, 0.0], [0.5, 0.5], [[INF, INF], [0.0, 1.0]], eps=0.1, reach=1.0).refused
    assert "a pair of bins" in str(refused)
    lone = attempt(cusink.sinkhorn, *STRANDED, STRANDED_COST, eps=0.1, reach=(None, 1.0)).refused
    assert "row 2" in str(lone)  # a marginal that is to be met, of a bin that may send nothing


def test_islands_of_unequal_mass_are_called_infeasible():
    C = np.array([[0.1, 0.2, INF], [0.3, 0.1, INF], [INF, INF, 0.2]])
    outcome = attempt(cusink.sinkhorn, np.array([0.3, 0.3, 0.4]), np.array([0.4, 0.4, 0.2]), C, eps=0.1)
    said = str(outcome.refused) if outcome.refused else " ".join(outcome.flags)
    assert said and "Raise 'max_iter'" not in said
    assert outcome.refused or not outcome.result.converged


@pytest.mark.parametrize("options", [{}, {"reach": 5.0}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_divergence_with_infinite_costs(dtype, options):
    a, b, C = (np.asarray(x, dtype) for x in ([0, 1], [0, 0.4, 0.6], HALF))
    own = {"C_aa": np.asarray([[0, 0.3], [0.3, 0]], dtype), "C_bb": np.asarray(1 - np.eye(3), dtype)}
    outcome = attempt(cusink.sinkhorn_divergence, a, b, C, eps=0.1, **own, **options)
    assert np.isfinite(outcome.result.divergence)
    assert np.isfinite(outcome.result.f).all() and np.isfinite(outcome.result.g).all()
    if not options:
        a, b = of_one_mass(a, b)
        parts = [(a, b, HALF, 1.0), (a, a, own["C_aa"], -0.5), (b, b, own["C_bb"], -0.5)]
        want = sum(
            sign * reference.optimum(p[p > 0], q[q > 0], np.asarray(K)[np.ix_(p > 0, q > 0)], 0.1).reg_cost
            for p, q, K, sign in parts  # the oracle knows no bins that nothing can reach
        )
        np.testing.assert_allclose(outcome.result.divergence, want, rtol=1e-5)


# Exponents that leave the range of the dtype.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "a", "b", "C", "eps", "value"),
    [
        ("float64", [2.4e-200, 1.0, 1.2e-222], [1.0], [[3.0], [-2.0], [-3.0]], 1e-4, -2.0),
        ("float32", [1e9], [0.25e9, 0.75e9], [[0, -3.0]], 0.02, -2.25e9),
        ("float32", [1e-9], [0.25e-9, 0.75e-9], [[0, -3.0]], 0.02, -2.25e-9),
        ("float64", [1.0], [0.25, 0.75], [[0, -3.0]], 1e-6, -2.25),
    ],
)
def test_exponents_out_of_range(dtype, a, b, C, eps, value, method):
    given = [np.asarray(x, dtype) for x in (a, b, C)]
    outcome = attempt(cusink.sinkhorn, *given, eps=eps, method=method, tol=1e-6)
    assert_claims_hold(outcome.result, *given, eps, tol=1e-6, flags=outcome.flags)
    assert_values(outcome, 2e-6, cost=value, may_flag=method == "scaling")
