"""The benchmark of hard problems runs, and none of cusink's answers is wrong."""

import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from benchmarks import hard  # noqa: E402


def test_every_problem_is_solved(capsys):
    hard.main(["--rounds", "1", "--eps", "0.01", "0.001"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ") and " eps " not in line]
    assert len(rows) == 2 * len(hard.problems())
    assert not [row for row in rows if "WRONG" in row.split("|")[3]]


def test_a_wrong_plan_is_shown_as_wrong():
    problem = hard.uniform(3), hard.uniform(3), None
    found = hard.timed(lambda a, b, C, eps: (a[:, None] * b * 1.01, 7), problem, 1.0, 1)
    assert hard.cell(*found).startswith("WRONG")
    assert hard.cell(*hard.timed(lambda a, b, C, eps: (a[:, None] * b, 7), problem, 1.0, 1)).endswith("(7)")
