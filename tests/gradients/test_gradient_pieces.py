"""Pieces of the gradients: what is checked, the linear system over dense means, prices, and batches beside problems."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

import cusink
from cusink.costs.means import Means
from cusink.gradients import balanced, checks, first_bits, pairs, parts, prices, system, terms
from cusink.gradients.parts import Cotangents, Directions
from cusink.gradients.system import Bins, LinearSolve, ReducedSystem, solve_marginal_systems

rng = np.random.default_rng(6)
pytestmark = pytest.mark.filterwarnings("ignore::cusink.ConvergenceWarning")  # tolerances are those of rounding


# ---- arguments -----------------------------------------------------------------------------------------------------


def result(size=None, n=4, m=3, **given):
    shape = () if size is None else (size,)
    a, b = rng.dirichlet(np.ones(n), shape), rng.dirichlet(np.ones(m), shape)
    return cusink.sinkhorn(a, b, rng.random((n, m)), **{"eps": 0.5, "tol": 1e-9} | given)


def cotangents(solved, more=None, **given):
    named = {
        "grad_cost": None,
        "grad_reg_cost": None,
        "grad_entropic_cost": None,
        "grad_f": None,
        "grad_g": None,
    } | given
    potentials = {name: named.pop(name) for name in ("grad_f", "grad_g")}
    return checks.cotangents(solved.problem, solved.f, named, potentials, more)


def test_cotangents_have_a_batch_axis_and_zeros_for_one_of_both_potentials():
    single, batch = result(), result(2)
    found = cotangents(single, grad_cost=2, grad_f=np.arange(4.0))
    assert found.cost.tolist() == [2.0] and found.reg_cost is None is found.entropic_cost
    assert found.f.tolist() == [[0, 1, 2, 3]] and found.g.tolist() == [[0, 0, 0]]
    found = cotangents(single, grad_g=np.arange(3.0))
    assert found.cost is None and not found.f.any() and found.f.shape == (1, 4) and found.g.tolist() == [[0, 1, 2]]
    found = cotangents(batch, grad_cost=np.array([1.0, 2]), grad_reg_cost=0.5, grad_entropic_cost=np.array([3.0, 4]))
    assert found.cost.tolist() == [1, 2] and found.reg_cost.tolist() == [0.5, 0.5] and found.f is None is found.g
    assert found.entropic_cost.tolist() == [3, 4]
    assert cotangents(batch, more={"grad_plan": 1}) == Cotangents()
    for more in (None, {"grad_plan": None}):
        with pytest.raises(ValueError, match="at least one of 'grad_cost', .*must be given; got none"):
            cotangents(batch, more)
    for given, wanted in (
        ({"grad_cost": np.ones(1)}, r"'grad_cost' must have shape \(2,\)"),
        ({"grad_cost": np.ones(())}, r"'grad_cost' must have shape \(2,\)"),
        ({"grad_f": np.ones(4)}, r"'grad_f' must have shape \(2, 4\)"),
        ({"grad_g": np.ones((2, 4))}, r"'grad_g' must have shape \(2, 3\)"),
        ({"grad_cost": math.inf}, "'grad_cost' must be finite"),
    ):
        with pytest.raises(ValueError, match=wanted):
            cotangents(batch, **given)
    given = np.ones(2)
    assert not np.may_share_memory(cotangents(batch, grad_cost=given).cost, given)


def test_cotangents_of_images():
    image = np.full((2, 2), 0.25)
    solved = cusink.sinkhorn(image, image, cusink.Grid((2, 2)), eps=0.5)
    assert cotangents(solved, grad_f=np.ones((2, 2))).f.shape == (1, 4)
    flat = cusink.sinkhorn(image.ravel(), image, cusink.Grid((2, 2)), eps=0.5)
    assert cotangents(flat, grad_g=np.ones((2, 2))).g.shape == (1, 4)
    with pytest.raises(ValueError, match="'grad_f' must have shape"):
        cotangents(flat, grad_f=np.ones((2, 2)))
    along = checks.directions(solved.problem, solved.f, {"da": np.ones((2, 2)), "db": None, "deps": None}, {})
    assert along.a.shape == (1, 4) and along.b is None


def test_options_of_the_linear_system():
    assert checks.linear_solve(1e-3, 7) == (1e-3, 7) and checks.linear_solve(5.0, 1) == (1.0, 1)
    with pytest.raises(TypeError, match="'tol' must be a number; got None"):
        checks.linear_solve(None, 7)
    checks.instance("x", 1, int, "int")
    with pytest.raises(TypeError, match="'x' must be what int returned, a float; got int"):
        checks.instance("x", 1, float, "int")
    found = checks.cotangent("x", np.ones(3), (3,), "it", np.ones(1))
    assert found.dtype == np.float64 and found.tolist() == [1, 1, 1]
    with pytest.raises(TypeError, match=r"'x' must be an array of shape \(3,\); got None"):
        checks.cotangent("x", None, (3,), "it", np.ones(1))
    with pytest.raises(ValueError, match=r"'x' must have shape \(3,\) to match it; got \(4,\)"):
        checks.cotangent("x", np.ones(4), (3,), "it", np.ones(1))
    with pytest.raises(ValueError, match="'x' must be finite"):
        checks.cotangent("x", np.full(3, np.nan), (3,), "it", np.ones(1))


def along(solved, **given):
    inputs = {"da": None, "db": None, "deps": None}
    inputs, costs = (
        inputs | {k: v for k, v in given.items() if k in inputs},
        {"dC": given.get("dC"), "dx": None, "dy": None},
    )
    return checks.directions(solved.problem, solved.f, inputs, costs)


def test_directions_are_of_one_problem_or_of_all():
    single, batch = result(), result(2)
    found = along(single, da=np.arange(4.0), deps=0.5)
    assert found.a.tolist() == [[0, 1, 2, 3]] and found.eps.tolist() == [0.5] and found.b is None is found.cost
    found = along(single, deps=np.array(0.25))
    assert found.eps.tolist() == [0.25]
    found = along(batch, da=np.arange(4.0), db=np.ones((2, 3)), deps=2)
    assert found.a.tolist() == [[0, 1, 2, 3]] * 2 and found.b.shape == (2, 3) and found.eps.tolist() == [2, 2]
    assert along(batch, deps=np.array([1.0, 2.0])).eps.tolist() == [1, 2]
    assert along(batch, dC=np.ones((4, 3))).cost is not None
    for solved, given, wanted in (
        (single, {"da": np.ones((1, 4))}, r"'da' must have shape \(4,\)"),
        (batch, {"da": np.ones((3, 4))}, r"'da' must have shape \(2, 4\)"),
        (batch, {"db": np.ones(4)}, r"'db' must have shape \(2, 3\)"),
        (batch, {"deps": np.ones(3)}, r"'deps' must have shape \(2,\)"),
        (single, {"deps": np.ones(1)}, r"'deps' must have shape \(\)"),
        (single, {"deps": math.inf}, "'deps' must be finite"),
        (single, {}, "at least one of 'da', 'db', 'deps', 'dC', 'dx', 'dy' must be given"),
    ):
        with pytest.raises(ValueError, match=wanted):
            along(solved, **given)


def test_blocks_of_a_gradient_by_the_plan():
    single, batch = result(), result(2)
    M, U, V = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 2)), rng.normal(size=(2, 3, 2))
    assert checks.plan_cotangent(single.problem, single.f, None) is None
    every = slice(None), slice(1, 3)
    np.testing.assert_array_equal(checks.plan_cotangent(batch.problem, batch.f, M)(*every), M[:, 1:3])
    np.testing.assert_array_equal(checks.plan_cotangent(batch.problem, batch.f, M[0])(*every), M[[0, 0], 1:3])
    found = checks.plan_cotangent(batch.problem, batch.f, (U, V))(*every)
    np.testing.assert_allclose(found, (U @ V.swapaxes(1, 2))[:, 1:3])
    np.testing.assert_allclose(
        checks.plan_cotangent(single.problem, single.f, [U[0], V[0]])(*every), [(U[0] @ V[0].T)[1:3]]
    )
    two = cusink.sinkhorn(None, None, np.ones((2, 3)), eps=1.0)  # a matrix as a list of two rows
    rows = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    np.testing.assert_array_equal(checks.plan_cotangent(two.problem, two.f, rows)(slice(None), slice(None)), [rows])
    with pytest.raises(ValueError, match=r"'grad_plan' must have shape \(4, 3\); got \(2, 4, 3\)"):
        checks.plan_cotangent(single.problem, single.f, M)
    with pytest.raises(ValueError, match=r"'grad_plan' must have shape \(2, 4, 3\); got \(1, 4, 3\)"):
        checks.plan_cotangent(batch.problem, batch.f, M[:1])


def test_who_had_not_converged_is_told_by_the_largest_error():
    checks.warn_unconverged(np.array([True, True]), np.array([1.0, 2.0]))
    checks.warn_unconverged(np.array(True), np.array(1.0))
    with pytest.warns(cusink.ConvergenceWarning, match="^2 of 3 problems had not.* error is 0.2,"):
        checks.warn_unconverged(np.array([False, True, False]), np.array([0.1, 0.7, 0.2]))
    with pytest.warns(cusink.ConvergenceWarning, match="^1 of 1 problems"):
        checks.warn_unconverged(np.array(False), np.array(0.1))
    system.warn_rough(np.array([True]), 1e-6, 5)
    with pytest.warns(cusink.ConvergenceWarning, match="of 1 of 2 problems did not reach tol=1e-06 within max_iter=5"):
        system.warn_rough(np.array([True, False]), 1e-6, 5)


def test_parts():
    x = np.array([1.0, np.inf, -np.inf])
    assert parts.replace_inf(np, x).tolist() == [1, 0, -np.inf] and parts.replace_inf(np, x, 5).tolist()[1] == 5
    finite = np.ones(2)
    assert parts.replace_inf(np, finite) is finite
    moves = Directions(a=np.array([[1.0, 2.0]]), b=np.array([[3.0]]))
    assert moves.dot(np.array([[10.0, 20.0]]), np.array([[7.0]])).tolist() == [71.0]
    assert moves._replace(a=None).dot(None, np.array([[7.0]])).tolist() == [21.0] and Directions().dot(None, None) == 0
    root = math.sqrt(np.finfo(np.float32).max)
    assert first_bits.largest_factor(np.dtype(np.float32)) == root == first_bits.largest_factor(np.dtype(np.float16))
    assert first_bits.largest_factor(np.dtype(np.float64)) == math.sqrt(np.finfo(float).max)
    clipped = first_bits.in_range(np, np.array([1e30, -1e30, 2.0]), np.dtype(np.float32))
    np.testing.assert_allclose(clipped, [root, -root, 2])


def test_blocks_of_terms_take_what_the_caller_allows():
    problem = SimpleNamespace(a=np.ones((2, 300)), b=np.ones((2, 1000)), C=SimpleNamespace(data=SimpleNamespace()))
    given = SimpleNamespace(problem=problem)
    rows = [part.stop - part.start for _, part in terms.GradientTerms._blocks(given)]
    assert max(rows) == (1 << 17) // 1000 and sum(rows) == 600
    problem.C.data.memory_limit = 8 * 16 * 5000
    rows = [part.stop - part.start for _, part in terms.GradientTerms._blocks(given)]
    assert max(rows) == 5 and sum(rows) == 600


# ---- the linear system ---------------------------------------------------------------------------------------------


class DenseMeans(Means):
    """Means under plans (B, n, m)."""

    def __init__(self, P):
        self.P = P

    def mean(self, v, axis):
        total = self.marginal(axis)
        sums = np.einsum("bij,bj->bi" if axis == 1 else "bij,bi->bj", self.P, v)
        return np.divide(sums, total, out=np.zeros_like(sums), where=total > 0)

    def marginal(self, axis):
        return self.P.sum(axis=2 if axis == 1 else 1)

    def at(self, index):
        return DenseMeans(self.P[index])


def plans(n=6, m=5, size=3, empty=True):
    P = rng.random((size, n, m)) ** 4
    if empty:
        P[0, 2], P[1, :, 3] = 0, 0
    return P / P.sum(axis=(1, 2), keepdims=True)


def solve(P, h, k, tol=1e-12, max_iter=500, slack=(0.0, 0.0)):
    problem = SimpleNamespace(
        C=SimpleNamespace(xp=np, to_host=np.asarray), a=P.sum(axis=2), b=P.sum(axis=1), dtype=P.dtype
    )
    prepared = [(np.arange(len(P)), DenseMeans(P))]
    rights = [lambda index, _: (h[index], k[index]), lambda index, _: (2 * h[index], 2 * k[index])]
    return solve_marginal_systems(problem, rights, LinearSolve(tol, max_iter, slack), prepared)


def compatible(P, h, k):
    """Return k moved by the constant that makes the system solvable."""
    rows, columns = P.sum(axis=2), P.sum(axis=1)
    return k - ((columns * k).sum(axis=1) - (rows * h).sum(axis=1))[:, None] / columns.sum(axis=1)[:, None]


@pytest.mark.parametrize("shape", [(6, 5), (4, 7), (5, 5)])
def test_the_fit_has_the_conditional_means(shape):
    P = plans(*shape)
    h, k = rng.normal(size=(3, shape[0])), rng.normal(size=(3, shape[1]))
    k = compatible(P, h, k)
    (x, y, converged), twice = solve(P, h, k)
    assert converged.all() and converged.dtype == bool
    means = DenseMeans(P)
    np.testing.assert_allclose(x + means.mean(y, 1), h, atol=1e-9)  # of empty bins too
    np.testing.assert_allclose((means.mean(x, 0) + y), k, atol=1e-9)
    np.testing.assert_allclose(twice.x + means.mean(twice.y, 1), 2 * h, atol=1e-9)


@pytest.mark.parametrize("slack", [(0.5, 0.2), (0.0, 0.3), (1e-9, 2e-9), "each"])
@pytest.mark.parametrize("shape", [(6, 5), (4, 7)])
def test_the_damped_system_has_one_solution(shape, slack):
    P = plans(*shape, empty=False)
    h, k = rng.normal(size=(3, shape[0])), rng.normal(size=(3, shape[1]))
    if slack == "each":
        slack = np.array([[0.1], [0.4], [2.0]]), np.array([[0.3], [0.2], [0.0]])
    small = np.max(slack[0]) < 1e-6
    k = compatible(P, h, k) if small else k
    (x, y, converged), _ = solve(P, h, k, slack=slack)
    assert converged.all()
    of_rows, of_columns = (np.broadcast_to(1 / (1 + np.asarray(s)), (3, 1)) for s in slack)
    for i in range(3):
        R, S = P[i] / P[i].sum(axis=1, keepdims=True), P[i] / P[i].sum(axis=0)
        n, m = shape
        dense = np.block([[np.eye(n), of_rows[i] * R], [of_columns[i] * S.T, np.eye(m)]])
        want = np.linalg.solve(dense, np.concatenate([h[i], k[i]]))
        tolerance = 1e-9 if not small else 1e-2 * abs(want).max()
        np.testing.assert_allclose(np.concatenate([x[i], y[i]]), want, rtol=0, atol=tolerance)


def test_a_problem_with_slack_of_its_own_goes_on_where_most_are_solved():
    P, slack = plans(empty=False), (np.array([[0.1], [0.4], [2.0]]), np.array([[0.3], [0.2], [0.0]]))
    h, k = rng.normal(size=(3, 6)), rng.normal(size=(3, 5))
    P[:2] = 1 / 30  # of outer products: one step is enough
    (x, y, converged), _ = solve(P, h, k, slack=slack)
    assert converged.all()
    for i in range(3):
        alone, _ = solve(P[[i]], h[[i]], k[[i]], slack=tuple(s[[i]] for s in slack))
        np.testing.assert_allclose(x[[i]], alone.x, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(y[[i]], alone.y, rtol=1e-9, atol=1e-11)


def test_a_system_that_is_not_solved_says_so_and_those_that_are_stay():
    P = plans(12, 10, empty=False) ** 3
    P[1] = 1  # of an outer product: one step is enough
    P /= P.sum(axis=(1, 2), keepdims=True)
    h, k = rng.normal(size=(3, 12)), rng.normal(size=(3, 10))
    k = compatible(P, h, k)
    (_, _, converged), _ = solve(P, h, k, max_iter=1)
    assert converged.tolist() == [False, True, False]
    assert solve(P, h, k, tol=1e-30)[0].converged.all()  # no closer than rounding
    h[2, 0] = np.inf
    with np.errstate(invalid="ignore"):
        assert solve(P, h, k)[0].converged.tolist() == [True, True, False]


def test_a_solution_that_no_float_holds_leaves_finite_numbers():
    h, k = np.array([[1.0, -1.0]] * 2), np.zeros((2, 2))
    rough = np.array([False, False])
    sides = system._with_room(np, (h * 1e40, k + 1), (h, k), rough, np.dtype(np.float32))
    assert [side.tolist() for side in sides] == [h.tolist(), k.tolist()]
    first = system._with_room(np, (h * 1e40, k + 1), (h, k), np.array([True, False]), np.dtype(np.float32))
    assert [side.tolist() for side in first] == [[(h * 1e40)[0].tolist(), h[1].tolist()], [[1.0, 1.0], [0.0, 0.0]]]
    kept = system._with_room(np, (h * 1e20, k + 1), (h, k), rough, np.dtype(np.float32))
    assert [side.tolist() for side in kept] == [(h * 1e20).tolist(), (k + 1).tolist()]
    assert system._with_room(np, (h * 1e40, k + np.nan), (h, k), rough, np.dtype(np.float64))[1].tolist() == k.tolist()


def test_gradients_of_parts_that_hardly_meet_are_finite_in_float32():
    a = np.array([0.99999994, 6.3168756e-08, 1.1304667e-29], np.float32)
    b = np.array([1.0, 1e-12, 1e-12, 1e-12, 1e-12], np.float32)
    C = [[1.1e-06, 1.0, 1.0, 0.0, 710.0], [1.0, 0.8, 0.0004, 1.0, 4.5e-06], [1.7e-06, 1.0, 2e-05, 1.0, 0.0]]
    solved = cusink.sinkhorn(a, b, np.array(C, np.float32), eps=5.12e-05)
    h = np.array([-2.03, -0.34, -1.07, 0.72, -0.81], np.float32)
    with pytest.warns(cusink.ConvergenceWarning, match="rough"):
        grads = cusink.sinkhorn_adjoint(solved, grad_g=h)
    assert grads.a.dtype == np.float32 and all(np.isfinite(grad).all() for grad in (grads.a, grads.b, grads.C))


def test_pieces_of_the_reduced_system():
    P = plans(empty=False)
    means = DenseMeans(P)
    y, x = rng.normal(size=(3, 5)), rng.normal(size=(3, 6))
    for slack in ((0.0, 0.0), (0.5, 0.2)):
        own = ReducedSystem(np, np.asarray, means, 1, LinearSolve(1e-6, 10, slack))
        other = ReducedSystem(np, np.asarray, means, 0, LinearSolve(1e-6, 10, slack))
        share = 1 / ((1 + slack[0]) * (1 + slack[1]))
        assert (own.axis, own.other_axis, other.other_axis) == (1, 0, 1)
        assert own.slack == other.slack == (slack != (0.0, 0.0))
        assert own.constant_eigenvalue == pytest.approx(1 - share, abs=1e-15)
        assert other.shares == pytest.approx((1 / (1 + slack[0]), 1 / (1 + slack[1])))
        assert own.shares == pytest.approx((1 / (1 + slack[1]), 1 / (1 + slack[0])))
        np.testing.assert_allclose(other.apply(y), y - share * means.mean(means.mean(y, 1), 0), rtol=1e-13)
        np.testing.assert_allclose(own.apply(x), x - share * means.mean(means.mean(x, 0), 1), rtol=1e-13)
        some = own.at(np.array([2, 0]))
        np.testing.assert_allclose(some.apply(x[[2, 0]]), own.apply(x)[[2, 0]], rtol=1e-13)
    each = LinearSolve(1e-6, 10, (np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]])))
    assert [s.tolist() for s in each.at(np.array([1])).slack] == [[[2.0]], [[4.0]]]
    assert LinearSolve(1e-6, 10, (0.5, 0.2)).at(np.array([1])).slack == (0.5, 0.2)
    assert ReducedSystem(np, np.asarray, means, 0, each).slack


def test_inner_products_leave_empty_bins_out():
    weights = np.array([[0.5, 0.0, 1.5], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    x, y = np.array([[1.0, np.inf, 2.0]] * 3), np.array([[3.0, 1.0, -1.0]] * 3)
    x[1, 1] = 4.0
    x[2] = 1.0
    bins = Bins.of(np, weights)
    assert bins.mass.tolist() == [[2.0], [3.0], [1.0]]
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(bins.dot(x, y), [1.5 - 3, 3 + 4 - 2, 0])
    assert bins.masked(x)[0].tolist() == [1, 0, 2]
    np.testing.assert_allclose(bins.mean(y), [[(1.5 - 1.5) / 2], [1.0], [0]])
    some = bins.at(np.array([1]))
    assert (
        some.mass.tolist() == [[3.0]] and some.filled.tolist() == [[True] * 3] and some.weights.tolist() == [[1, 1, 1]]
    )
    full = Bins.of(np, weights[1:2])
    assert full.filled is None is full.at(np.array([0])).filled and full.masked(x) is x


# ---- balanced potentials and prices --------------------------------------------------------------------------------


def test_the_constant_between_potentials_is_taken_out_of_their_cotangents():
    solved = result(2)
    problem = solved.problem
    grad_f, grad_g = rng.normal(size=(2, 4)), rng.normal(size=(2, 3))
    problem.a[0, 1] = 0
    found, _ = balanced.balanced_terms(problem, Cotangents(f=grad_f, g=grad_g), LinearSolve(1e-9, 100))
    for k, (rows, count) in enumerate(((np.array([1, 0, 1, 1]), 6), (np.ones(4), 7))):
        lead = (grad_f[k].sum() - grad_g[k].sum()) / count
        np.testing.assert_allclose(found.grad_f[k], grad_f[k] - lead * rows)
        np.testing.assert_allclose(found.grad_g[k], grad_g[k] + lead)
    found, converged = balanced.balanced_terms(problem, Cotangents(reg_cost=np.ones(2)), LinearSolve(1e-9, 100))
    assert found.x is None is found.y and converged.all() and found.level.tolist() == [1, 1]
    three = Cotangents(cost=np.ones(2), reg_cost=2 * np.ones(2), entropic_cost=4 * np.ones(2))
    assert balanced.balanced_terms(problem, three, LinearSolve(1e-9, 100))[0].level.tolist() == [7, 7]


@pytest.mark.parametrize("reach", [(0.5, 0.8), (math.inf, 0.8), (0.5, math.inf)])
def test_what_prices_do_by_their_definitions(reach):
    a, b = np.array([[0.5, 0.0, 0.5, 0.25]]), np.array([[0.3, 0.7]])
    f, g = np.array([[0.3, 0.2, np.inf, 1e-4]]), np.array([[-0.4, 0.6]])
    fields = np.array([[1.0, 2.0, 3.0, 4.0]]), np.array([[5.0, 6.0]])
    problem = SimpleNamespace(xp=np, a=a, b=b, reach=reach, potentials=lambda: (f, g), eps_as=lambda axes: 0.2)
    through = prices.through_potentials(problem, fields)
    shown = np.where(np.isfinite(f), f, 0)
    want = [0.2 * (x * p).sum() / rho**2 for x, p, rho in zip(fields, (shown, g), reach, strict=True)]
    np.testing.assert_allclose(through, [want], rtol=1e-13, atol=1e-300)
    unmet = prices.unmet(problem)
    for side, (w, p, rho) in enumerate(((a, f, reach[0]), (b, g, reach[1]))):
        with np.errstate(invalid="ignore"):
            x = p[0] / rho
            share = np.where(np.isfinite(p[0]), 1 - (1 + x) * np.exp(-x), 1)
        assert unmet[0, side] == pytest.approx((w[0] * share).sum(), rel=1e-7)


def test_the_series_near_zero_meets_the_formula():
    for x in (0.0099, -0.0099, 0.0101, 1e-3):
        potential = np.array([[x]])
        problem = SimpleNamespace(
            xp=np, a=np.ones((1, 1)), b=np.ones((1, 1)), reach=(1.0, 1.0), potentials=lambda p=potential: (p, p)
        )
        exact = sum((-1) ** k * (k - 1) * x**k / math.factorial(k) for k in range(2, 12))
        assert prices.unmet(problem)[0, 0] == pytest.approx(exact, rel=4e-13 if abs(x) < 0.01 else 1e-11, abs=0)


# ---- pairs of measures ---------------------------------------------------------------------------------------------


def test_derivatives_of_pairs_are_numbers_or_one_for_each():
    given, f = SimpleNamespace(count=3, xp=np, A=SimpleNamespace(weights=np.ones(2))), np.ones(5)
    found = pairs.PerPair(given, f, {"grad_cost": 2, "grad_reg_cost": np.array([1.0, 2, 3]), "other": None})
    assert found.every("grad_cost") == 2 and found.every("grad_reg_cost").tolist() == [1, 2, 3]
    assert found.every("other") is None
    share = found.of(SimpleNamespace(pairs=np.array([2, 0])))
    assert share["grad_cost"] == 2 and share["grad_reg_cost"].tolist() == [3, 1] and share["other"] is None
    for bad, said in (
        (np.ones(2), r"'x' must have shape \(3,\) to match the result; got \(2,\)"),
        (np.array([1.0, np.nan, 0]), "'x' must be finite"),
        (math.inf, "'x' must be finite"),
    ):
        with pytest.raises(ValueError, match=said):
            pairs.PerPair(given, f, {"x": bad})
    narrow = SimpleNamespace(count=3, xp=np, A=SimpleNamespace(weights=np.ones(2, np.float32)))
    with pytest.raises(ValueError, match="'x' must be"):
        pairs.PerPair(narrow, f, {"x": 1e39})


# ---- a batch beside its problems -----------------------------------------------------------------------------------

KINDS = ["own", "shared", "clouds"]
REACHES = [None, (0.7, 0.4), (None, 0.5)]


class Batch:
    """Two problems with an eps each, and the same alone."""

    def __init__(self, kind, reach):
        self.kind, self.eps = kind, np.array([0.3, 0.5])
        self.a, self.b = rng.dirichlet(np.ones(4), 2), rng.dirichlet(np.ones(3), 2)
        self.a[0, 1] = 0
        self.a /= self.a.sum(axis=1, keepdims=True)
        self.C = rng.random((4, 3)) if kind == "shared" else rng.random((2, 4, 3))
        self.x, self.y = rng.random((2, 4, 2)), rng.random((2, 3, 2))
        self.tight = {"tol": 1e-13, "max_iter": 5000, "reach": reach}
        self.along = {"da": 0.1 * rng.normal(size=(2, 4)) * (self.a > 0), "db": 0.1 * rng.normal(size=(2, 3))}
        self.along["deps"] = rng.normal(size=2)
        if kind == "clouds":
            self.along |= {"dx": rng.normal(size=(2, 4, 2)), "dy": rng.normal(size=(2, 3, 2))}
        else:
            self.along["dC"] = rng.normal(size=self.C.shape)
        cost = cusink.PointCloud(self.x, self.y) if kind == "clouds" else self.C
        self.whole = cusink.sinkhorn(self.a, self.b, cost, eps=self.eps, **self.tight)

    def alone(self, k):
        cost = self.C if self.kind == "shared" else self.C[k]
        cost = cusink.PointCloud(self.x[k], self.y[k]) if self.kind == "clouds" else cost
        return cusink.sinkhorn(self.a[k], self.b[k], cost, eps=float(self.eps[k]), **self.tight)

    def moves(self, k):
        moves = {name: x if x.ndim == 2 and name == "dC" else x[k] for name, x in self.along.items()}
        return moves | {"deps": float(moves["deps"])}


def assert_same(batch, whole, alone, names, summed=()):
    for name in names:
        parts_ = [getattr(one, name) for one in alone]
        found = getattr(whole, name)
        assert (found is None) == (parts_[0] is None), name
        if found is not None:
            want = sum(parts_) if name in summed else np.stack(parts_)
            np.testing.assert_allclose(found, want, atol=1e-7, rtol=1e-7, err_msg=f"{batch.kind} {name}")


@pytest.mark.parametrize("reach", REACHES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_a_batch_are_those_of_its_problems(kind, reach):
    """With an eps each, along directions and second ones too."""
    batch = Batch(kind, reach)
    alone, summed = [batch.alone(k) for k in range(2)], ("C",) if kind == "shared" else ()
    how = {"tol": 1e-12, "max_iter": 400}
    given = {"grad_cost": 1.5, "grad_reg_cost": -0.5, "grad_entropic_cost": 0.25}
    potentials = {"grad_f": rng.normal(size=(2, 4)), "grad_g": rng.normal(size=(2, 3))}
    M = rng.normal(size=(2, 4, 3))
    for more in ({}, potentials, {"grad_plan": M}):
        whole = cusink.sinkhorn_adjoint(batch.whole, **given, **more, **how)
        each = [
            cusink.sinkhorn_adjoint(one, **given, **{name: x[k] for name, x in more.items()}, **how)
            for k, one in enumerate(alone)
        ]
        assert_same(batch, whole, each, ("a", "b", "C", "eps", "x", "y", "reach", "converged"), summed)
    whole = cusink.sinkhorn_jvp(batch.whole, **batch.along, **how)
    each = [cusink.sinkhorn_jvp(one, **batch.moves(k), **how) for k, one in enumerate(alone)]
    assert_same(batch, whole, each, ("f", "g", "cost", "reg_cost", "entropic_cost", "converged"))
    if reach is not None:
        given.pop("grad_entropic_cost")
    whole = cusink.sinkhorn_hvp(batch.whole, **given, **batch.along, **how)
    each = [cusink.sinkhorn_hvp(one, **given, **batch.moves(k), **how) for k, one in enumerate(alone)]
    assert_same(batch, whole, each, ("a", "b", "C", "eps", "x", "y", "converged"), summed)
    # Directions add up, also where some inputs stay.
    parts_ = [cusink.sinkhorn_hvp(alone[0], **given, **{name: x}, **how) for name, x in batch.moves(0).items()]
    for name in ("a", "b", "C", "eps", "x", "y"):
        if getattr(each[0], name) is not None:
            total = sum(getattr(part, name) for part in parts_)
            np.testing.assert_allclose(getattr(each[0], name), total, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_the_axis_of_a_cost_of_one_problem_stays(reach):
    a, C = rng.dirichlet(np.ones(4)), rng.random((1, 4, 3))
    how = {"eps": 0.4, "reach": reach, "tol": 1e-12, "max_iter": 5000}
    batch, single = cusink.sinkhorn(a, None, C, **how), cusink.sinkhorn(a, None, C[0], **how)
    for given in ({"grad_cost": 1.0}, {"grad_entropic_cost": 1.0}, {"grad_plan": np.arange(12.0).reshape(4, 3)}):
        found, want = (cusink.sinkhorn_adjoint(one, **given, tol=1e-11) for one in (batch, single))
        assert (
            found.C.shape == (1, 4, 3) and want.C.shape == (4, 3) and found.eps.shape == (1,) and want.eps.shape == ()
        )
        np.testing.assert_allclose(found.C[0], want.C, atol=1e-8)
        assert found.converged.shape == (1,) and want.converged.shape == ()
    found = cusink.sinkhorn_hvp(batch, grad_cost=1.0, deps=1.0)
    assert found.C.shape == (1, 4, 3) and found.eps.shape == (1,)
    want = cusink.sinkhorn_hvp(single, grad_cost=1.0, deps=1.0)
    assert want.C.shape == (4, 3) and want.converged.shape == ()
    np.testing.assert_allclose(found.C[0], want.C, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_number_for_each_bin_of_one_problem(axis):
    """Gradients of a map have the shapes of what was given, with a batch axis or without."""
    x, y = rng.random((4, 2)), rng.random((3, 2))
    solved = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=0.3, tol=1e-12)
    values, grad = rng.normal(size=3 if axis else 4), rng.normal(size=4 if axis else 3)
    flat = cusink.barycentric_map_adjoint(solved, values, grad, axis=axis, tol=1e-11)
    rows = cusink.barycentric_map_adjoint(solved, values[:, None], grad[:, None], axis=axis, tol=1e-11)
    assert flat.values.shape == values.shape and rows.values.shape == (len(values), 1)
    for name in ("a", "b", "x", "y", "eps"):
        np.testing.assert_allclose(getattr(flat, name), getattr(rows, name), atol=1e-12)
    assert flat.eps.shape == flat.converged.shape == ()
    there = solved.at(x[:2]) if axis else solved.at(y=y[:2])
    alone = cusink.extension_adjoint(there, grad_map=grad[:2], values=values)
    both = cusink.extension_adjoint(there, grad_map=grad[:2, None], values=values[:, None])
    assert alone.values.shape == values.shape and both.values.shape == (len(values), 1) and alone.eps.shape == ()
    np.testing.assert_allclose(alone.points, both.points, atol=1e-12)
    np.testing.assert_allclose(alone.weights, both.weights, atol=1e-12)
    potential = cusink.extension_adjoint(there, grad_potential=grad[:2])
    assert potential.values is None and potential.potential.shape == values.shape
    assert potential.potential.sum() == pytest.approx(-grad[:2].sum())  # its shares sum to one


@pytest.mark.parametrize("image", ["a", "b"])
def test_derivatives_by_images_are_images_of_their_side(image):
    """One side came as an image of the cells of a grid, the other as bins in a row."""
    grid = cusink.Grid((2, 3), spacing=0.5)
    a, b = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    shapes = {name: (2, 3) if name == image else (6,) for name in "ab"}
    given = [w.reshape(shapes[name]) for name, w in (("a", a), ("b", b))]
    solved, flat = cusink.sinkhorn(*given, grid, eps=0.4, tol=1e-12), cusink.sinkhorn(a, b, grid, eps=0.4, tol=1e-12)
    pairs_ = [(cusink.sinkhorn_adjoint(one, grad_cost=1.0, tol=1e-11), ("a", "b")) for one in (solved, flat)]
    pairs_ += [(cusink.sinkhorn_jvp(one, deps=1.0, tol=1e-11), ("f", "g")) for one in (solved, flat)]
    pairs_ += [(cusink.sinkhorn_hvp(one, grad_cost=1.0, deps=1.0, tol=1e-11), ("a", "b")) for one in (solved, flat)]
    v = rng.normal(size=6)
    for (found, names), (want, _) in zip(pairs_[::2], pairs_[1::2], strict=True):
        for name, side in zip(names, "ab", strict=True):
            assert getattr(found, name).shape == shapes[side]
            np.testing.assert_allclose(getattr(found, name).ravel(), getattr(want, name), atol=1e-9)
    for axis, (side, other) in ((1, "ba"), (0, "ab")):
        np.testing.assert_allclose(
            solved.apply(v.reshape(shapes[side]), axis), flat.apply(v, axis).reshape(shapes[other])
        )
        mapped = solved.barycentric_map(v.reshape(shapes[side]), axis)
        np.testing.assert_allclose(mapped, flat.barycentric_map(v, axis).reshape(shapes[other]))
        grad = rng.normal(size=6)
        found = cusink.barycentric_map_adjoint(solved, v.reshape(shapes[side]), grad.reshape(shapes[other]), axis=axis)
        want = cusink.barycentric_map_adjoint(flat, v, grad, axis=axis)
        for name in "ab":
            np.testing.assert_allclose(getattr(found, name), getattr(want, name).reshape(shapes[name]), atol=1e-9)
        assert found.values.shape == shapes[side]


@pytest.mark.parametrize("reach", [(None, 0.3), (0.3, None), (0.3, 0.5)])
def test_a_bin_that_may_send_nothing_and_must_has_no_gradient(reach):
    """Without a price its weight could go nowhere; with one all of it would stay behind, at that price."""
    C = rng.random((4, 3))
    C[1] = np.inf
    a, b = np.array([0.4, 0.0, 0.3, 0.3]), rng.dirichlet(np.ones(3))
    for cost, side, prices_ in ((C, "a", reach), (C.T.copy(), "b", reach[::-1])):
        weights = (a, b) if side == "a" else (b, a)
        solved = cusink.sinkhorn(*weights, cost, eps=0.2, reach=prices_, tol=1e-12)
        for given in ({"grad_cost": 1.0}, {"grad_reg_cost": 1.0}, {"grad_cost": 0.5, "grad_reg_cost": 2.0}):
            found = getattr(cusink.sinkhorn_adjoint(solved, **given, tol=1e-11), side)
            assert np.isfinite(found).all()
            level = given.get("grad_reg_cost", 0.0)
            mass = weights[1 if side == "a" else 0].sum()
            want = 0.0 if reach[0] is None else level * (reach[0] + 0.2 * mass)
            assert found[1] == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("reach", [(None, 0.3), (0.3, None)])
def test_a_bin_without_partners_leaves_the_other_gradients_alone(reach):
    """They are those without the bin, whether its marginal has a price or not."""
    C, kept = rng.random((4, 3)), np.array([0, 2, 3])
    C[1] = np.inf
    a, b = np.array([0.4, 0.0, 0.3, 0.3]), rng.dirichlet(np.ones(3))
    how = {"eps": 0.2, "reach": reach, "tol": 1e-12}
    whole, small = cusink.sinkhorn(a, b, C, **how), cusink.sinkhorn(a[kept], b, C[kept], **how)
    for name in ("cost", "reg_cost", "entropic_cost", "f", "plan"):
        grad = np.asarray({"f": np.array([1.0, 0, 2, 3]), "plan": np.arange(12.0).reshape(4, 3)}.get(name, 1.0))
        found = cusink.sinkhorn_adjoint(whole, **{f"grad_{name}": grad}, tol=1e-11)
        want = cusink.sinkhorn_adjoint(small, **{f"grad_{name}": grad[kept] if grad.ndim else grad}, tol=1e-11)
        np.testing.assert_allclose(found.a[kept], want.a, atol=1e-8, err_msg=name)
        np.testing.assert_allclose(found.C[kept], want.C, atol=1e-8, err_msg=name)
        for part in ("b", "eps", "reach"):
            np.testing.assert_allclose(getattr(found, part), getattr(want, part), atol=1e-8, err_msg=name)
        assert not found.C[1].any()


@pytest.mark.parametrize("reach", [None, (None, 0.3), (0.3, None), (0.3, 0.4)], ids=str)
def test_a_bin_without_partners_leaves_directions_alone(reach):
    C, kept = rng.random((4, 3)), np.array([0, 2, 3])
    C[1] = np.inf
    a, b = np.array([0.4, 0.0, 0.3, 0.3]), rng.dirichlet(np.ones(3))
    how = {"eps": 0.2, "reach": reach, "tol": 1e-13, "max_iter": 5000}
    whole, small = cusink.sinkhorn(a, b, C, **how), cusink.sinkhorn(a[kept], b, C[kept], **how)
    da, db, dC = rng.normal(size=4) * (a > 0), rng.normal(size=3), rng.normal(size=(4, 3))
    along = {"da": da, "db": db, "dC": dC, "deps": 0.3, "tol": 1e-12}
    few = along | {"da": da[kept], "dC": dC[kept]}
    found, want = cusink.sinkhorn_jvp(whole, **along), cusink.sinkhorn_jvp(small, **few)
    np.testing.assert_allclose(found.f[kept], want.f, atol=1e-8)
    for name in ("g", "cost", "reg_cost", "entropic_cost"):
        np.testing.assert_allclose(getattr(found, name), getattr(want, name), atol=1e-8, err_msg=name)
    for value in ("grad_cost", "grad_reg_cost"):
        found, want = (
            cusink.sinkhorn_hvp(whole, **{value: 1.0}, **along),
            cusink.sinkhorn_hvp(small, **{value: 1.0}, **few),
        )
        np.testing.assert_allclose(found.a[kept], want.a, atol=1e-7)
        np.testing.assert_allclose(found.C[kept], want.C, atol=1e-7)
        assert not found.C[1].any()
        for name in ("b", "eps"):
            np.testing.assert_allclose(getattr(found, name), getattr(want, name), atol=1e-7, err_msg=name)
