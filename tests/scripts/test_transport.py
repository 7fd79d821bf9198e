"""The animation shows two shapes that a plan joins."""

import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if not SCRIPTS.exists():
    pytest.skip("the scripts are not beside the tests", allow_module_level=True)
pytest.importorskip("matplotlib")
sys.path.insert(0, str(SCRIPTS / "examples"))

import transport  # noqa: E402


def test_dots_begin_in_the_disc_and_end_in_the_letters():
    source, target = transport.disc(150), transport.letters("OT", 150)
    assert np.linalg.norm(source, axis=1).max() < 0.55 and np.abs(target).max() < 0.86
    hole = np.linalg.norm(target - [-0.37, 0], axis=1).min()  # of the O, left of the middle
    assert hole > 0.08
    moved = transport.destinations(source, target)
    assert np.linalg.norm(moved[:, None] - target, axis=2).min(axis=1).max() < 0.1
    # Shapes that lie about one centre: the means agree, as mass is kept.
    np.testing.assert_allclose(moved.mean(axis=0), target.mean(axis=0), atol=0.01)


def test_the_command_writes_an_animation(tmp_path, capsys):
    from PIL import Image

    path = tmp_path / "new" / "t.gif"
    assert transport.main(["--points", "30", "--frames", "3", "--output", str(path)]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    with Image.open(path) as animation:
        assert animation.n_frames >= 4


def test_bad_input_is_refused_in_one_line(capsys):
    assert transport.main(["--frames", "0"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("transport: argument --frames") and err.count("\n") == 1
