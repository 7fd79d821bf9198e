"""What the package takes from CuPy is there, in the oldest release for CUDA 12 and the newest for CUDA 13.

The names, keywords, methods and attributes come from the source of the package by ast, the answers from the modules of
the wheels, which import without a driver. The kernels go through CuPy's own compiler call.
"""

import json

import pytest
from emulated import cupy_stand_in, device_arrays
from kernels import resources

import wheels
from wheels.builds import CUDA12, CUDA13, builds
from wheels.used_names import used

CUPY = pytest.mark.parametrize("name", wheels.NAMES)


def missing(name, question):
    """Return what a CuPy lacks of a question, as `used_names.Used` has it."""
    answer = wheels.ask(name, "ask_names.py", json.dumps({kind: list(parts) for kind, parts in question.items()}))
    return answer["missing"]


@CUPY
def test_cupy_has_all_that_the_package_uses(name):
    found = used()
    assert "cuda.runtime.getDevice" in found.chains and ("RawModule", "backend") in found.keywords
    assert ("astype", "copy") in found.methods and "MultiProcessorCount" in found.attributes
    lacking = missing(name, found._asdict())
    assert not lacking.pop("unknown")
    places = {
        str(part): getattr(found, kind)[tuple(part) if isinstance(part, list) else part]
        for kind, parts in lacking.items()
        for part in parts
    }
    assert not places, f"the CuPy for {name} has no {places}"


@CUPY
def test_cupy_has_all_that_the_gpu_s_scripts_use(name):
    """A name that is not there would cost the minutes of a GPU that they are made for."""
    paths = [wheels.ROOT / "scripts" / "gpu_truth.py", *(wheels.ROOT / "scripts" / "benchmarks" / "gpu").glob("*.py")]
    if not paths[0].exists():
        pytest.skip("the scripts are not beside the tests")
    found = used([(path.name, path.read_text()) for path in paths])
    assert "get_default_memory_pool" in found.chains and "cuda.Event" in found.chains
    lacking = missing(name, found._asdict() | {"methods": []})  # most of their arrays are NumPy's
    assert not any(lacking.values()), lacking


PLANTED = """
import cupy as cp
from cupy.cuda import runtime

def broken(x, cost):
    found = cp.cuda.Device(0).attributes["ComputeCapabilityMajor"]
    top = cp.max(x, initial=0) + x.sum(where=x > 0) + cost.xp.vecdot_of(x, x) + cp.cuda.Stream(nonblocking=True)
    return x.to_device("cpu"), runtime.getDevices(), found, top
"""


@CUPY
def test_what_cupy_lacks_is_found(name):
    lacking = missing(name, used([("planted.py", PLANTED)])._asdict())
    assert lacking["attributes"] == ["ComputeCapabilityMajor"]
    assert sorted(lacking["chains"]) == ["cuda.runtime.getDevices", "vecdot_of"]
    assert sorted(lacking["keywords"]) == [["cuda.Stream", "nonblocking"], ["max", "initial"]]
    assert sorted(lacking["methods"]) == [["sum", "where"], ["to_device", ""]]


def offered(part, stands_for):
    """Return the names that a class of a stand-in offers, as names inside CuPy."""
    own = {name for name in vars(part) if name.startswith("__") or not name.startswith("_")}
    own -= {
        "__getattr__",
        "__module__",
        "__dict__",
        "__weakref__",
        "__doc__",
        "__firstlineno__",
        "__static_attributes__",
    }
    return [f"{stands_for}.{name}" for name in sorted(own)]


@CUPY
def test_the_stand_ins_offer_nothing_that_cupy_lacks(name):
    ours = cupy_stand_in
    chains = [
        *offered(device_arrays.ndarray, "ndarray"),
        *offered(ours.Stream, "cuda.Stream"),
        *offered(ours.Graph, "cuda.Graph"),
        *(f"cuda.runtime.{part}" for part in vars(ours.module().cuda.runtime)),
        *(path for path in offered(ours.Linalg, "_core._routines_linalg") if not path.endswith(("set_to", "rounded"))),
        *(path for path in offered(ours.Device, "cuda.Device") if not path.endswith((".current", ".count"))),
        *(f"ndarray.{part}" for part in (*device_arrays.METHODS, *device_arrays.ATTRIBUTES)),
        "linalg.solve",
        "RawKernel.max_dynamic_shared_size_bytes",
        "cuda.memory.OutOfMemoryError",
    ]
    refused = [(method, keyword) for method in ("max", "min", "sum", "any") for keyword in device_arrays.NOT_IN_CUPY]
    lacking = missing(name, {"chains": chains, "keywords": refused, "methods": [], "attributes": ours.ATTRIBUTES})
    assert (lacking["chains"], lacking["attributes"]) == ([], [])
    # and what they refuse, CuPy refuses too
    assert sorted(map(tuple, lacking["keywords"])) == sorted(refused)


@pytest.mark.parametrize(("name", "jobs"), [("cuda12", CUDA12), ("cuda13", CUDA13)])
def test_cupy_compiles_the_kernels_without_spills(name, jobs):
    for job, build in builds(name, jobs).items():
        assert not build.error, (job, build.error)
        assert build.binary[:4] == b"\x7fELF" and "warning" not in build.log, (job, build.log)
        for kernel, used_up in resources.parse(build.log).items():
            assert (used_up.stack, used_up.spills) == (0, 0), (name, job, kernel, used_up)


def test_nvrtc_13_builds_every_dtype_for_the_oldest_and_the_newest_capability():
    combinations = {job[1:] for job in CUDA13}
    assert combinations == {(dtype, at) for dtype in ("float32", "float64") for at in (75, 90, 100, 120)}


def test_what_cupy_s_compiler_refuses_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "CACHE", tmp_path)
    broken = tmp_path / "broken.cu"
    broken.write_text('extern "C" __global__ void k(REAL* x) {\n    x[0] = y;\n}\n')
    (build,) = builds("cuda12", [(str(broken), "float32", 80)]).values()
    assert 'broken.cu(2): error: identifier "y" is undefined' in build.error
