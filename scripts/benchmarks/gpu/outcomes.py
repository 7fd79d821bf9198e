"""A plugin of pytest: takes one part of the tests that are left, and notes each outcome as a line of JSON at once.

``GPU_TRUTH_PART`` is "2/6" for every sixth test from the third on, ``GPU_TRUTH_OUTCOMES`` the file that is appended to.
So a process that is killed has lost nothing, and no file of many tests is left to one process.
"""

import json
import os

import pytest


@pytest.hookimpl(trylast=True)  # after the marks have chosen
def pytest_collection_modifyitems(config, items):
    """Keep one part of the tests."""
    part, parts = map(int, os.environ.get("GPU_TRUTH_PART", "0/1").split("/"))
    config.hook.pytest_deselected(items=[item for k, item in enumerate(items) if k % parts != part])
    items[:] = items[part::parts]
    note(tests=len(items))


def pytest_runtest_logreport(report):
    """Note a test that has passed, and anything that has failed or was skipped."""
    if report.when == "call" or report.outcome != "passed":
        said = "" if report.outcome == "passed" else str(report.longrepr)[-600:]
        note(test=report.nodeid, outcome=report.outcome, said=said)


def pytest_collectreport(report):
    """Note a file that cannot be read."""
    if report.failed:
        note(test=report.nodeid, outcome="failed", said=str(report.longrepr)[-600:])


def pytest_warning_recorded(warning_message):
    """Note a warning, which is no error here."""
    note(warning=f"{warning_message.category.__name__}: {warning_message.message}"[:300])


def pytest_sessionfinish(exitstatus):
    """Note that all tests have run."""
    note(finished=int(exitstatus))


def note(**line):
    """Append a line to the file of outcomes."""
    if path := os.environ.get("GPU_TRUTH_OUTCOMES"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
