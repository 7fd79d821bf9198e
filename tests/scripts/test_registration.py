"""scripts/examples/registration.py: Newton's method finds the map in a third of the steps, and of the solves."""

import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
if not (SCRIPTS / "examples").exists():
    pytest.skip("the examples are in the checkout only", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from examples import registration  # noqa: E402


def test_newton_takes_a_third_of_the_steps_and_of_the_solves():
    source, target, truth = registration.clouds(40, 0)
    newton, of_newton = registration.register(source, target, "Newton-CG")
    guessed, of_guesses = registration.register(source, target, "L-BFGS-B")
    np.testing.assert_allclose(newton.x, truth, atol=1e-5)
    np.testing.assert_allclose(guessed.x, truth, atol=1e-3)
    assert newton.success and guessed.success and of_newton.products > newton.nit
    assert 3 * newton.nit <= guessed.nit
    assert 3 * of_newton.solves <= of_guesses.solves


def test_the_command_says_what_both_methods_take(capsys):
    assert registration.main(["--points", "15"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[2].startswith("| Newton-CG") and lines[3].startswith("| L-BFGS-B")
    steps = [int(line.split(" | ")[1]) for line in lines[2:]]
    assert 3 * steps[0] <= steps[1]
    assert registration.main(["--points", "none"]) == 2
