"""scripts/examples/shapes.py: its shapes and weights, and what the command says and draws."""

import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not (SCRIPTS / "examples").exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from examples import shapes as script  # noqa: E402


def test_shapes_and_weights():
    A = script.shapes(32)
    np.testing.assert_allclose(A.sum(axis=1), 1)
    images = A.reshape(4, 32, 32)
    np.testing.assert_allclose(images, images[:, :, ::-1], atol=1e-15)  # all four are their own mirror images
    weights = script.bilinear(3)
    np.testing.assert_array_equal(weights[[0, 2, 6, 8]], np.eye(4))
    np.testing.assert_array_equal(weights[4], np.full(4, 0.25))


def test_the_command_tells_sharpness_and_draws(tmp_path, capsys):
    path = tmp_path / "picture.png"
    assert script.main(["--pixels", "12", "--steps", "2", "--eps", "0.01", "--output", str(path)]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    assert float(rows["barycenter"][-1]) < float(rows["debiased"][-1]) <= float(rows["average"][-1]) * 1.1
    assert float(rows["debiased"][2]) <= 1e-3
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", [["--pixels", "3"], ["--steps", "1"], ["--eps", "-1"], ["--nonsense"]])
def test_bad_arguments_are_one_line(words, capsys):
    assert script.main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
