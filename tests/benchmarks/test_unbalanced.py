"""The benchmark of unbalanced transport gives right answers, and calls a wrong one wrong. No peer is needed."""

import sys
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
