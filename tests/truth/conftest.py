"""Inputs whose results are not right yet: `open.json` lists their tests, which must fail until they are mended."""

import json
from pathlib import Path

import pytest

OPEN = frozenset(json.loads((Path(__file__).parent / "open.json").read_text("utf-8")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect the listed tests to fail; some differ by rounding alone, and may pass on another machine."""
    for item in items:
        if f"{item.path.name}::{item.nodeid.partition('::')[2]}" in OPEN:
            item.add_marker(pytest.mark.xfail(reason="listed in open.json"))
