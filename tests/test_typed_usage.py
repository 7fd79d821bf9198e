"""Programs that call the package pass mypy --strict, and the errors that they should make are found."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")

ROOT = Path(__file__).parents[1]


def test_typed_programs_pass():
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "tests/typed_usage.py"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = [line for line in answer.stdout.splitlines() if line.startswith("tests/")]
    assert not said and not answer.stderr, "\n".join(said) + answer.stderr
