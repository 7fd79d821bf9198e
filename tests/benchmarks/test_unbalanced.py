"""The benchmark of unbalanced transport gives right answers, and calls a wrong one wrong. No peer is needed."""

import sys
from functools import partial
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "benchmarks").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from benchmarks import unbalanced as bench  # noqa: E402


def test_the_reference_tells_right_answers_from_wrong_and_missing_ones(monkeypatch, capsys):
    monkeypatch.setattr(bench, "SIDE", 5)

    def missing(*_):
        raise ImportError

    competitors = {"cusink": bench.ours, "wrong": lambda a, *_: a.sum(axis=1), "missing": missing}
    bench.run_case(0.05, 0.5, 4, 2, 2, competitors)
    right, wrong, absent = (line.split(" | ")[2:5] for line in capsys.readouterr().out.splitlines())
    assert right[0] == "cusink" and right[1].startswith("right")
    assert wrong[0] == "wrong" and wrong[1].startswith("WRONG") and wrong[2].endswith("s")
    assert absent == ["missing", "not installed", ""]


def test_gradients_on_clouds_are_held_to_differences(capsys):
    bench.run_gradients(12, 3, "float64", 2)
    bench.run_gradients(12, 3, "float32", 1)
    # The gradient of another value, which is what a mistaken one would be.
    bench.run_gradients(12, 3, "float64", 1, partial(bench.gradients, value="grad_reg_cost"))
    verdicts = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert all(len(row) == 9 for row in verdicts)
    right, single, wrong = (row[3] for row in verdicts)
    assert right.startswith("right") and single.startswith("right") and wrong.startswith("WRONG")
    assert float(right.split(", ")[1]) < 1e-6
