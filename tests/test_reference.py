"""The oracle and the problem generators, held to closed forms and to SciPy: what judges the package is judged first."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import problems
import pytest
import reference
from scipy.special import logsumexp

named = {"ids": str}


@pytest.mark.parametrize("module", [reference, problems])
def test_imports_nothing_of_the_package(module):
    tree = ast.parse(Path(module.__file__).read_text())
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert names and not [
        name for name in names if name.split(".")[0] not in {"numpy", "scipy", *sys.stdlib_module_names}
    ]


@pytest.mark.parametrize("axis", [0, 1])
def test_softmin_agrees_with_scipy(axis):
    rng = np.random.default_rng(0)
    C, weights, potential = rng.random((5, 7)), rng.random((5, 7)[axis]), rng.normal(size=(5, 7)[axis])
    C[2, :], weights[1] = np.inf, 0.0
    shaped = (lambda x: x[None, :]) if axis == 1 else (lambda x: x[:, None])
    want = -0.1 * logsumexp((shaped(potential) - C) / 0.1, axis=axis, b=np.broadcast_to(shaped(weights), C.shape))
    np.testing.assert_allclose(reference.softmin(C, potential, weights, 0.1, axis), want, rtol=1e-14)
    assert (reference.softmin(C, potential, weights, 0.1, axis)[2] == np.inf) == (axis == 1)


def test_naive_solver_stays_in_its_precision():
    p = problems.HARD[0]
    solution = reference.sinkhorn(p.a[0], p.b[0], p.C, p.eps, 5, dtype=np.float32)
    assert solution.f.dtype == solution.g.dtype == np.float32


@pytest.mark.parametrize("p", problems.KNOWN, **named)
def test_optimum_of_known_problems(p):
    solution = reference.solve(p.a, p.b, p.C, p.eps)
    assert solution.error < 1e-12
    P = reference.plan(p.a, p.b, p.C, p.eps, solution.f, solution.g)
    np.testing.assert_allclose(P.sum(axis=1), p.a, rtol=1e-12)
    np.testing.assert_allclose(P.sum(axis=0), p.b, atol=1e-12 * p.b.sum())
    found = reference.values(P, p.a, p.b, p.C, p.eps)._asdict()
    scale = p.a.sum() * np.abs(p.C[np.isfinite(p.C)]).max() + p.eps
    # The grid stands for the line: what it cuts off and smooths is below 1e-9.
    tolerance = (1e-9 if "Gaussians" in p.name else 1e-12) * scale
    checked = [name for name in found if name in p.known]
    assert {"cost", "reg_cost"} <= set(checked)
    for name in checked:
        assert found[name] == pytest.approx(p.known[name], abs=tolerance), name
    if "plan" in p.known:
        np.testing.assert_allclose(P, p.known["plan"], atol=1e-12 * p.a.sum())
    if "f_plus_g" in p.known:
        np.testing.assert_allclose(solution.f[:, None] + solution.g, p.known["f_plus_g"], atol=1e-13)


@pytest.mark.parametrize("p", [p for p in problems.KNOWN if "plan" in p.known], **named)
def test_known_plans_are_plans(p):
    """A wrong closed form would otherwise only be as good as the oracle."""
    P = p.known["plan"]
    assert (P >= 0).all()
    np.testing.assert_allclose(P.sum(axis=1), p.a, atol=1e-14 * p.a.sum())
    np.testing.assert_allclose(P.sum(axis=0), p.b, atol=1e-14 * p.a.sum())


@pytest.mark.parametrize("p", problems.HARD, **named)
def test_oracle_converges_on_hard_problems(p):
    for a, b, C in reference.each(lambda *one: one, p.a, p.b, p.C):
        solution = reference.solve(a, b, C, p.eps)
        P = reference.plan(a, b, C, p.eps, solution.f, solution.g)
        rounding = np.finfo(float).eps * np.abs(C[np.isfinite(C)]).max() / p.eps
        assert solution.error < 1e-12 + 4 * rounding
        np.testing.assert_allclose(P.sum(axis=1), a, rtol=1e-12 + 4 * rounding)
        # The optimum has one value: from the plan and from the potentials.
        dual = float(a @ solution.f + b @ solution.g)
        scale = np.abs(C[np.isfinite(C)]).max() * a.sum()
        assert reference.values(P, a, b, C, p.eps).reg_cost == pytest.approx(dual, abs=(1e-11 + 10 * rounding) * scale)
        assert np.isfinite(solution.f).all() and np.isfinite(solution.g).all()


def test_newton_and_plain_iterations_agree():
    p = problems.HARD[3]
    plain, newton = reference.sinkhorn(p.a, p.b, p.C, p.eps, 3000), reference.solve(p.a, p.b, p.C, p.eps)
    assert plain.error < 1e-12
    np.testing.assert_allclose(newton.f - newton.f[0], plain.f - plain.f[0], atol=1e-12)
    np.testing.assert_allclose(newton.g + newton.f[0], plain.g + plain.f[0], atol=1e-12)


def test_iterations_can_be_split():
    p = problems.HARD[3]
    whole = reference.sinkhorn(p.a, p.b, p.C, p.eps, 12)
    half = reference.sinkhorn(p.a, p.b, p.C, p.eps, 5)
    rest = reference.sinkhorn(p.a, p.b, p.C, p.eps, 7, f=half.f)
    np.testing.assert_array_equal(rest.f, whole.f)
    np.testing.assert_array_equal(rest.g, whole.g)


def test_each_of_the_three_values_is_what_its_formula_says():
    a, b, C = np.array([0.25, 0.75]), np.array([0.5, 0.5]), np.array([[1.0, 2.0], [3.0, np.inf]])
    P = np.array([[0.0, 0.25], [0.5, 0.25]])
    finite = np.where(np.isfinite(C), C, 5.0)
    cost, reg_cost, entropic_cost = reference.values(P, a, b, finite, 0.1)
    assert cost == pytest.approx(0.25 * 2 + 0.5 * 3 + 0.25 * 5)
    kl = 0.25 * np.log(0.25 / 0.125) + 0.5 * np.log(0.5 / 0.375) + 0.25 * np.log(0.25 / 0.375)
    assert reg_cost == pytest.approx(cost + 0.1 * kl)
    assert entropic_cost == pytest.approx(cost + 0.1 * (0.5 * np.log(0.25) + 0.5 * np.log(0.5)))
    assert reference.transport_cost(np.array([[0.5, 0.0], [0.5, 0.0]]), np.array([[1.0, 2.0], [3.0, np.inf]])) == 2.0
    assert entropic_cost == pytest.approx(reg_cost - 0.1 * (reference.entropy(a) + reference.entropy(b)))


def test_marginal_error_is_relative_to_the_mass():
    P = np.array([[1.0, 1.0], [0.0, 2.0]])
    assert reference.marginal_error(P, np.array([2.0, 2.0])) == pytest.approx(0.5)


def test_exact_cost():
    rng = np.random.default_rng(0)
    C = rng.random((6, 6))
    uniform = np.full(6, 1 / 6)
    assert reference.exact_cost(uniform, uniform, C) == pytest.approx(reference.assignment_cost(C), abs=1e-12)
    # On the line with a convex cost the monotone plan is optimal.
    a, b = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.25, 0.75])
    monotone = 0.25 * 0.25 + 0.25 * 1.0 + 0.5 * 0.25
    assert reference.exact_cost(a, b, problems.line_cost(3)) == pytest.approx(monotone, abs=1e-12)
    assert reference.exact_cost(10 * a, 10 * b, problems.line_cost(3)) == pytest.approx(10 * monotone, abs=1e-11)
    C = np.array([[0.0, np.inf], [np.inf, 0.0]])
    assert reference.exact_cost([0.5, 0.5], [0.5, 0.5], C) == 0.0
    assert reference.exact_cost([0.5, 0.5], [0.25, 0.75], C) == np.inf


def test_exact_cost_on_the_line_is_the_monotone_plan():
    """Weights over 195 orders of magnitude: the linear programme must not call them infeasible."""
    p = next(p for p in problems.HARD if p.name == "far-apart Gaussians")
    for a, b, C in reference.each(lambda *one: one, p.a, p.b, p.C):
        # Masses between the steps of both cumulative sums go from bin i to bin j, by north-west corners.
        steps = np.unique(np.r_[0.0, np.cumsum(a), np.cumsum(b)])
        middle = (steps[1:] + steps[:-1]) / 2
        i, j = (np.minimum(np.searchsorted(np.cumsum(w), middle), len(w) - 1) for w in (a, b))
        assert reference.exact_cost(a, b, C) == pytest.approx(float(np.diff(steps) @ C[i, j]), abs=1e-9)


def test_regularised_cost_tends_to_the_exact_one():
    p = problems.HARD[3]
    exact = reference.exact_cost(p.a, p.b, p.C)
    gaps = [reference.optimum(p.a, p.b, p.C, eps).cost - exact for eps in (0.3, 0.1, 0.03, 0.01)]
    assert gaps == sorted(gaps, reverse=True) and 0 < gaps[-1] < 0.05 * gaps[0]


def test_generators_are_what_they_claim():
    for p in problems.HARD:
        a, b = np.atleast_2d(p.a), np.atleast_2d(p.b)
        np.testing.assert_allclose(a.sum(axis=1), b.sum(axis=1), rtol=1e-12)
        assert (a >= 0).all() and (b >= 0).all()
    by_name = {p.name: p for p in problems.HARD}
    assert (by_name["empty bins"].a == 0).mean() > 0.3
    assert 0 < by_name["weights down to 1e-195"].a.min() < 1e-194
    assert 0 < by_name["far-apart Gaussians"].a.min() < 1e-190
    assert np.isinf(by_name["forbidden pairs"].C).mean() > 0.4
    assert by_name["a cost per problem"].C.ndim == 3
    # Float32 kernel and even log-domain numbers are strained: cost / eps beyond exp's range.
    assert by_name["large cost / eps"].C.max() / by_name["large cost / eps"].eps > 1000


def test_each_walks_a_batch_with_broadcasting():
    a, b, C = np.ones((3, 2)), np.ones(4), np.zeros((2, 4))
    shapes = reference.each(lambda *one: tuple(x.shape for x in one), a, b, C)
    assert shapes == [((2,), (4,), (2, 4))] * 3


# The rules about tests that are skipped


def run_suite(folder, **environment):
    """Run this conftest on two small tests in a process where CuPy cannot be imported; (exit status, last line)."""
    shutil.copy(Path(__file__).parent / "conftest.py", folder)
    (folder / "cupy.py").write_text("raise ImportError('no CuPy here')")
    (folder / "test_it.py").write_text(
        "import pytest\n\n"
        "def test_both(xp):\n    assert xp.owns(xp([1.0]))\n\n"
        "@pytest.mark.gpu\ndef test_device():\n    raise AssertionError('must not run')\n\n"
        "def test_writes(xp):\n    xp([1.0])[0] = 2.0\n"
    )
    # A file that is skipped as a whole has a report of another kind, which must not stop the summary.
    (folder / "test_whole.py").write_text("import pytest\n\npytest.importorskip('no_such_package')\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-ra",
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
        "--rootdir",
        str(folder),
        str(folder),
    ]
    ours = {"CUSINK_REQUIRE_GPU", "CUSINK_REQUIRE_EXTRAS", "PYTEST_ADDOPTS"}
    variables = {k: v for k, v in os.environ.items() if k not in ours} | environment
    answer = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=variables | {"PYTHONPATH": str(folder)}
    )
    return answer.returncode, answer.stdout.strip().splitlines()[-1]


def test_skipped_gpu_tests_are_counted_in_the_last_line_and_inputs_are_read_only(tmp_path):
    status, last = run_suite(tmp_path)
    assert status == 1 and "3 skipped for want of a GPU" in last
    assert "1 passed" in last and "1 failed" in last  # what writes to its input fails


def test_skipped_tests_fail_where_a_gpu_and_all_packages_are_required(tmp_path):
    status, last = run_suite(tmp_path, CUSINK_REQUIRE_GPU="1", CUSINK_REQUIRE_EXTRAS="1")
    assert status == 1 and "for want of a GPU" not in last
    assert "4 errors" in last and "skipped" not in last  # of three tests, and of the file as a whole
