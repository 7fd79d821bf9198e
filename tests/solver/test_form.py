"""What a result says of the form that solved it. Losses and shares are counted again over all pairs in float64."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from problems import SMALL_LIMITS

import cusink
from cusink.backends.numpy import limits
from cusink.backends.numpy.clouds.absorbed import StabilisedProblem
from cusink.solver import coarse, newton
from cusink.solver.form import SinkhornForm, form_of
from cusink.solver.solution import Solution, Stage

rng = np.random.default_rng(11)
CASES = {  # n, m, eps: blocks left out, some, and nearly all blocks in thin factors
    "steep": (rng.random((801, 2)), rng.random((777, 2)), 1e-3),
    "dense": (rng.random((2048, 1)), rng.random((1900, 1)), 5e-2),
    "in 3d": (rng.random((700, 3)), rng.random((600, 3)), 1e-2),
}
SLACK = 4, 12, 36, 108  # log of how far a sum may fall, and after it fell farther


@pytest.fixture
def small(monkeypatch):
    """Let clouds of some hundreds of points count as large."""
    monkeypatch.setattr(limits, "LIMITS", dataclasses.replace(limits.LIMITS, **SMALL_LIMITS))


@pytest.fixture
def ends(monkeypatch):
    """Note every problem between clouds that has ended, and its potentials."""
    ended, plain = [], StabilisedProblem.finish

    def remember(self):
        found = plain(self)
        ended.append((self, *found[:2]))
        return found

    monkeypatch.setattr(StabilisedProblem, "finish", remember)
    return ended


def squares(x, y):
    return ((x[:, None] - y) ** 2).sum(axis=2)


def looked_at(kernel):
    """Return which pairs (n, m), in the order of the side, were looked at, and which in thin factors."""
    seen, thin = np.zeros((2, *kernel.side.shape), bool)
    for k, rows in enumerate(kernel.side.blocks):
        seen[rows, kernel.cells.index(kernel.near[k])] = True
        if kernel.expansions.get(k) is not None:
            thin[rows] = seen[rows]
    return seen, thin


@pytest.mark.parametrize("usual", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_a_large_cloud_says_what_was_left_out_and_what_that_lost(case, usual, small, ends, monkeypatch):
    x, y, eps = CASES[case]
    tol = 1e-4
    if not usual:
        monkeypatch.setattr(coarse, "LOSS", 0.1)
    result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=eps, tol=tol)
    form, (problem, f, g) = result.form, ends[-1]
    n, m, kernel = len(x), len(y), problem.kernel
    order, columns = problem.side.order, problem.side.columns
    assert (problem.side.shape, form.newton) == ((n, m), 0)
    assert form.stages
    # By definition: p and q are the weights of a kernel that has absorbed other potentials than the last.
    share = (1e-2 if usual else 0.1) * tol
    least = [share * np.exp(-slack) for slack in SLACK]
    assert kernel.least == pytest.approx(min(least, key=lambda value: abs(np.log(value / kernel.least))), rel=1e-12)
    p = np.exp((f[order] - problem.f) / eps) / n
    q = np.exp((g[columns] - problem.g) / eps) / m
    seen, thin = looked_at(kernel)
    assert form.loss == pytest.approx(2 * (kernel.least * p.sum() * q.sum() + 2 * share * thin.any()), rel=1e-9)
    assert form.loss > 0
    # What is lost is less: of both marginals together, by what is left out, in float64.
    exact = np.exp((problem.f[:, None] + problem.g - squares(x[order], y[columns])) / eps)
    assert (exact[~seen] <= kernel.least).all()
    assert 2 * p @ np.where(seen, 0, exact) @ q <= form.loss
    assert form.left_out == pytest.approx(1 - seen.mean(), abs=1e-12)
    assert form.approximate == pytest.approx(thin.mean(), abs=1e-12)
    if case == "steep":
        assert form.left_out > 0.5
    assert (form.approximate > 0.5) == (case == "dense")


@pytest.mark.parametrize("case", CASES)
def test_the_error_without_the_loss_is_that_of_all_pairs_up_to_the_loss(case, small, monkeypatch):
    monkeypatch.setattr(coarse, "LOSS", 0.2)  # more than the usual, so that it is not hidden by the error
    x, y, eps = CASES[case]
    result = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=eps, tol=1e-3)
    f, g, loss = *result.problem.potentials(), result.form.loss
    P = np.exp((f[0][:, None] + g[0] - squares(x, y)) / eps) / (len(x) * len(y))
    exact = abs(P.sum(axis=0) - 1 / len(y)).sum()
    assert abs(result.error - loss - exact) <= loss + 1e-10
    assert 1e-8 < loss < result.error


def test_stages_are_what_was_solved_before(small, monkeypatch):
    x, y, eps = CASES["steep"]
    solved, plain = [], coarse.coarse_start

    def watched(solve, *given):
        def remember(C, a, b, at, *rest, **options):
            found = solve(C, a, b, at, *rest, **options)
            solved.append((*C.shape, at, found.n_iter.tolist()))
            return found

        return plain(remember, *given)

    monkeypatch.setattr("cusink.solver.each.coarse_start", watched)
    form = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=eps, tol=1e-4).form
    assert [(*stage[:3], [stage.n_iter]) for stage in form.stages] == solved
    assert len(solved) > 1
    sizes = [stage.n for stage in form.stages]
    assert sizes == sorted(sizes)
    assert min(stage.n_iter for stage in form.stages) > 0
    assert min(stage.eps for stage in form.stages) >= eps


def test_a_batch_with_clouds_of_its_own_leaves_out_pairs_without_a_loss(small, ends):
    x, y, eps = CASES["steep"]
    result = cusink.sinkhorn(None, None, cusink.PointCloud(np.stack([x, x[::-1]]), np.stack([y, y])), eps=20 * eps)
    shares = [1 - looked_at(problem.kernel)[0].mean() for problem, _, _ in ends[-2:]]
    assert result.form.left_out == pytest.approx(np.mean(shares))
    assert shares[0] > 0
    assert (result.form.loss, result.form.stages, result.form.approximate) == (0, (), 0)


def test_bins_without_weight_are_no_pairs(small, ends):
    x, y, eps = CASES["steep"]
    a = np.where(np.arange(len(x)) % 3 == 0, 0.0, 1.0)
    result = cusink.sinkhorn(a / a.sum(), None, cusink.PointCloud(x, y), eps=eps, tol=1e-4)
    (problem, _, _), filled = ends[-1], int(a.sum())
    assert problem.side.shape == (filled, len(y))
    assert result.form.left_out == pytest.approx(1 - looked_at(problem.kernel)[0].mean())


# Small problems

COST = rng.random((30, 40))
PLAIN = SinkhornForm()


@pytest.mark.parametrize("options", [{"tol": None, "max_iter": 7}, {"method": "log"}, {"reach": 1.0}])
def test_a_small_problem_is_plain(options):
    result = cusink.sinkhorn(None, None, COST, **{"eps": 1.0} | options)
    assert result.form == PLAIN
    assert str(result.form) == "plain iterations"
    assert "form" not in repr(result)


def test_a_small_cloud_is_plain():
    x, y, _ = CASES["steep"]
    assert cusink.sinkhorn(None, None, cusink.PointCloud(x[:50], y[:60]), eps=1.0, method="log").form == PLAIN


def test_iterations_by_newton_are_told(monkeypatch):
    """Of a problem that plain iterations come first: those that its own counter of steps has."""
    steps, climbed, settled = [], newton._climbed, newton._settled

    def counted(dual, start, *rest):
        point, taken = climbed(dual, start, *rest)
        steps.append(taken)
        return point, taken

    def counted_settling(dual, point, tol, taken, most):
        point, after = settled(dual, point, tol, taken, most)
        steps.append(after - taken)
        return point, after

    monkeypatch.setattr(newton, "_climbed", counted)
    monkeypatch.setattr(newton, "_settled", counted_settling)
    result = cusink.sinkhorn(None, None, COST, eps=2e-3, tol=1e-9)
    assert result.converged
    assert 0 < result.form.newton < result.n_iter
    assert result.form.newton == sum(steps) - 1  # it begins where iterations ended
    assert str(result.form) == f"{result.form.newton} iterations by Newton's method"
    easy = cusink.sinkhorn(None, None, COST, eps=10.0)
    assert easy.form.newton == 0


def test_newton_after_iterations_counts_what_it_took(monkeypatch):
    """Of a batch the counts are summed; each problem has its own."""
    taken, plain = [], newton.newton

    def counted(*given):
        found = plain(*given)
        taken.append(found.taken)
        return found

    monkeypatch.setattr("cusink.solver.loop.newton", counted)
    a = rng.dirichlet(np.ones(30), 3)
    result = cusink.sinkhorn(a, None, COST, eps=2e-3, tol=1e-9, max_iter=5000)
    assert len(taken) > 1
    assert result.form.newton == sum(taken) <= result.n_iter.sum()


def solution(omitted, newton_taken=(0, 0), stages=()):
    out = Solution.empty(np, np.ones((2, 3)), np.ones((2, 4)))
    out.omitted[:], out.newton[:] = omitted, newton_taken
    return out._replace(stages=stages)


def test_a_batch_has_the_largest_loss_and_mean_shares():
    form = form_of(solution([[1e-3, 0.5, 0.25], [4e-3, 0.25, 0.0]], [3, 4], (Stage(5, 6, 0.5, 7),)))
    assert (form.loss, form.left_out, form.approximate, form.newton) == (4e-3, 0.375, 0.125, 7)
    assert form.stages == ((5, 6, 0.5, 7),)
    assert all(type(value) in {float, int, tuple} for value in dataclasses.astuple(form))
    assert str(form) == (
        "coarse to fine, from 5 x 6; 0.375 of the pairs left out; 0.125 of the pairs in thin factors; "
        "a loss of 0.004 in the error; 7 iterations by Newton's method"
    )


def test_what_nobody_counted_is_not_told():
    form = form_of(solution([[0, np.nan, 0], [0, 0.0, 0]]))
    assert form.left_out is None
    assert str(form) == "pairs left out"
    assert form == SinkhornForm(left_out=None)


def test_results_of_no_solve_of_their_own_have_none():
    result = cusink.sinkhorn(None, None, COST, eps=1.0)
    assert cusink.SinkhornResult.from_potentials(None, None, COST, eps=1.0, g=result.g).form is None
    A, B = (cusink.Measures.of([rng.random((size, 2)) for size in sizes]) for sizes in ((3, 4), (5, 6)))
    assert cusink.sinkhorn(A, B, "sqeuclidean", eps=1.0)[1].form is None


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_it_is_there_after_a_pickle(copied, small):
    x, y, eps = CASES["steep"]
    hard = cusink.sinkhorn(None, None, COST, eps=2e-3, tol=1e-9)
    large = cusink.sinkhorn(None, None, cusink.PointCloud(x, y), eps=eps, tol=1e-3)
    for result in (large, hard):
        again = copied(result)
        assert again.form == result.form != PLAIN
        with pytest.raises(dataclasses.FrozenInstanceError):
            again.form.loss = 1.0
