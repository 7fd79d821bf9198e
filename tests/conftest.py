"""Array libraries for tests (`xp`), and the rule that no GPU test is dropped in silence.

A test that takes `xp` runs once per array library: NumPy always, CuPy as a test marked ``gpu``. Tests so marked are
skipped where there is no GPU, the last line of the run counts them, and ``CUSINK_REQUIRE_GPU=1`` makes every such skip
a failure. ``CUSINK_REQUIRE_EXTRAS=1`` does so with tests, and whole files, that miss a package or a compiler: one that
fails to install would otherwise take its tests out of the run.
"""

import dataclasses
import functools
import gc
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

# The oracle and the problems are modules beside the tests, whatever import mode pytest runs in.
sys.path.insert(0, str(Path(__file__).parent))

SKIPPED_GPU = "skipped for want of a GPU"
MISSING = re.compile(r"could not import '(?!cupy)|no g\+\+ to build")  # as reasons say it; CuPy needs a driver


@functools.cache
def missing_gpu():
    """Why no test can run on a GPU here; an empty string if one can."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error})"
    try:
        cupy.cuda.runtime.getDevice()
        cupy.zeros(1).sum()
    except Exception as error:  # whatever the driver says, it is the reason
        return f"CuPy finds no usable GPU ({type(error).__name__}: {error})"
    return ""


class ArrayLibrary:
    """Makes read-only inputs in one array library, and proves in the end that nobody has written to them."""

    def __init__(self, name):
        self.name = name
        self._made = []

    def __call__(self, values, dtype=None):
        """Return an array of this library; NumPy's are read-only."""
        host = np.array(values, dtype=dtype)
        if self.name == "numpy":
            array = host
            array.flags.writeable = False
        else:
            import cupy

            array = cupy.asarray(host)
        self._made.append((array, host.copy()))
        return array

    @staticmethod
    def numpy(array):
        """Return the values of an array of any library."""
        return array.get() if hasattr(array, "get") else np.asarray(array)

    def owns(self, array):
        """Whether the array belongs to this library."""
        return type(array).__module__.split(".")[0] == self.name

    def check_untouched(self):
        for array, original in self._made:
            np.testing.assert_array_equal(self.numpy(array), original, err_msg="an input was written to")


@pytest.fixture(params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    library = ArrayLibrary(request.param)
    yield library
    library.check_untouched()


@pytest.fixture
def limits(monkeypatch):
    """Replace limits of the NumPy backend for one test: ``limits(dense_block_entries=50)``."""
    from cusink.backends.numpy import limits as module

    def replace(**fields):
        monkeypatch.setattr(module, "LIMITS", dataclasses.replace(module.LIMITS, **fields))

    return replace


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU and CuPy")
    if not config.getini("filterwarnings"):  # the suite may run beside an installed wheel, without pyproject.toml
        config.addinivalue_line("filterwarnings", "error")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Spare the garbage collector a million objects, of libraries and of tests, that live to the end of the run."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and missing_gpu():
        pytest.skip(missing_gpu())


def is_set(variable):
    """Whether a variable of the environment asks for something."""
    return os.environ.get(variable, "0") not in {"", "0"}


def fail_for_want_of_extras(report):
    """Turn the skip of a test, or of a file, for want of a package or a compiler into a failure, if that is asked."""
    if report.skipped and is_set("CUSINK_REQUIRE_EXTRAS") and MISSING.search(str(report.longrepr)):
        report.outcome = "failed"
        report.longrepr = f"CUSINK_REQUIRE_EXTRAS is set, and a test was skipped: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return fail_for_want_of_extras((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = fail_for_want_of_extras((yield))
    if (
        is_set("CUSINK_REQUIRE_GPU")
        and report.skipped
        and item.get_closest_marker("gpu")
        and not hasattr(report, "wasxfail")
    ):
        report.outcome = "failed"
        report.longrepr = f"CUSINK_REQUIRE_GPU is set, and a GPU test was skipped: {report.longrepr}"
    return report


def pytest_report_teststatus(report):
    # The report of a whole file that is skipped has no keywords.
    if report.skipped and "gpu" in getattr(report, "keywords", ()) and not hasattr(report, "wasxfail"):
        return SKIPPED_GPU, "s", "SKIPPED (GPU)"
    return None
