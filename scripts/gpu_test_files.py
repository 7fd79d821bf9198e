#!/usr/bin/env python3
"""Print the files of tests that have GPU tests and can be imported here; say on stderr which cannot, and why."""

import ast
import importlib.util
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"


def has_gpu_tests(text):
    """Whether a file has a test marked ``gpu``, or one that takes the fixture `xp`."""
    return "mark.gpu" in text or any(
        isinstance(node, ast.FunctionDef) and "xp" in {argument.arg for argument in node.args.args}
        for node in ast.walk(ast.parse(text))
    )


def missing(text):
    """Return the first package that a file imports at its top and that is not installed, or None."""
    for node in ast.parse(text).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for package in (name.partition(".")[0] for name in names):
                ours = (TESTS / package).exists() or (TESTS / f"{package}.py").exists() or package == "cusink"
                if not ours and importlib.util.find_spec(package) is None:
                    return package
    return None


def main():
    """Print the files, one a line."""
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if not has_gpu_tests(text):
            continue
        name = path.relative_to(TESTS.parent)
        if package := missing(text):
            print(f"left out: {name} needs {package}", file=sys.stderr)
        else:
            print(name)


if __name__ == "__main__":
    main()
