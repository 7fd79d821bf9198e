"""The benchmark of retrieval: it must tell a wrong answer and memory above the limit."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from benchmarks import retrieval as bench  # noqa: E402
from benchmarks.harness import works  # noqa: E402

import cusink  # noqa: E402

PEER = ("NumPy", "sinkhorn", 10, 2.5e-5)


def solve_batch(M, reg, a, b, *, max_iter, tol, method, grad):
    """Stands in for POT, whose import alone takes longer than these tests: its arguments, a plain iteration."""
    K, g = np.exp(-M.astype(float) / reg), np.ones_like(b, float)
    for _ in range(200):
        f = a / np.einsum("bij,bj->bi", K, g)
        g = b / np.einsum("bij,bi->bj", K, f)
    plan = f[:, :, None] * K * g[:, None, :]
    return SimpleNamespace(plan=plan, value_linear=(plan * M).sum(axis=(1, 2)))


@pytest.fixture
def few_digits(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", SimpleNamespace(batch=SimpleNamespace(solve_batch=solve_batch)))
    monkeypatch.setitem(sys.modules, "ot.batch", sys.modules["ot"].batch)
    images = np.random.default_rng(0).integers(0, 5, (12, 9)).astype(np.float32) + 1
    images[:, 4] = 0
    weights = images / images.sum(axis=1, keepdims=True)
    C = works.squared_grid_cost(3, 3).astype(np.float32)
    work = works.Retrieval("digits", weights, weights, C, 0.05, bench.TOL_ALL)
    monkeypatch.setattr(bench, "all_digits", lambda count: work)
    monkeypatch.setattr(bench, "SIZES", {True: (12, 8, 4)})
    monkeypatch.setattr(bench, "POT", [PEER])


def full_row():
    return bench.full_row(SimpleNamespace(quick=True, repeats=1), time.process_time, 0)


def test_all_digits_are_checked_and_timed_beside_the_peer(few_digits, capsys):
    outcome = full_row()
    ours, peer = outcome["entries"]
    assert ours["verdict"] == peer["verdict"] == "right"
    assert peer["ratio"][0] == pytest.approx(peer["times"][0] / ours["times"][0])
    whole = outcome["whole"]
    assert (whole["pairs"], whole["converged"], whole["of"]) == (78, 144, 144)
    bench.print_full(outcome)
    assert "144 of 144" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["values", "one pair not converged"])
def test_a_wrong_matrix_meets_no_target(few_digits, monkeypatch, fault):
    solve = cusink.distance_matrix

    def wrong(*args, **options):
        result = solve(*args, **options)
        if fault == "values":
            result.distances[...] *= 1.1
        else:
            result.converged[-1, -1] = False
        return result

    monkeypatch.setattr(cusink, "distance_matrix", wrong)
    outcome = full_row()
    assert outcome["entries"][0]["verdict"].startswith("WRONG")
    assert not any(target["met"] for target in outcome["targets"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_above_the_limit_is_seen_from_outside(capsys):
    outcome = bench.memory_row(None, ["idle", "idle-more"], (24e6,))
    within, above = outcome["entries"]
    # The process may take a few pages beside the array.
    assert 23e6 < within["taken"] < 26e6 and 47e6 < above["taken"] < 50e6
    assert not above["met"]
    bench.print_memory(outcome)
    assert "MISSED" in capsys.readouterr().out
