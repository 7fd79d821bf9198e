"""Others at the same work in the same run: PyTorch's log-sum-exp loop, cuBLAS, OTT on JAX's device, tf32 products."""

import importlib.util
import time

import numpy as np
from benchmarks.gpu import kernels as bench


def wait(cupy):
    """Wait until the device has done all its work."""
    cupy.cuda.Device().synchronize()


def once(xp, call, repeats=1, least=0.0):
    """Stand in for `bench.device_time` where there are no events: (median, smallest) of one call."""
    started = time.perf_counter()
    call()
    seconds = time.perf_counter() - started
    return seconds, seconds


def problem(B, n):
    """Return histograms a, b (B, n) and a cost (n, n), in float32."""
    rng = np.random.default_rng(1)
    a, b = (rng.dirichlet(np.ones(n), B).astype(np.float32) for _ in range(2))
    x, y = rng.random((n, 1), np.float32), rng.random((1, n), np.float32)
    return a, b, (x - y) ** 2


def torch_loop(B, n, count, repeats):
    """Time `count` iterations as people write them in PyTorch: two log-sum-exps of (B, n, n)."""
    import torch

    where = "cuda" if torch.cuda.is_available() else "cpu"
    a, b, C = (torch.as_tensor(x, device=where) for x in problem(B, n))
    eps, log_a, log_b = 0.05, a.log(), b.log()

    def call():
        f, g = torch.zeros_like(a), torch.zeros_like(b)
        for _ in range(count):
            g = -eps * torch.logsumexp((f / eps + log_a)[:, :, None] - C / eps, dim=1)
            f = -eps * torch.logsumexp((g / eps + log_b)[:, None, :] - C / eps, dim=2)
        if where == "cuda":
            torch.cuda.synchronize()
        return f

    return timed(call, repeats)


def ott(B, n, count, repeats):
    """Time OTT's Sinkhorn on JAX's device, a batch by vmap, compiled before."""
    import jax
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    a, b, C = map(jax.numpy.asarray, problem(B, n))
    solver = sinkhorn.Sinkhorn(threshold=-1.0, max_iterations=count, min_iterations=count)

    @jax.jit
    def solve(a, b):
        geom = geometry.Geometry(C, epsilon=0.05)
        return jax.vmap(lambda a, b: solver(linear_problem.LinearProblem(geom, a, b)).f)(a, b)

    return timed(lambda: solve(a, b).block_until_ready(), repeats)


def ours(B, n, count, repeats, method="auto"):
    """Time the same iterations here."""
    import cupy

    import cusink

    a, b, C = map(cupy.asarray, problem(B, n))

    def call():
        cusink.sinkhorn(a, b, C, eps=0.05, tol=None, max_iter=count, method=method)
        wait(cupy)

    return timed(call, repeats)


def products(count, repeats, sizes, tf32):
    """Time iterations between points of many coordinates, by products of 11 bits (`tf32`) or of two halves each."""
    import cupy

    import cusink

    rng, (n, d) = np.random.default_rng(2), sizes
    x, y = (cupy.asarray(rng.normal(size=(n, d)).astype(np.float32)) for _ in range(2))
    C = cusink.PointCloud(x, y, tf32=tf32)

    def call():
        cusink.sinkhorn(None, None, C, eps=2.0 * d, tol=None, max_iter=count)
        wait(cupy)

    return timed(call, repeats)


def gemm(n, repeats):
    """Time a product of matrices (n, n) by cuBLAS, in float32."""
    import cupy

    x = cupy.ones((n, n), np.float32)
    out = cupy.empty((n, n), np.float32)

    def call():
        cupy.dot(x, x, out=out)
        wait(cupy)

    return timed(call, repeats)


def timed(call, repeats):
    """Return the median of the wall time, in ms, after a first call."""
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return 1e3 * float(np.median(seconds))


def measure(tiny):
    """Yield a row for each peer and for the same work here."""
    repeats, count = (1, 2) if tiny else (5, 100)
    for B, n in ((2, 6),) if tiny else ((1, 100), (256, 100), (64, 1000)):
        work = {"here": ours, "here, log domain": lambda *sizes: ours(*sizes, "log"), "PyTorch loop": torch_loop}
        for name, call in (work | {"OTT": ott}).items():
            yield {"what": name, "B": B, "n": n, "iterations": count} | attempt(call, B, n, count, repeats)
    for tf32 in (False, True):
        sizes = (20, 17) if tiny else (10_000, 64)
        row = {
            "what": f"points, {'11 bits' if tf32 else 'two halves each'}",
            "B": 1,
            "n": sizes[0],
            "iterations": count // 10 or 1,
        }
        yield row | attempt(products, count // 10 or 1, repeats, sizes, tf32)
    n = 8 if tiny else 4096
    yield {"what": "cuBLAS product", "B": 1, "n": n, "iterations": 1} | attempt(gemm, n, repeats)


def attempt(call, *arguments):
    """Return the time of one peer, or why there is none."""
    try:
        return {"ms": call(*arguments)}
    except ImportError as error:
        missing = error.name and importlib.util.find_spec(error.name.partition(".")[0]) is None
        return {"ms": bench.NOT_INSTALLED if missing else f"{error}"}
    except Exception as error:  # a peer that fails is a row that says so
        return {"ms": f"{type(error).__name__}: {error}"[:200]}
