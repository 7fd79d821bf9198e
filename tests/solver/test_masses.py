"""Masses at the ends of the range: values that are numbers are right, and others are refused before any work."""

import numpy as np
import pytest

import cusink

C = np.array([[0.0, 1.0], [1.0, 0.0]])
WIDE = np.longdouble


def unbalanced(a, b, eps, rho, iterations=600):
    """Return <P, C> and the regularised cost by alternating updates in extended precision, whose range is wider."""
    a, b, costs, eps, rho = (np.asarray(x).astype(WIDE) for x in (a, b, C, eps, rho))
    f = g = np.zeros(2, WIDE)
    share = rho * eps / (rho + eps)
    for _ in range(iterations):
        f = -share * np.logaddexp.reduce(np.log(b) + (g - costs) / eps, axis=1)
        g = -share * np.logaddexp.reduce(np.log(a) + (f - costs.T) / eps, axis=1)
    plan = np.exp(np.log(a)[:, None] + np.log(b) + (f[:, None] + g - costs) / eps)
    dual = rho * (a @ -np.expm1(-f / rho) + b @ -np.expm1(-g / rho))
    return float((plan * costs).sum()), float(dual + eps * (a.sum() * b.sum() - plan.sum()))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("dtype", "first", "second"),
    [
        ("float64", 1e160, 1e-160),
        ("float64", 1e-160, 1e160),
        ("float64", 1e-300, 1e300),
        ("float64", 1e154, 1e153),
        ("float32", 1e30, 1e-30),
        ("float32", 1e18, 1e18),
    ],
)
def test_unequal_masses_have_values_at_the_ends_of_the_range(dtype, first, second):
    a, b = np.array([first, first], dtype), np.array([second, second * 3], dtype)
    result = cusink.sinkhorn(a, b, C.astype(dtype), eps=0.1, reach=1.0, tol=1e-6)
    cost, reg_cost = unbalanced(a, b, 0.1, 1.0)
    assert result.converged
    np.testing.assert_allclose([result.cost, result.reg_cost], [cost, reg_cost], rtol=1e-5)


@pytest.mark.parametrize("mass", [1e-100, 1e-150, 1e-200])
def test_a_batch_that_moves_next_to_no_mass_has_its_cost(mass):
    a, b = np.array([0.3, 0.4]), np.array([1.0, 3.0]) * mass
    result = cusink.sinkhorn(np.tile(a, (40, 1)), np.tile(b, (40, 1)), C, eps=0.1, reach=1.0, tol=1e-9)
    np.testing.assert_allclose(result.cost, unbalanced(a, b, 0.1, 1.0)[0], rtol=1e-8)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("function", [cusink.sinkhorn, cusink.sinkhorn_divergence])
@pytest.mark.parametrize(("dtype", "first", "second"), [("float64", 1e160, 1e160), ("float32", 2e20, 4e20)])
def test_a_product_of_masses_out_of_the_range_is_refused(function, dtype, first, second):
    a, b = np.array([first, first], dtype), np.array([second, second], dtype)
    with pytest.raises(ValueError, match="'eps' times their product.*a number of float.*Divide both by one number"):
        function(a, b, C.astype(dtype), eps=0.1, reach=1.0)
    # A smaller eps makes numbers of them.
    if dtype == "float32":
        assert np.isfinite(cusink.sinkhorn(a, b, C.astype(dtype), eps=1e-3, reach=1.0, max_iter=5, tol=None).reg_cost)


@pytest.mark.filterwarnings("error")
def test_products_of_masses_of_a_divergence_with_themselves_count():
    a, b = np.full(2, 1e170), np.full(2, 1e100)
    assert np.isfinite(cusink.sinkhorn(a, b, C, eps=0.1, reach=1.0).reg_cost)
    with pytest.raises(ValueError, match="'eps' times their product"):
        cusink.sinkhorn_divergence(a, b, C, eps=0.1, reach=1.0)


@pytest.mark.filterwarnings("error")
def test_a_balanced_mass_whose_entropy_is_no_number_is_refused():
    a = np.full(2, 1e307)
    with pytest.raises(ValueError, match=r"sum \* \|log\(sum\)\|.*got 2e\+307 and 2e\+307 in row 0"):
        cusink.sinkhorn(a, a, C, eps=0.1)
    one = cusink.sinkhorn(a / 1e303, a / 1e303, C, eps=0.1)
    many = cusink.sinkhorn(a / 1e10, a / 1e10, C, eps=0.1)
    np.testing.assert_allclose(many.cost / 1e293, one.cost, rtol=1e-9)
    # eps sum P log P of P times s has s times that, and eps s log s times its sum.
    sum_one, scale = 2e4, 1e293
    expected = one.entropic_cost + 0.1 * np.log(scale) * sum_one
    np.testing.assert_allclose(many.entropic_cost / scale, expected, rtol=1e-9)
