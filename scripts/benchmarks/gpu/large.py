"""Many problems with one large cost: by products on tensor cores, and by products in float."""

import time

import numpy as np
from benchmarks.gpu import peers

EPS, CHECKED = 0.05, 4


def measure(tiny):
    """Return the time of 100 iterations of 45 x 37 problems of 4000 bins, each way, and how far off potentials are.

    They are compared with those of as many iterations in float64, for some problems.
    """
    import cupy

    import cusink
    from cusink.backends.cupy import split_form

    B, n, count, repeats = (65, 170, 1, 1) if tiny else (45 * 37, 4000, 100, 6)
    a, b, C = map(cupy.asarray, peers.problem(B, n))
    options = {"eps": EPS, "tol": None, "max_iter": count, "overrelaxation": None}
    exact = cusink.sinkhorn(*(x.astype(np.float64) for x in (a[:CHECKED], b[:CHECKED], C)), **options)
    rows, most = [], split_form.MOST_BYTES
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
        off = [abs(getattr(found, name)[:CHECKED].get() - getattr(exact, name).get()).max() for name in "fg"]
        row = {"products": way, "tensor_cores": tensor_cores, "B": B, "n": n, "iterations": count}
        row |= {"ms": 1e3 * float(np.median(seconds[1:] or seconds)), "error_of_potentials": float(max(off))}
        rows.append(row | {"marginal_error": float(found.error.max())})
    return rows
