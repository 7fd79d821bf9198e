"""Memory of a call that malloc keeps for the next one."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

import cusink
from cusink.costs import heap

FAULTS = """
import resource, numpy as np
from cusink.costs.heap import keep_heap
def arrays():
    return [np.ones(40_000) for _ in range(8)]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for kept in (False, True):
    if kept:
        keep_heap(8 * 40_000 * 8)
    arrays()
    arrays()
    before = faults()
    for _ in range(10):
        arrays()
    print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_pages_are_not_faulted_in_again():
    """Eight arrays of some 78 pages each, ten times."""
    # What the user's shell asks of malloc stands before anything that a process does.
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    text = subprocess.run([sys.executable, "-c", FAULTS], env=unset, check=True, capture_output=True, text=True).stdout
    before, after = map(int, text.split())
    assert before > 1000 and after < 100


def test_a_block_is_taken_once_and_is_never_too_large(monkeypatch):
    taken, empty = [], np.empty
    monkeypatch.setattr(heap, "_kept", 0)
    monkeypatch.setattr(heap.np, "empty", lambda size, dtype: taken.append(size) or empty(0))
    for size in (1000, 10, 1000, 1001, 1 << 40, 1 << 30):
        heap.keep_heap(size)
    assert taken == [1000, 1001, heap.MOST_KEPT]


def test_a_single_problem_keeps_some_arrays_of_its_size(monkeypatch):
    kept = []
    monkeypatch.setattr("cusink.solver.newton.keep_heap", kept.append)
    rng = np.random.default_rng(0)
    assert cusink.sinkhorn(None, None, rng.random((30, 40)), eps=1e-3).converged
    assert kept and min(kept) >= 8 * 30 * 40 * 8
