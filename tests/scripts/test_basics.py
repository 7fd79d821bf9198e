"""The few lines of scripts/examples/basics.py: the right plan, and what the command says and draws."""

import sys
from pathlib import Path

import numpy as np
import pytest
import reference as oracle

import cusink

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "examples").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from examples import basics as few  # noqa: E402


def oblong():
    """Draw a problem of different sizes whose cost is not symmetric and not scaled."""
    rng = np.random.default_rng(0)
    return 5 * rng.random((7, 11)), rng.dirichlet(np.ones(7)), rng.dirichlet(np.ones(11))


def north_west(a, b):
    """Return the plan that fills from one corner: optimal on a line for a convex cost."""
    edges = np.unique(np.concatenate([[0], np.cumsum(a), np.cumsum(b)]))
    P = np.zeros((len(a), len(b)))
    middle = (edges[1:] + edges[:-1]) / 2
    at = [np.minimum(np.searchsorted(np.cumsum(w), middle), len(w) - 1) for w in (a, b)]
    np.add.at(P, tuple(at), np.diff(edges))
    return P


@pytest.mark.parametrize("eps", [0.5, 0.03])
def test_the_few_lines_give_the_plan_of_cusink_and_of_the_oracle(eps):
    C, a, b = oblong()
    P, cost = few.sinkhorn(C, a, b, eps, iterations=3000)
    result = cusink.sinkhorn(a, b, C / C.max(), eps=eps, tol=1e-13)
    np.testing.assert_allclose(P, result.plan(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(P.sum(axis=0), b, rtol=0, atol=1e-14)
    assert cost == pytest.approx(oracle.optimum(a, b, C, eps * C.max())[0], rel=1e-10)
    assert cost == pytest.approx(C.max() * float(result.cost), rel=1e-12)


def test_the_exact_plan_is_the_one_that_keeps_the_order():
    x = np.linspace(0, 1, 30)
    a, b = few.distributions(x)
    np.testing.assert_allclose(few.exact(cusink.cost_matrix(x), a, b), north_west(a, b), rtol=0, atol=1e-9)
    C, a, b = oblong()
    P = few.exact(C, a, b)
    np.testing.assert_allclose([*P.sum(axis=1), *P.sum(axis=0)], [*a, *b], atol=1e-12)
    assert (P * C).sum() == pytest.approx(oracle.exact_cost(a, b, C))


def test_the_command_compares_and_draws(tmp_path, capsys):
    path = tmp_path / "new" / "picture.png"
    words = ["--bins", "40", "--eps", "0.02", "0.1", "2e-4", "--iterations", "2000", "--output", str(path)]
    assert few.main(words) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:7]]
    assert [row[0] for row in rows] == ["exact", "0.02", "0.1", "0.0002"]
    exact, small, large, tiny = (float(row[1]) for row in rows)
    assert exact < small < large and np.isnan(tiny)
    assert all(row[1] == row[2] and float(row[3]) < few.SAME for row in rows[1:3])
    assert rows[3][3:] == ["out", "of", "range"] and exact <= float(rows[3][2]) < small
    assert path.read_bytes().startswith(b"\x89PNG")


def test_plans_that_differ_are_told_by_the_exit_status(tmp_path, capsys):
    words = ["--bins", "40", "--eps", "0.02", "--iterations", "3", "--output", str(tmp_path / "picture.png")]
    assert few.main(words) == 1
    assert "Raise --iterations" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--bins", "1"], ["--eps", "0"], ["--iterations", "0"], ["--nonsense"]])
def test_bad_arguments_are_one_line(words, capsys):
    assert few.main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
