"""The benchmark of grids gives right answers to the same problem, and calls a wrong one wrong. No peer is needed."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "benchmarks").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from benchmarks import grid as bench  # noqa: E402
from benchmarks.harness import works  # noqa: E402


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("empty", [False, True])
def test_all_solve_one_problem_and_a_wrong_answer_shows(empty, dtype, monkeypatch, capsys):
    monkeypatch.setattr(bench, "SIDE", 12)
    monkeypatch.setitem(bench.COMPETITORS, "wrong", (lambda work: lambda: work.a.sum(axis=1), "weights", 1))
    monkeypatch.setitem(bench.COMPETITORS, "missing", (lambda work: 1 / 0, "weights", None))
    work = bench.pairs(empty, 0.1, 3)
    assert (work.a == 0).any() == empty
    with np.errstate(all="ignore"):
        bench.run_work(work.cast(dtype), partial(works.reference_pairs, work), 2, ["OTT"])
    lines = capsys.readouterr().out.splitlines()
    rows = dict(line[2:].split(" | ", 1) for line in lines if line.startswith("| ") and not line.startswith("| | "))
    assert "OTT" not in " ".join(rows)
    assert rows.pop("wrong").startswith("WRONG: off by") and rows.pop("missing").startswith("FAILED: ZeroDivision")
    assert len(rows) == 3 and all(row.startswith("right") for row in rows.values())


def test_euclidean_ways_solve_one_problem_and_a_wrong_one_shows(monkeypatch, capsys):
    bench.run_euclidean((4, 5), 2, 0.1, "float32", 1)
    ways = bench.euclidean_ways
    monkeypatch.setattr(
        bench, "euclidean_ways", lambda *args: ways(*args) | {"PointCloud": ways(*args)["stored C"] * 2}
    )
    bench.run_euclidean((4, 5), 2, 0.1, "float32", 1)
    right, wrong = capsys.readouterr().out.splitlines()
    assert "| right |" in right and "| WRONG: PointCloud |" in wrong
