"""The benchmark of proved gaps calls an interval wrong that lies beside the cost, or that is too wide."""

import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "benchmarks").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from benchmarks import gap as bench  # noqa: E402


@pytest.mark.parametrize(("factors", "verdict"), [((1, 1), "right"), ((1.1, 1.1), "WRONG"), ((0.9, 1.1), "WRONG")])
def test_intervals_are_held_to_the_peer_and_to_the_gap(monkeypatch, capsys, factors, verdict):
    images = np.random.default_rng(0).dirichlet(np.ones(16), 4)
    solve = bench.ours
    monkeypatch.setattr(bench, "SIDE", 4)
    monkeypatch.setattr(bench, "ours", lambda *given: [f * x for f, x in zip(factors, solve(*given), strict=True)])
    bench.run("noise", images, 1)
    first, second = capsys.readouterr().out.splitlines()
    assert f"| cusink | {verdict}, " in first and "| POT | exact |" in second
