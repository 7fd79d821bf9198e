"""The benchmark of an index runs, proposes what is nearest bin by bin, and says itself what is missed."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from benchmarks import index as bench  # noqa: E402


def test_candidates_are_the_nearest_bin_by_bin():
    rng = np.random.default_rng(0)
    A, B = rng.random((3, 7)), rng.random((40, 7))
    found = bench.proposals(A, B)(6)
    want = np.argsort(((A[:, None] - B) ** 2).sum(axis=2), axis=1)[:, :6]
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("slow", [False, True])
def test_searches_that_stop_early_are_judged(monkeypatch, slow):
    monkeypatch.setattr(bench, "ANYTIME", {"small": (8, "sqeuclidean", "reg_cost", 0.05, 2, slow)})
    monkeypatch.setattr(bench, "SHARES", (0.05,))
    found = bench.anytime("small", quick=True)
    names = [row["search"] for row in found["rows"]]
    assert names == ["full", "solve_at_most 5%", "candidates, faiss 5%", "faiss alone"]
    assert found["rows"][0]["recall"] == 1 and 0 < found["rows"][3]["recall"] < 1
    (target,) = found["targets"]
    judged = found["rows"][1]
    fast = not slow or judged["times faster"] >= 3
    assert target["met"] == (judged["recall"] >= 0.99 and fast) and ("3 x" in target["wanted"]) == slow


def test_the_linear_program_is_timed_and_its_neighbours_compared(monkeypatch):
    monkeypatch.setattr(bench, "ANYTIME", {"small": (8, "euclidean", "cost", 0.003, 2, True)})
    monkeypatch.setattr(bench, "ROUNDS", 1)
    found = bench.exact(quick=True, name="small")
    assert found["share"] >= 0.9 and found["scaled"] > 0
    assert found["targets"][0]["met"] == (found["scaled"] / found["times"]["nearest"] >= 20 and found["share"] == 1)


def test_growth_and_a_mapped_index_are_judged(monkeypatch):
    monkeypatch.setattr(bench, "ROUNDS", 1)
    assert bench.growth((200, 400))["targets"][0]["against"] == "time"
    found = bench.load(200, side=8)
    assert [target["wanted"] for target in found["targets"]] == ["<= 1/3", "<= 1.2 x their memory"]
    assert not found["targets"][1]["met"]  # what Python takes is more than so few items
