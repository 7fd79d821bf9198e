"""Many problems with one large cost: by products on tensor cores, and by products in float."""

import contextlib
import time

import numpy as np
from benchmarks.gpu import peers, workload
from benchmarks.gpu.clouds import logsumexp

EPS, CHECKED = 0.05, 4


def potentials(xp, a, b, C, count, dtype):
    """Return f and g (n + m,) of one problem after plain iterations from 0, g first; the mean of f is 0."""
    a, b, C = (x.astype(dtype) for x in (a, b, C))
    eps, f = np.dtype(dtype).type(EPS), xp.zeros(len(a), dtype)
    for _ in range(count):
        g = -eps * logsumexp(xp, xp.log(a)[:, None] + (f[:, None] - C) / eps, 0)
        f = -eps * logsumexp(xp, xp.log(b) + (g - C) / eps, 1)
    return centred(f.get(), g.get())


def centred(f, g):
    """Return f and g in one array of float64 and one gauge."""
    f, g = f.astype(np.float64), g.astype(np.float64)
    return np.concatenate([f - f.mean(), g + f.mean()])


def measure(tiny):
    """Yield the time of 100 iterations of 45 x 37 problems of 4000 bins, each way, and how far off potentials are.

    They are compared with those of plain iterations in float64, for some problems; allowed is 4 times the rounding of
    the same in float32, of the largest cost, as in `cases.check`.
    """
    import cupy

    import cusink
    from cusink.backends.cupy import split_form

    B, n, count, repeats = (34, 230, 2, 1) if tiny else (45 * 37, 4000, 100, 6)
    a, b, C = map(cupy.asarray, peers.problem(B, n))
    options = {"eps": EPS, "tol": None, "max_iter": count, "overrelaxation": None}
    exact, single = (
        np.array([potentials(cupy, a[k], b[k], C, count, dtype) for k in range(CHECKED)])
        for dtype in (np.float64, np.float32)
    )
    scale, unit = max(abs(exact).max(), float(C.max())), np.finfo(np.float32).eps
    allowed = float(4 * (abs(single - exact).max() / scale + unit))
    most = split_form.MOST_BYTES
    with workload.tensor_cores_always() if tiny else contextlib.nullcontext():
        for way, memory in (("tensor cores", most), ("float", 0)):
            split_form.MOST_BYTES = memory
            seconds = []
            try:
                tensor_cores = bool(split_form.SplitForm.pays(C, B, "auto"))
                for _ in range(repeats):
                    peers.wait(cupy)
                    started = time.perf_counter()
                    found = cusink.sinkhorn(a, b, C, **options)
                    peers.wait(cupy)
                    seconds.append(time.perf_counter() - started)
            finally:
                split_form.MOST_BYTES = most
            ours = np.array([centred(found.f[k].get(), found.g[k].get()) for k in range(CHECKED)])
            error = float(abs(ours - exact).max() / scale)
            row = {"products": way, "tensor_cores": tensor_cores, "B": B, "n": n, "iterations": count}
            row |= {"status": "measured" if error <= allowed else "wrong", "error": error, "allowed": allowed}
            row |= {"ms": 1e3 * float(np.median(seconds[1:] or seconds)), "marginal_error": float(found.error.max())}
            yield row
