"""What is drawn: a module for each subject, with `draw`, `check` and `SHOW`, the last lines of a script."""

import importlib
from typing import Any

NAMES = (
    "solver",
    "gradients",
    "neighbours",
    "documents",
    "clouds",
    "pairs",
    "grids",
    "divergence",
    "barycenters",
    "bridges",
    "stores",
    "input",
)


def subject(name: str) -> Any:
    """Return the module of a subject."""
    return importlib.import_module(f"fuzzing.subjects.{name}")
