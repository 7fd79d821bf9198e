#!/usr/bin/env python3
"""Small calls that between them launch every kernel, in parts: for the sanitizers, and to be profiled.

    workload.py --list
    workload.py small points            # these parts alone, each named on a line before it begins
    workload.py --dtype float64

No answer is checked here; the GPU tests do that. Sizes are small and odd, so that tiles, warps and vectors have ends.
"""

import argparse
import contextlib
import dataclasses
import importlib
import sys
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
LAUNCHED = []  # on an emulated device: the names of the kernels, in order


class Draws:
    """Random arrays on the device."""

    def __init__(self, dtype):
        self.rng, self.dtype = np.random.default_rng(0), np.dtype(dtype)

    def array(self, host):
        import cupy

        return cupy.asarray(np.asarray(host, self.dtype))

    def weights(self, B, n):
        return self.array(self.rng.dirichlet(np.ones(n), B))

    def cost(self, *shape):
        return self.array(self.rng.random(shape))

    def points(self, n, d):
        return self.array(self.rng.random((n, d)))

    def measures(self, *sizes, d):
        import cusink

        return cusink.Measures(np.concatenate([[0], np.cumsum(sizes)]), None, self.points(sum(sizes), d))


def multiprocessors():
    """Return how many the device has."""
    import cupy

    return cupy.cuda.Device().attributes["MultiProcessorCount"]


def adjoint(result):
    import cusink

    for name in ("grad_cost", "grad_reg_cost"):
        read(cusink.sinkhorn_adjoint(result, **{name: 1.0}, max_iter=10))


def read(found):
    """Make all gradients, which are made when they are read."""
    for name in ("a", "b", "C", "eps", "x", "y", "reach"):
        getattr(found, name, None)


def small(draw):
    """Problems whose kernel and state fit into a block: one alone, some with a cost each, many with one."""
    import cusink

    a, b, C = draw.weights(9, 41), draw.weights(9, 37), draw.cost(41, 37)
    for k in (1, 3, 9):
        adjoint(cusink.sinkhorn(a[:k], b[:k], C, eps=0.1, tol=1e-3, max_iter=30))
    cusink.sinkhorn(a[0], b[0], C, eps=1e-3, tol=None, max_iter=20)  # absorbs
    cusink.sinkhorn(a[:2], b[:2], draw.cost(2, 41, 37), eps=0.1, tol=None, max_iter=5, method="log")
    for k in (1, 2, 4):  # problems to a block
        a, b = (draw.weights(k * multiprocessors() - 1, n) for n in (19, 23))
        cusink.sinkhorn(a, b, draw.cost(19, 23), eps=0.1, tol=None, max_iter=5, callback=lambda *_: None)


def stored(draw):
    """Log-sum-exps of a stored cost, shared and not, and what is made of plans."""
    import cusink

    for k in (2, 9):
        a, b = draw.weights(k, 45), draw.weights(k, 300)
        for C in (draw.cost(45, 300), draw.cost(k, 45, 300)):
            result = cusink.sinkhorn(a, b, C, eps=0.1, tol=1e-3, max_iter=20, method="log")
            result.plan(), result.apply(b, 1), result.apply(a, 0), result.bounds()
            adjoint(result)


def halves(draw):
    """Log-sum-exps of costs in half precision."""
    from cusink.backends.cupy.reductions import softmin

    for k in (2, 9):
        C, logits = draw.cost(45, 70).astype(np.float16), [-draw.cost(k, n) for n in (45, 70)]
        for axis in (0, 1):
            softmin(C, logits[axis], 0.1, axis)


def large(draw):
    """Products with a shared cost that no block can hold: in float, and on tensor cores."""
    import cusink

    a, b, C = draw.weights(17, 270), draw.weights(17, 250), draw.cost(270, 250)
    options = {"eps": 0.1, "max_iter": 10, "tol": 1e-3}
    cusink.sinkhorn(a, b, C, **options)
    with tensor_cores_always():
        cusink.sinkhorn(a, b, C, **options)
    adjoint(cusink.sinkhorn(a, b, C, method="log", **options))


def points(draw):
    """Costs between points: few coordinates, many, and what is made of plans."""
    import cusink

    for d in (2, 3, 18):
        C = cusink.PointCloud(draw.points(70, d), draw.points(45, d))
        result = cusink.sinkhorn(None, None, C, eps=0.1 * d, tol=1e-3, max_iter=20, memory_limit=8 * max(C.shape))
        result.apply(draw.weights(1, 45)[0], 1), result.apply(draw.weights(1, 70)[0], 0), result.bounds()
        adjoint(result)
    each = cusink.PointCloud(draw.cost(3, 33, 2), draw.cost(3, 35, 2), metric="euclidean")
    adjoint(cusink.sinkhorn(None, None, each, eps=0.1, tol=1e-3, max_iter=20))
    a, b = draw.weights(5, 70), draw.weights(5, 45)  # a stored cost
    cusink.sinkhorn(a, b, cusink.PointCloud(draw.points(70, 3), draw.points(45, 3)), eps=0.1, tol=None, max_iter=3)


def near(draw):
    """Large clouds, of which tiles are left out."""
    import cusink

    with every_pair_large():
        C = cusink.PointCloud(draw.points(300, 3), draw.points(260, 3))
        cusink.sinkhorn(None, None, C, eps=0.01, tol=None, max_iter=3)


def sums(draw):
    """Sum kernels over pairs of points of few and of many coordinates, and take their gradients."""
    import cusink

    for d in (3, 6, 18):
        x, y, weights = draw.points(70, d), draw.points(45, d), draw.weights(1, 45)[0]
        product = cusink.kernel_product(x, y, weights)
        read(cusink.kernel_product_adjoint(x, y, weights, grad=product))
        read(cusink.kernel_product_log_adjoint(x, y, weights, grad=cusink.kernel_product_log(x, y, weights)))
        for kernel in ("gaussian", "laplace", "energy", "exponential", "distance"):
            cusink.kernel_distance(x, None, y, weights, kernel=kernel)
            read(cusink.kernel_distance_adjoint(x, None, y, weights, kernel=kernel))
    with tensor_cores_always():
        cusink.kernel_product(x, y, weights), cusink.kernel_product(x, y, weights, kernel="distance")
        cusink.kernel_product_log(x, y, weights)


def documents(draw):
    """Distances between items with points of their own."""
    import cusink

    given = draw.measures(5, 9, 33, d=7), draw.measures(4, 40, d=7)
    cusink.distance_matrix(*given, "sqeuclidean", eps=0.5, tol=1e-3, max_iter=20)


def ragged(draw):
    """Pairs of clouds of unequal sizes, with and without `reach`, and their gradients."""
    import cusink

    x, y = draw.measures(5, 40, 70, d=3), draw.measures(9, 33, 65, d=3)
    for reach in (None, 1.0):
        adjoint(cusink.sinkhorn(x, y, "sqeuclidean", eps=0.1, reach=reach, tol=1e-3))
        pairs = cusink.sinkhorn_divergence(x, y, "sqeuclidean", eps=0.1, reach=reach, tol=1e-3)
        read(cusink.sinkhorn_divergence_adjoint(pairs))


def grids(draw):
    """Histograms on a grid: scalings, logits, and with `reach`."""
    import cusink

    grid, (a, b) = cusink.Grid((11, 13)), (draw.weights(3, 143) for _ in range(2))
    for eps, options in ((10.0, {}), (0.2, {}), (10.0, {"method": "log"}), (2.0, {"reach": 3.0})):
        result = cusink.sinkhorn(a, b, grid, eps=eps, tol=1e-3, max_iter=10, **options)
        adjoint(result)
        result.bounds()


def unbalanced(draw):
    """Solve stored costs with `reach`."""
    import cusink

    a, b = draw.weights(3, 41), draw.weights(3, 37)
    adjoint(cusink.sinkhorn(a, 2 * b, draw.cost(41, 37), eps=0.1, reach=1.0, tol=1e-3, max_iter=50))


PARTS = {
    part.__name__: part
    for part in (small, stored, halves, large, points, near, sums, documents, ragged, grids, unbalanced)
}


@contextlib.contextmanager
def quiet():
    """Within it nothing is said of iterations that have not converged: so few are asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def every_pair_large():
    """Within it clouds of any size are taken for large ones."""
    from cusink.backends.cupy import limits

    given, limits.LIMITS = limits.LIMITS, dataclasses.replace(limits.LIMITS, near_pairs=1)
    try:
        yield
    finally:
        limits.LIMITS = given


@contextlib.contextmanager
def tensor_cores_always():
    """Within it tensor cores take a large shared cost however few tiles there are, and sums however small."""
    from cusink.backends.cupy import launch

    names = ("SPLIT_SHARE", "SUMS_FROM")
    given = {name: getattr(launch, name) for name in names}
    vars(launch).update(dict.fromkeys(names, 0))
    launch.configure.cache_clear()
    try:
        yield
    finally:
        vars(launch).update(given)
        launch.configure.cache_clear()


def run(names=tuple(PARTS), dtype="float32", say=print):
    """Run parts; each is named before it begins."""
    for name in names:
        say(f"part {name} {dtype}", flush=True)
        with quiet():
            PARTS[name](Draws(dtype))


def main(arguments=None):
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="all of them if none is named")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument(
        "--pool", action="store_true", help="use CuPy's memory pool, which hides accesses out of bounds"
    )
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args(arguments)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if given.list:
        print(*PARTS, sep="\n")
        return
    sys.path.insert(0, str(ROOT))
    if not given.pool:
        importlib.import_module("cupy").cuda.set_allocator(None)
    run(tuple(given.parts) or tuple(PARTS), given.dtype)


if __name__ == "__main__":
    main()
