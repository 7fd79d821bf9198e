"""The steps of ``gpu_truth.py``: each yields what it finds, row by row, as plain numbers and words."""

import concurrent.futures
import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import time

import numpy as np
from benchmarks.gpu import counters, large, machines, peers, predict, proofs, training, workload
from benchmarks.gpu import kernels as bench
from benchmarks.gpu.cases import FOLDER, all_cases
from benchmarks.gpu.clouds import point_cases

ROOT = FOLDER.parents[2]
PACKAGES = ("numpy", "scipy", "cupy-cuda12x", "cupy-cuda13x", "torch", "jax", "ott-jax", "triton", "pytest")
DTYPES = ("float32", "float64")
OPERATORS_S, LEAST_S = 65, 0.02  # for all operators, and of a span that is timed
missing_gpu = bench.missing_gpu
# What the emulated device is taken to be beside the sizes that launches depend on: those of an A100.
EMULATED = {"ClockRate": 1_410_000, "MemoryClockRate": 1_215_000, "GlobalMemoryBusWidth": 5120}
EMULATED |= {"MaxSharedMemoryPerMultiprocessor": 164 << 10}


@contextlib.contextmanager
def device(tiny):
    """Within it there is a GPU: the machine's, or where `tiny` the emulated one of the tests."""
    if not tiny:
        yield
        return
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from emulated import cupy_stand_in, device_arrays

        with device_arrays.device() as (_, workload.LAUNCHED):
            cupy_stand_in.ATTRIBUTES.update(EMULATED)
            yield
    finally:
        sys.path.remove(str(ROOT / "tests"))


def installed(package):
    """Return the version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def facts(tiny):
    """Yield the device, the driver, the versions, and the commit."""
    import cupy

    chosen = cupy.cuda.Device()
    found = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: installed(name) for name in PACKAGES},
        "capability": chosen.compute_capability,
        "attributes": {name: int(value) for name, value in chosen.attributes.items()},
        "commit": bench.commit(),
        "tools": {name: shutil.which(name) for name in ("nvidia-smi", "nvcc", "compute-sanitizer", "ncu")},
        "environment": {key: value for key, value in os.environ.items() if key.startswith(("CUPY_", "CUDA_", "XLA_"))},
    }
    yield found if tiny else found | bench.conditions(cupy)


def build_one(file, dtype):
    """Build a file; return the seconds, and what the driver says of each of its kernels."""
    from cusink.backends.cupy import loader

    started = time.perf_counter()
    kernels = {name: loader.function(file, name, dtype) for name in loader.names(file)}
    fields = ("num_regs", "local_size_bytes", "shared_size_bytes", "max_threads_per_block")
    out = {
        name: {field: int(getattr(kernel, field)) for field in fields if hasattr(kernel, field)}
        for name, kernel in kernels.items()
    }
    return {"seconds": time.perf_counter() - started, "kernels": out}


def build(tiny):
    """Build all kernels in several processes, which fill CuPy's cache of binaries for the steps that follow."""
    from cusink.backends.cupy import loader

    jobs = [(file, dtype) for file in loader.kernel_files() for dtype in DTYPES]
    jobs.sort(key=lambda job: -len(loader.source(job[0])))  # what takes long begins first
    if tiny:
        jobs = [("plan.cu", dtype) for dtype in DTYPES]
        pool = concurrent.futures.ThreadPoolExecutor(1)
    else:
        pool = concurrent.futures.ProcessPoolExecutor(min(16, os.cpu_count() or 1))
    with pool:
        futures = {pool.submit(build_one, *job): job for job in jobs}
        for future in concurrent.futures.as_completed(futures):
            row = dict(zip(("file", "dtype"), futures[future], strict=True))
            try:
                yield row | future.result()
            except Exception as error:  # a file that does not build is a finding
                yield row | {"error": f"{type(error).__name__}: {error}"}


def ulps(found, exact):
    """Return the largest error in units in the last place of numbers of the dtype of `found`."""
    right = exact.astype(found.dtype)
    usual = np.isfinite(exact) & (np.abs(exact) >= np.finfo(found.dtype).tiny)
    return float((np.abs(found[usual].astype(exact.dtype) - exact[usual]) / np.spacing(np.abs(right[usual]))).max())


def transcendental(tiny):
    """Yield the largest errors of the device's exp2 and log2, against the next longer format."""
    import cupy

    from cusink.backends.cupy import loader

    count = 1 << (10 if tiny else 22)
    for dtype, longer in zip(DTYPES, (np.float64, np.longdouble), strict=True):
        x = np.linspace(-120, 120, count).astype(dtype)
        given = cupy.asarray(x)
        powers, logs = cupy.empty(count, dtype), cupy.empty(count, dtype)
        kernel = loader.function(str(FOLDER / "transcendental.cu"), "exp_and_log", dtype)
        kernel((2 if tiny else 1024,), (256,), (powers, logs, given, np.int64(count)))
        wide = x.astype(longer)
        exact = np.log2(np.abs(wide))
        away = np.abs(exact) > 2.0**-3  # near 1 the error of a logarithm is absolute
        yield {
            "dtype": dtype,
            "exp2_ulp": ulps(powers.get(), np.exp2(wide)),
            "log2_ulp": ulps(logs.get()[away], exact[away]),
            "log2_absolute_near_1": float(np.abs(logs.get() - exact)[~away].max(initial=0)),
        }
    yield {"short_log_absolute": short_log(tiny)}


def short_log(tiny):
    """Return the largest error of the logarithm of a mantissa in ``split_step.cu``, which may be 2^-22."""
    import cupy

    from cusink.backends.cupy import loader

    mantissas = np.arange(1 << 23, 1 << 24, 1 << 13 if tiny else 1).astype(np.float32) / np.float32(1 << 23)
    logs = cupy.empty(len(mantissas), np.float32)
    kernel = loader.function(str(FOLDER / "transcendental.cu"), "short_log", "float32")
    kernel((2 if tiny else 1024,), (256,), (logs, cupy.asarray(mantissas), np.int64(len(mantissas))))
    return float(np.abs(logs.get() - np.log2(mantissas.astype(np.float64))).max())


def tiny_cases():
    """Return an operator of each kind, at small sizes."""
    wanted = ("softmin_points", "plan_sum", "split_step")
    points = [case for case in point_cases(70, 45, 3, 6, 5, 12, large=(34, 230)) if case.operator in wanted]
    stored = list(all_cases(sizes=((3, 9, 7),)))
    return [*stored[1:3], *(case for case in points if case.dtype == "float32")]


def operators(tiny):
    """Yield the rates of the device; then a row for each kernel, checked, timed, and beside what is predicted of it."""
    import cupy

    from cusink.backends.cupy import dense, loader

    started = time.perf_counter()
    if tiny:
        cases, rates = tiny_cases(), {"bytes_per_s": 1e9, "exp_per_s": dict.fromkeys(DTYPES, 1e9)}
        timer = peers.once
    else:
        cases = sorted((*all_cases(), *point_cases()), key=lambda case: (case.dtype, case.n < 1000))
        rates = bench.device_rates(cupy, loader)
        timer = lambda xp, call, repeats=5, least=LEAST_S: bench.device_time(xp, call, repeats, min(least, LEAST_S))  # noqa: E731
    yield {"rates": rates}
    here = cupy.cuda.Device()
    machine = machines.machine_of(here.compute_capability, here.attributes, rates)
    for case in cases:
        row = {name: getattr(case, name, 0) for name in ("operator", "cost", "detail", "B", "n", "m", "d", "dtype")}
        row |= {"iterations": case.count, "launches": predict.half_steps(case)}
        if time.perf_counter() - started > OPERATORS_S:
            yield row | {"status": "no time left"}
            continue
        with workload.tensor_cores_always() if tiny else contextlib.nullcontext():
            if found := predict.expected(case, machine):
                row |= {"predicted_ms": found[0], "bound_by": found[1].bound}
            try:
                row |= bench.measure(case, cupy, dense, loader, rates, timer)
            except Exception as error:  # one operator that fails costs no other
                row |= {"status": f"{type(error).__name__}: {error}"[:300]}
        yield row
        if not tiny:
            cupy.get_default_memory_pool().free_all_blocks()


def calls(tiny):
    """Yield the times of user calls and of gradients: on the clock of the host, and by events of the device."""
    import cupy

    import cusink

    rng, timer = np.random.default_rng(0), peers.once if tiny else bench.device_time
    n = 10 if tiny else 100
    C = cupy.asarray(np.subtract.outer(np.arange(n), np.arange(n)) ** 2 / n**2, np.float32)
    options = {"eps": 0.05 if tiny else 1e-3, "tol": None, "max_iter": 5 if tiny else 200}
    for B in (1, 2) if tiny else (1, 10, 100, 1000, 10_000):
        a, b = (cupy.asarray(rng.dirichlet(np.ones(n), B).astype(np.float32)) for _ in range(2))

        def forward(a=a, b=b):
            return cusink.sinkhorn(a, b, C, **options)

        def gradient(value, result):
            found = cusink.sinkhorn_adjoint(result, **{f"grad_{value}": 1.0})
            return found.a, found.b, found.C  # which are made when they are read

        result = forward()
        works = {
            "forward": forward,
            "reg_cost": lambda result=result: gradient("reg_cost", result),
            "cost": lambda result=result: gradient("cost", result),
            "forward_and_reg_cost": lambda forward=forward: gradient("reg_cost", forward()),
            "forward_and_cost": lambda forward=forward: gradient("cost", forward()),
        }
        row = {"B": B, "n": n, "iterations": options["max_iter"]}
        for name, call in works.items():
            seconds = []
            for _ in range(2 if tiny else 12):
                peers.wait(cupy)
                started = time.perf_counter()
                call()
                peers.wait(cupy)
                seconds.append(time.perf_counter() - started)
            row[f"{name}_ms"] = 1e3 * float(np.median(seconds[1:]))
            row[f"{name}_device_ms"] = 1e3 * timer(cupy, call, 3, 0.01)[1]
        yield row


STEPS = {
    "facts": facts,
    "build": build,
    "transcendental": transcendental,
    "operators": operators,
    "peers": peers.measure,
    "calls": calls,
    "large": large.measure,
    "training": training.measure,
    "tests": proofs.gpu_tests,
    "sanitizers": proofs.sanitizers,
    "profile": counters.profile,
}
