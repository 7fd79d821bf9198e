"""The steps of ``gpu_truth.py``: each returns what it found as plain numbers and words."""

import concurrent.futures
import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time

import numpy as np
from benchmarks.gpu import kernels as bench
from benchmarks.gpu import large, peers, predict, training
from benchmarks.gpu.cases import FOLDER, all_cases
from benchmarks.gpu.clouds import point_cases

ROOT = FOLDER.parents[2]
PACKAGES = ("numpy", "scipy", "cupy-cuda12x", "cupy-cuda13x", "torch", "jax", "ott-jax", "triton", "pytest")
DTYPES = ("float32", "float64")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
COUNTERS = (
    "gpu__time_duration.sum,sm__inst_executed.avg.per_cycle_active,sm__throughput.avg.pct_of_peak_sustained_elapsed,"
    "sm__inst_executed_pipe_xu.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,"
    "l1tex__data_bank_conflicts_pipe_lsu.sum,sm__warps_active.avg.pct_of_peak_sustained_active"
)
missing_gpu = bench.missing_gpu


@contextlib.contextmanager
def device(tiny):
    """Within it there is a GPU: the machine's, or where `tiny` the emulated one of the tests."""
    if not tiny:
        yield
        return
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from emulated import device_arrays

        with device_arrays.device():
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
    """Return the device, the driver, the versions, and the commit."""
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
        "environment": {key: value for key, value in os.environ.items() if key.startswith(("CUPY_", "CUDA_"))},
    }
    return found if tiny else found | bench.conditions(cupy)


def build_one(file, dtype):
    """Build a file; return the seconds, and what the driver says of each of its kernels."""
    from cusink.backends.cupy import loader

    started = time.perf_counter()
    kernels = {name: loader.function(file, name, dtype) for name in loader.names(file)}
    fields = ("num_regs", "local_size_bytes", "shared_size_bytes", "max_threads_per_block")
    about = {name: {field: getattr(kernel, field, None) for field in fields} for name, kernel in kernels.items()}
    return time.perf_counter() - started, about


def build(tiny):
    """Build all kernels in several processes, which fill CuPy's cache of binaries for the steps that follow."""
    from cusink.backends.cupy import loader

    jobs = [(file, dtype) for file in loader.kernel_files() for dtype in DTYPES]
    if tiny:
        jobs = [("plan.cu", dtype) for dtype in DTYPES]
        pool = concurrent.futures.ThreadPoolExecutor(1)
    else:
        pool = concurrent.futures.ProcessPoolExecutor(min(8, os.cpu_count() or 1))
    started, found = time.perf_counter(), {}
    with pool:
        futures = {job: pool.submit(build_one, *job) for job in jobs}
        for (file, dtype), future in futures.items():
            try:
                found[f"{file} {dtype}"] = future.result()
            except Exception as error:  # a file that does not build is a finding
                found[f"{file} {dtype}"] = f"{type(error).__name__}: {error}"
    return {"seconds": time.perf_counter() - started, "files": found}


def ulps(found, exact):
    """Return the largest error in units in the last place of numbers of the dtype of `found`."""
    right = exact.astype(found.dtype)
    usual = np.isfinite(exact) & (np.abs(exact) >= np.finfo(found.dtype).tiny)
    return float((np.abs(found[usual].astype(exact.dtype) - exact[usual]) / np.spacing(np.abs(right[usual]))).max())


def transcendental(tiny):
    """Return the largest errors of the device's exp2 and log2, against the next longer format."""
    import cupy

    from cusink.backends.cupy import loader

    found, count = {}, 1 << (10 if tiny else 22)
    for dtype, longer in zip(DTYPES, (np.float64, np.longdouble), strict=True):
        x = np.linspace(-120, 120, count).astype(dtype)
        given = cupy.asarray(x)
        powers, logs = cupy.empty(count, dtype), cupy.empty(count, dtype)
        kernel = loader.function(str(FOLDER / "transcendental.cu"), "exp_and_log", dtype)
        kernel((2 if tiny else 1024,), (256,), (powers, logs, given, np.int64(count)))
        wide = x.astype(longer)
        exact = np.log2(np.abs(wide))
        away = np.abs(exact) > 2.0**-3  # near 1 the error of a logarithm is absolute
        found[dtype] = {
            "exp2_ulp": ulps(powers.get(), np.exp2(wide)),
            "log2_ulp": ulps(logs.get()[away], exact[away]),
            "log2_absolute_near_1": float(np.abs(logs.get() - exact)[~away].max(initial=0)),
        }
    return found | {"short_log_absolute": short_log(tiny)}


def short_log(tiny):
    """Return the largest error of the logarithm of a mantissa in ``split_step.cu``, which may be 2^-22."""
    import cupy

    from cusink.backends.cupy import loader

    mantissas = np.arange(1 << 23, 1 << 24, 1 << 13 if tiny else 1).astype(np.float32) / np.float32(1 << 23)
    logs = cupy.empty(len(mantissas), np.float32)
    kernel = loader.function(str(FOLDER / "transcendental.cu"), "short_log", "float32")
    kernel((2 if tiny else 1024,), (256,), (logs, cupy.asarray(mantissas), np.int64(len(mantissas))))
    return float(np.abs(logs.get() - np.log2(mantissas.astype(np.float64))).max())


def operators(tiny):
    """Check and time the kernels, the hot ones first, beside the rates of the device and what was predicted."""
    import cupy

    from cusink.backends.cupy import dense, loader

    if tiny:
        cases, rates = (
            [*list(all_cases(sizes=((3, 9, 7),)))[1:3], *list(point_cases(70, 45, 3, 6, 5, 12))[:1]],
            {
                "bytes_per_s": 1e9,
                "exp_per_s": dict.fromkeys(DTYPES, 1e9),
            },
        )
    else:
        cases = sorted((*all_cases(), *point_cases()), key=lambda case: (case.dtype, case.n != 1000))
        rates = bench.device_rates(cupy, loader)
    timer = peers.once if tiny else bench.device_time
    rows, started, most = [], time.perf_counter(), 75
    for case in cases:
        row = {"case": " ".join(map(str, (case.operator, case.cost, case.detail, case.B, case.n, case.m, case.dtype)))}
        if time.perf_counter() - started > most:
            rows.append(row | {"status": "no time left"})
            continue
        try:
            row |= bench.measure(case, cupy, dense, loader, rates, timer)
        except Exception as error:  # one operator that fails costs no other
            row |= {"status": f"{type(error).__name__}: {error}"}
        if case.operator in predict.PREDICTED and case.dtype == "float32" and case.cost != "own":
            expected = predict.predict(case.operator, case.B, case.n, case.m, getattr(case, "d", 1))
            row["predicted_ms_on_h100"] = 1e3 * expected.seconds if expected else None
        rows.append(row)
    return {"rates": rates, "rows": rows}


def calls(tiny):
    """Return the wall time of user calls, gradients included, and what CuPy did in them."""
    import cupy

    import cusink

    rng, rows = np.random.default_rng(0), []
    n = 10 if tiny else 100
    C = cupy.asarray(np.subtract.outer(np.arange(n), np.arange(n)) ** 2 / n**2, np.float32)
    for B in (1, 2) if tiny else (1, 10, 100, 1000, 10_000):
        a, b = (cupy.asarray(rng.dirichlet(np.ones(n), B).astype(np.float32)) for _ in range(2))
        options = {"eps": 0.05 if tiny else 1e-3, "tol": None, "max_iter": 5 if tiny else 200}

        def forward(a=a, b=b, options=options):
            return cusink.sinkhorn(a, b, C, **options)

        def both(forward=forward):
            return cusink.sinkhorn_adjoint(forward(), grad_reg_cost=1.0)

        def with_system(forward=forward):
            return cusink.sinkhorn_adjoint(forward(), grad_cost=1.0)

        row = {"B": B, "n": n, "iterations": options["max_iter"]}
        timed = {"forward": forward, "forward_and_gradient": both, "forward_and_gradient_of_cost": with_system}
        for name, call in timed.items():
            seconds = []
            for _ in range(2 if tiny else 20):
                peers.wait(cupy)
                started = time.perf_counter()
                call()
                peers.wait(cupy)
                seconds.append(time.perf_counter() - started)
            row[f"{name}_ms"] = 1e3 * float(np.median(seconds[1:]))
        rows.append(row)
    return rows


def gpu_test_files():
    """Return the files of tests that have GPU tests and can be imported here, and what was said of the others."""
    command = [sys.executable, str(ROOT / "scripts" / "gpu_test_files.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), done.stderr.splitlines()


def run_tests(files, extra=(), limit=140):
    """Run GPU tests of some files with this Python; return (exit status, last lines)."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *extra, *files]
    environment = os.environ | {"CUSINK_REQUIRE_GPU": "1", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
        return done.returncode, done.stdout[-3000:]
    except subprocess.TimeoutExpired:
        return -1, "took too long"


def gpu_tests(tiny):
    """Run the GPU tests, several processes at once, each with some of the files."""
    (files, left_out), processes = gpu_test_files(), 6
    parts = [files[k::processes] for k in range(processes)]
    if tiny:  # there is no GPU: only that the tests are found
        return {"files": files, "left_out": left_out, "outcomes": []}
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        return {"files": files, "left_out": left_out, "outcomes": list(pool.map(run_tests, parts))}


WORKLOAD = """
import numpy, cupy, cusink
cupy.cuda.set_allocator(None)
rng = numpy.random.default_rng(0)
C = cupy.asarray(rng.random((20, 30), numpy.float32))
a, b = (cupy.asarray(rng.dirichlet(numpy.ones(k), 3).astype("f")) for k in (20, 30))
x, y = (cupy.asarray(rng.normal(size=(k, d)).astype("f")) for k, d in ((20, SIZE), (30, SIZE)))
for cost in (C, cupy.stack([C, C, C]), cusink.PointCloud(x, y)):
    for options in ({"tol": 1e-4}, {"tol": None, "max_iter": 5, "method": "log"}):
        cusink.sinkhorn_adjoint(cusink.sinkhorn(a, b, cost, eps=1.0, **options), grad_cost=1.0)
cusink.kernel_product(x, y, b[0])
"""


def tool_command(tool):
    """Return the command that runs a small workload under a tool of compute-sanitizer, or None without it."""
    path = shutil.which("compute-sanitizer")
    if path is None:
        return None
    return [path, "--tool", tool, "--error-exitcode", "7", sys.executable, "-c", WORKLOAD.replace("SIZE", "17")]


def sanitizers(tiny):
    """Run a small workload under the four tools of compute-sanitizer, at once."""
    if tiny:
        exec(
            compile(WORKLOAD.replace("SIZE", "3").replace("cupy.cuda.set_allocator(None)", ""), "workload", "exec"), {}
        )
        return {"workload": "ran"}

    def under(tool):
        command = tool_command(tool)
        if command is None:
            return bench.NOT_INSTALLED
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        try:
            done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=55)
        except subprocess.TimeoutExpired:
            return "took too long"
        return {"code": done.returncode, "said": (done.stdout + done.stderr)[-1500:]}

    with concurrent.futures.ThreadPoolExecutor(len(TOOLS)) as pool:
        return dict(zip(TOOLS, pool.map(under, TOOLS), strict=True))


def profile(tiny):
    """Return ncu's counters of the kernels of a small workload, where ncu is there and allowed."""
    path = shutil.which("ncu")
    if tiny or path is None:
        return bench.NOT_INSTALLED
    command = [path, "--csv", "--metrics", COUNTERS, "--launch-count", "40", sys.executable, "-c", peers.HOT]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=40)
    return {"code": done.returncode, "csv": done.stdout[-20000:], "said": done.stderr[-1000:]}


STEPS = {
    "facts": facts,
    "build": build,
    "transcendental": transcendental,
    "operators": operators,
    "peers": peers.measure,
    "calls": calls,
    "large": large.measure,
    "training": training.measure,
    "tests": gpu_tests,
    "sanitizers": sanitizers,
    "profile": profile,
}


def markdown(report):
    """Return a report as Markdown: what ran, and the tables of times."""
    lines = [f"# GPU truth, {report['when']}", "", report["device"], ""]
    lines += ["| step | outcome | seconds |", "|---|---|---|"]
    for name, outcome in report["steps"].items():
        lines.append(f"| {name} | {outcome['status']} | {outcome.get('seconds', '')} |")

    def found(name):
        outcome = report["steps"].get(name, {})
        return outcome.get("found") if outcome.get("status") == "ran" else None

    if rows := (found("operators") or {}).get("rows"):
        lines += [
            "",
            "| operator | status | ms | of copy | of exp | predicted ms on an H100 |",
            "|---|---|---|---|---|---|",
        ]
        for row in rows:
            cells = (row.get(key) for key in ("ms", "of_copy", "of_exp", "predicted_ms_on_h100"))
            cells = " | ".join("" if cell is None else f"{cell:.4g}" for cell in cells)
            lines.append(f"| {row['case']} | {row['status']} | {cells} |")
    for name in ("peers", "calls", "large", "training"):
        if rows := found(name):
            keys = list(dict.fromkeys(key for row in rows for key in row))
            lines += ["", "| " + " | ".join(keys) + " |", "|---" * len(keys) + "|"]
            for row in rows:
                cells = (row.get(key, "") for key in keys)
                lines.append("| " + " | ".join(f"{x:.4g}" if isinstance(x, float) else str(x) for x in cells) + " |")
    return "\n".join(lines) + "\n"
