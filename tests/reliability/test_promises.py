"""The table of promises in docs/reliability.md names tests that exist, in every row."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def defined(path):
    """Name the tests of a file."""
    return {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED.findall(PAGE.read_text())}))
def test_every_test_that_is_named_exists(path):
    named = {name for file, name in NAMED.findall(PAGE.read_text()) if file == path}
    assert named <= defined(path), named - defined(path)


def test_every_promise_is_held_by_a_test():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith("| promise |")]
    assert len(promises) > 30 and all(NAMED.search(row) for row in promises)


def test_every_test_of_reliability_is_named():
    named = {name for _, name in NAMED.findall(PAGE.read_text())}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path != Path(__file__):
            tests = {name for name in defined(path.relative_to(ROOT)) if name.startswith("test_")}
            assert tests <= named, tests - named


def test_what_peers_check_names_tests_that_exist():
    """In docs/migration.md test of tests/gradients/test_peers.py is named, and every row has a test or a reason."""
    page = (ROOT / "docs" / "migration.md").read_text()
    section = page.split("## What the tests of their derivatives check")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ") and "| here |" not in line]
    own = {name for name in defined("tests/gradients/test_peers.py") if name.startswith("test_")}
    named = set(re.findall(r"`(test_\w+)`", " ".join(row[1] for row in rows)))
    everywhere = {name for path in (ROOT / "tests").rglob("test_*.py") for name in defined(path.relative_to(ROOT))}
    assert own <= named <= everywhere, (own - named, named - everywhere)
    for path in re.findall(r"`(tests/[\w/]+(?:\.py)?)/?`", section):
        assert (ROOT / path).exists(), path
    assert len(rows) > 30
    for theirs, here in rows:
        assert "test" in here or "apply" in here, theirs
