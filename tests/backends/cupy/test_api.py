"""The public API on arrays that are no NumPy arrays, by emulated kernels: NumPy's answers, in their library.

`emulated.device_arrays` refuses what CuPy refuses, so that a NumPy function or array on the way fails here and not
first on a GPU.
"""

import dataclasses

import emulated
import numpy as np
import pytest
from emulated import device_arrays

import cusink
from cusink.backends.cupy import loader
from cusink.backends.cupy.launch import PLAIN_SHARED_MEMORY, Launch
from cusink.costs.operators import Operators
from cusink.operand import operand
from cusink.solver import loop

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

RNG = np.random.default_rng(0)
B, N, M = 5, 9, 7
a, b, s, t = (RNG.dirichlet(np.ones(size), count) for size, count in ((N, B), (M, B), (N, B), (N, 4)))
a[0, :3] = 0
a /= a.sum(axis=1, keepdims=True)
C, S = RNG.random((N, M)), RNG.random((N, N))
S = S + S.T
np.fill_diagonal(S, 0)
x, y, X, Y = (RNG.normal(size=size) for size in ((N, 3), (M, 3), (B, N, 3), (B, M, 3)))
far, near = RNG.normal(size=(N, 40)), RNG.normal(size=(M, 40))
images, others = RNG.dirichlet(np.ones(12), 3), RNG.dirichlet(np.ones(12), 3)
SHARED = np.repeat([0.0, 0.2, 0.3], [1, 2, 4]), RNG.dirichlet(np.ones(9)), cusink.cost_matrix(x[:7], x)
SHARED[0][:] /= SHARED[0].sum()
GRID = cusink.Grid((3, 4))
EACH = np.array([0.1, 0.3, 0.1, 0.2, 0.3])
sizes = np.array([2, 4, 3, 5])
offsets = np.concatenate([[0], np.cumsum(sizes)])
places = np.random.default_rng(34).normal(size=(14, 2))  # of many others no iteration ends soon


def everything(result):
    """Return a result, the results of its methods, and the gradients of both its values."""
    ones = 1.0
    methods = result.plan(), result.apply(result.g, 1), result.apply(result.f, 0), *result.bounds()
    # Tighter than the digits that are compared: the libraries take other steps to the same fit.
    tol = 1e-9 if result.f.dtype == np.float64 else 1e-6
    gradients = [cusink.sinkhorn_adjoint(result, **{name: ones}, tol=tol) for name in ("grad_cost", "grad_reg_cost")]
    return result, methods, gradients


def solved(*args, **options):
    return everything(cusink.sinkhorn(*args, **{"tol": 1e-9} | options))


def cloud(xp, *points, **options):
    return cusink.PointCloud(*map(xp, points), **options)


def divergence(*args, **options):
    result = cusink.sinkhorn_divergence(*args, **options)
    return result, cusink.sinkhorn_divergence_adjoint(result)


def maps(a, b, C, x, y):
    """Return what is made of a solve at new points, and a result of its potentials."""
    result = cusink.sinkhorn(a, b, cusink.PointCloud(x, y), eps=0.3, tol=1e-9)
    new = result.at(y)
    known = cusink.SinkhornResult.from_potentials(a, b, C, eps=0.3, f=result.f)
    priced = cusink.SinkhornResult.from_potentials(a, 2 * b, C, eps=0.3, g=result.g, reach=(1.0, None))
    products = cusink.sinkhorn(a, a, cusink.Grid(9), eps=1.0).barycentric_map(x)
    return new.potential, new.map(), new.gradient(), result.barycentric_map(x, 0), products, known, priced


def mean_gradients(A, C, r, **options):
    result = cusink.barycenter(A, C, tol=1e-10, **options)
    grads = cusink.barycenter_adjoint(result, grad_barycenter=r, tol=1e-9)
    return [getattr(grads, name) for name in ("A", "weights", "eps", "C", "x", "y")]


def parameters(xp):
    labels = np.arange(len(x)) % 3, np.arange(len(y)) % 2
    factor, table = np.eye(x.shape[1])[:, :2] + 0.25, np.arange(6.0).reshape(3, 2) / 6
    return {"factor": xp(factor), "labels": labels, "table": xp(table)}


def documents(xp):
    return cusink.Measures(offsets, None, xp(places))


def ragged(xp):
    return tuple(cusink.Measures(offsets, None, xp(points)) for points in (places, places[::-1] + 0.3))


def of_pairs(xp, solve, adjoint, **options):
    """Return the flat arrays of pairs, one pair alone, and gradients; not how many iterations another loop takes."""
    pairs = solve(*ragged(xp), "sqeuclidean", eps=1.0, tol=1e-10)
    gradients = adjoint(pairs, **options)
    one = pairs[1]
    value = one.cost if hasattr(one, "cost") else one.divergence
    return pairs.f, pairs.error, one.f, one.g, value, one.error, gradients, gradients.x, gradients.y


CALLS = {
    "ragged pairs": lambda xp: of_pairs(xp, cusink.sinkhorn, cusink.sinkhorn_adjoint, grad_cost=xp(np.arange(4.0))),
    "divergences of ragged pairs": lambda xp: of_pairs(
        xp, cusink.sinkhorn_divergence, cusink.sinkhorn_divergence_adjoint
    ),
    "sinkhorn": lambda xp: solved(xp(a), xp(b), xp(C), eps=0.05),
    "a cost each": lambda xp: solved(xp(a), xp(b), xp(np.stack([C + k / 9 for k in range(B)])), eps=0.05),
    "float32, one problem": lambda xp: solved(*(xp(w.astype("f")) for w in (a[1], b[1], C)), eps=0.1, tol=1e-5),
    "a place for the matrix": lambda xp: cusink.distance_matrix(
        xp(a), None, xp(S), eps=0.3, tol=1e-8, max_iter=5000, out=xp(np.empty((len(a), len(a))))
    ),
    "float16": lambda xp: cusink.sinkhorn(*(xp(w.astype("e")) for w in (a[1], a[1], S)), eps=0.1, tol=1e-3),
    "callback": lambda xp: cusink.sinkhorn(xp(a), None, xp(C), eps=0.05, callback=lambda *_: None),
    "start": lambda xp: cusink.sinkhorn(xp(a), xp(b), xp(C), eps=0.05, init=(xp(a * 0), xp(b * 0))),
    "hardly converges": lambda xp: cusink.sinkhorn(  # by Newton's method, as somebody looks on
        *map(xp, SHARED), eps=2e-2, tol=1e-8, callback=lambda *_: None
    ),
    "unbalanced": lambda xp: solved(xp(a), xp(2 * b), xp(C), eps=0.05, reach=1.0),
    "an eps each": lambda xp: solved(xp(a), xp(b), xp(C), eps=EACH),
    "a cost and an eps each": lambda xp: solved(xp(a), xp(b), xp(np.stack([C + k for k in range(B)])), eps=EACH),
    "a relative eps": lambda xp: [
        cusink.sinkhorn(xp(a), xp(b), costs, eps=cusink.RelativeEps(0.1, of), tol=1e-10, max_iter=5000)
        for of, costs in (
            ("max", xp(C)),
            ("median", xp(np.stack([C * (1 + k) for k in range(B)]))),
            ("mean", cloud(xp, x, y)),
            ("median", cloud(xp, X, Y, metric="euclidean")),
        )
    ],
    "a relative eps elsewhere": lambda xp: [
        divergence(xp(s[:4]), xp(t), xp(S), eps=cusink.RelativeEps(0.1)),
        cusink.distance_matrix(xp(s), xp(t), xp(S), eps=cusink.RelativeEps(0.1, "median"), tol=1e-10),
        cusink.barycenter(xp(s), xp(S), eps=cusink.RelativeEps(0.1, "max")),
        cusink.sinkhorn(xp(images), xp(others), GRID, eps=cusink.RelativeEps(0.1, "mean"), tol=1e-10),
    ],
    "unbalanced, an eps each": lambda xp: solved(xp(a), xp(2 * b), xp(C), eps=xp(EACH), reach=1.0),
    "points": lambda xp: solved(xp(a), xp(b), cloud(xp, x, y), eps=0.3),
    "points each": lambda xp: solved(xp(a), xp(b), cloud(xp, X, Y, metric="euclidean"), eps=0.3),
    "points on a sphere": lambda xp: solved(xp(a), xp(b), cloud(xp, x, y, metric="cosine"), eps=0.3),
    "many coordinates": lambda xp: cusink.sinkhorn(
        *(xp(w.astype("f")) for w in (a, b)), cloud(xp, *(w.astype("f") for w in (far, near))), eps=8.0, tol=1e-5
    ),
    "unbalanced points": lambda xp: cusink.sinkhorn(xp(a), xp(2 * b), cloud(xp, x, y), eps=0.3, reach=1.0),
    "grid": lambda xp: solved(xp(images), xp(others), GRID, eps=1.0),
    "steep grid": lambda xp: cusink.sinkhorn(xp(images), xp(others), GRID, eps=0.02, tol=1e-6),
    "maps": lambda xp: maps(xp(a), xp(b), xp(C), xp(x), xp(y)),
    "costs": lambda xp: [cusink.cost_matrix(xp(x), xp(y), metric) for metric in ("sqeuclidean", "cosine")],
    "costs' gradient": lambda xp: cusink.cost_matrix_adjoint(xp(x), xp(y), xp(C), "euclidean"),
    "costs' gradient by parameters": lambda xp: list(
        cusink.cost_matrix_adjoint(xp(x), xp(y), xp(C), "mahalanobis", **parameters(xp)).metric.values()
    ),
    "a barycenter's gradient by parameters": lambda xp: list(
        cusink.barycenter_adjoint(
            cusink.barycenter(
                xp(a), cusink.PointCloud(xp(x), xp(y), "mahalanobis", **parameters(xp)), eps=1.0, tol=1e-9
            ),
            grad_barycenter=xp(b[0]),
        ).metric.values()
    ),
    "distances": lambda xp: cusink.distance_matrix(xp(s), xp(t), xp(S), eps=0.05, value="divergence", full_output=True),
    "distances of one set": lambda xp: cusink.distance_matrix(xp(s), None, xp(S), eps=0.2),
    "distances by parts": lambda xp: cusink.distance_matrix(xp(s), xp(t), xp(S), eps=0.05, memory_limit=200_000),
    "neighbours": lambda xp: cusink.nearest(xp(s), xp(t), xp(S), k=2, eps=0.05, full_output=True),
    "neighbours without bounds": lambda xp: cusink.nearest(xp(s), None, xp(S), k=2, eps=0.2, prune=False),
    "documents": lambda xp: cusink.distance_matrix(documents(xp), documents(xp), "euclidean", eps=0.3, tol=1e-10),
    "nearest documents": lambda xp: cusink.nearest(documents(xp), None, "sqeuclidean", k=2, eps=0.3, tol=1e-10),
    "divergence": lambda xp: divergence(xp(s[:4]), xp(t), xp(S), eps=0.1),
    "divergence, an eps each": lambda xp: divergence(xp(s[:4]), xp(t), xp(S), eps=EACH[:4]),
    "divergence at two prices": lambda xp: [
        divergence(xp(s[:4]), xp(2 * t), xp(S), eps=0.1, reach=reach) for reach in ((0.5, 2.0), (None, 0.5))
    ],
    "distances at two prices": lambda xp: [
        cusink.distance_matrix(xp(s), *given, xp(S), eps=0.1, value="divergence", reach=(0.5, None), tol=1e-10)
        for given in ([xp(2 * t)], [None])
    ],
    "divergence of points": lambda xp: divergence(xp(a[1]), xp(b[1]), cloud(xp, x, y), eps=0.3),
    "barycenter": lambda xp: cusink.barycenter(xp(s), xp(S), eps=0.05),
    "barycenter, an eps each": lambda xp: mean_gradients(xp(s), xp(S), xp(np.ones((3, s.shape[1]))), eps=xp(EACH[:3])),
    "barycenter, forbidden": lambda xp: cusink.barycenter(xp(s), xp(np.where(S > 1.5, np.inf, S)), eps=0.05),
    "barycenter of images": lambda xp: cusink.barycenter(xp(images), GRID, eps=1.0),
    "gradients of a barycenter": lambda xp: mean_gradients(xp(s), xp(S), xp(np.ones(s.shape[1])), eps=0.05),
    "kernel": lambda xp: cusink.kernel_product(xp(x), xp(y), xp(b[1]), "laplace", 0.7),
    "kernel's logarithm": lambda xp: cusink.kernel_product_log(xp(x), xp(y), xp(np.log(b[1])), "exponential", 0.7),
    "kernel's gradient": lambda xp: cusink.kernel_product_adjoint(xp(x), xp(y), xp(b[1]), xp(a[1])),
    "kernel norm": lambda xp: cusink.kernel_distance(xp(x), xp(a[1]), xp(y), xp(b[1]), kernel="energy", scale=0.7),
    "likelihood": lambda xp: cusink.kernel_neg_log_likelihood(xp(x), xp(a[1]), xp(y), xp(b[1])),
}
# With little shared memory: cuBLAS, graphs of launches, and blocks of costs where the points do not fit either.
APART = ("sinkhorn", "a cost each", "points", "points each", "many coordinates", "divergence of points")


def arrays(found):
    """Return all arrays in a result, in their order."""
    if isinstance(found, Operators):
        return []
    if dataclasses.is_dataclass(found):
        names = [field.name for field in dataclasses.fields(found)]
        found = [getattr(found, name) for name in names if name[0] != "_" and name != "eps"]  # that is on the host
    if isinstance(found, (list, tuple)):
        return [array for part in found for array in arrays(part)]
    return [found] if hasattr(found, "dtype") else []


def compare(call, memory):
    expected = arrays(CALLS[call](np.asarray))
    with device_arrays.device(memory) as (cupy, launched):
        found = arrays(CALLS[call](cupy.asarray))
    assert len(found) == len(expected)
    narrow = any(right.dtype in (np.float16, np.float32) for right in expected)  # then float64 holds float32's digits
    for got, right in zip(found, expected, strict=True):
        assert isinstance(got, device_arrays.ndarray)
        assert (got.shape, got.dtype) == (right.shape, right.dtype)
        single = 1e-3 if right.dtype == np.float16 else 3e-5 if narrow else 1e-7
        scale = np.abs(right[np.isfinite(right)]).max(initial=1) if right.ndim else max(1, abs(right))
        np.testing.assert_allclose(got.get(), right, rtol=0, atol=single * scale)
    return launched


@pytest.mark.parametrize("call", CALLS)
def test_answers_are_numpy_s(call):
    compare(call, 166912)


@pytest.mark.parametrize("of", ["max", "mean", "median"])
def test_a_relative_eps_is_the_number_that_numpy_takes(of):
    costs = {
        "stored": lambda xp: xp(np.where(C > 0.9 * C.max(), np.inf, C)),
        "each": lambda xp: xp(np.stack([C * (1 + k) for k in range(B)])),
        "points": lambda xp: cloud(xp, x, y),
        "points each": lambda xp: cloud(xp, X, Y, metric="euclidean"),
        "grid": lambda xp: GRID,
    }
    for kind, make in costs.items():
        given = (images, others) if kind == "grid" else (a, b)
        wanted = cusink.sinkhorn(*given, make(np.asarray), eps=cusink.RelativeEps(0.3, of), tol=None, max_iter=2).eps
        with device_arrays.device() as (cupy, _):
            on_device = [cupy.asarray(weights) for weights in given]
            how = {"eps": cusink.RelativeEps(0.3, of), "tol": None, "max_iter": 2}
            found = cusink.sinkhorn(*on_device, make(cupy.asarray), **how).eps
            assert isinstance(found, float if np.ndim(wanted) == 0 else device_arrays.ndarray)
            np.testing.assert_allclose(found.get() if np.ndim(wanted) else found, wanted, rtol=1e-12)


@pytest.mark.parametrize("call", APART)
def test_answers_are_numpy_s_without_shared_memory(call):
    assert not any(name.startswith("iterate") for name in compare(call, 1900))


@pytest.mark.parametrize("kind", ["stored", "each", "points", "grid"])
def test_steep_costs_are_annealed_in_float32(kind, monkeypatch):
    """Potentials of a larger eps are in float64, and kernels of float32 read what they are given as theirs."""
    starts, quartered = [], loop.quartered

    def remember(*args):
        taken, start = quartered(*args)
        starts.append(start)
        return taken, start

    monkeypatch.setattr(loop, "quartered", remember)
    rng = np.random.default_rng(8)
    p, q = (rng.random((size, 2)).astype("f") for size in (40, 35))
    u, v = (rng.dirichlet(np.ones(size), 2).astype("f") for size in (40, 35))
    D = cusink.cost_matrix(p, q)
    if kind == "grid":
        v, D = u[::-1].copy(), cusink.Grid((5, 8)).dense()
    eps = float(D.max()) / 20_000
    with device_arrays.device() as (cupy, _):
        costs = {
            "stored": lambda: cupy.asarray(D),
            "each": lambda: cupy.asarray(np.stack([D, D])),
            "points": lambda: cloud(cupy.asarray, p, q),
            "grid": lambda: cusink.Grid((5, 8)),
        }[kind]()
        result = cusink.sinkhorn(cupy.asarray(u), cupy.asarray(v), costs, eps=eps, tol=1e-2, max_iter=3000)
        error, f, g = result.error.get(), *(w.get() for w in result.problem.potentials())
    assert starts[0][0].dtype == np.float64
    P = u[:, :, None] * v[:, None] * np.exp((f[:, :, None] + g[:, None] - D.astype(float)) / eps)
    assert (error <= 1e-2).all()
    for axis, w in ((1, v), (2, u)):
        missed = abs(P.sum(axis=axis) - w).sum(axis=1)
        assert (missed <= error + 1e-4).all()  # of float32's exponents


def narrow(xp, array):
    """Return an array in float32 if it has a floating dtype."""
    array = np.asarray(array)
    return xp(array.astype("f") if array.dtype == np.float64 else array)


@pytest.mark.filterwarnings("ignore::cusink.errors.ConvergenceWarning")  # of tolerances beyond its digits
@pytest.mark.parametrize("call", CALLS)
def test_answers_in_float32_are_numpy_s(call):
    """A kernel takes what it is given for its own dtype, whatever it is; CuPy 13 has other rules for scalars."""
    expected = arrays(CALLS[call](lambda array: narrow(np.asarray, array)))
    for by_value in (False, True):
        with device_arrays.device(by_value=by_value) as (cupy, _):
            found = arrays(CALLS[call](lambda array, cupy=cupy: narrow(cupy.asarray, array)))
        assert len(found) == len(expected)
        for got, right in zip(found, expected, strict=True):
            assert (got.shape, got.dtype) == (right.shape, right.dtype)
            if right.dtype.kind == "f":  # not how many iterations there were
                scale = np.abs(right[np.isfinite(right)]).max(initial=1)
                np.testing.assert_allclose(got.get(), right, rtol=0, atol=5e-4 * scale)


@pytest.mark.parametrize("kind", ["stored", "each", "points", "grid", "reach"])
@pytest.mark.parametrize("steepness", [500, 20_000])
def test_derivatives_of_steep_problems_in_float32(kind, steepness):
    """Whose exponents are beyond its digits: they are taken in float64, of cotangents in float32."""
    rng = np.random.default_rng(3)
    p, q = rng.random((2, 30, 2))
    u, v = rng.dirichlet(np.ones(30), (2, 2))
    D = cusink.cost_matrix(p, q)
    eps, reach = 40 / steepness if kind == "grid" else float(D.max()) / steepness, 1.0 if kind == "reach" else None

    def derivatives(xp):
        costs = {
            "each": lambda: xp(np.stack([D, D])),
            "points": lambda: cloud(xp, p, q),
            "grid": lambda: cusink.Grid((5, 6)),
        }.get(kind, lambda: xp(D))()
        init = None if kind == "reach" else tuple(map(xp, starts))
        result = cusink.sinkhorn(xp(u), xp(v), costs, eps=eps, tol=1e-2, max_iter=3000, reach=reach, init=init)
        of_potentials = {"grad_f": result.g, "grad_g": result.f}
        return [
            *(cusink.sinkhorn_adjoint(result, **{name: 1.0}) for name in ("grad_cost", "grad_reg_cost")),
            cusink.sinkhorn_adjoint(result, **of_potentials),
            cusink.sinkhorn_jvp(result, da=result.f) if kind != "reach" else (),
            cusink.sinkhorn_hvp(result, grad_cost=1.0, da=result.f) if kind != "reach" else (),
            result.apply(result.g, 1),
        ]

    ground = cusink.Grid((5, 6)) if kind == "grid" else D
    found = cusink.sinkhorn(u, v, ground, eps=eps, tol=1e-9, max_iter=5000)
    starts = found.f, found.g
    expected = arrays(derivatives(lambda array: narrow(np.asarray, array)))
    with device_arrays.device() as (cupy, _):
        found = arrays(derivatives(lambda array: narrow(cupy.asarray, array)))
    assert len(found) == len(expected)
    for got, right in zip(found, expected, strict=True):
        assert (got.shape, got.dtype) == (right.shape, right.dtype)
        scale = np.abs(right).max(initial=1)
        np.testing.assert_allclose(got.get(), right, rtol=0, atol=1e-3 * scale)


def test_near_points_of_many_coordinates_keep_their_distance():
    """A root raises the rounding of a small difference of large squares, which products on tensor cores leave."""
    given = far.astype(np.float32)
    moved = given + np.float32(1e-3) * np.arange(N, dtype=np.float32)[:, None]
    logits, eps = np.full((1, N), -np.inf, np.float32), 1e-3
    logits[0, 4] = 0  # the softmin is the distance to this point
    with device_arrays.device() as (cupy, launched):
        parts = cupy.asarray(given), cupy.asarray(moved)
        C = operand(cusink.PointCloud(*parts, metric="euclidean"), cupy, given.dtype, parts)
        found = [C.softmin(cupy.asarray(logits), eps, axis).get()[0] for axis in (0, 1)]
    assert "softmin_products" in launched
    difference = given[:, None].astype(np.float64) - moved
    exact = np.sqrt((difference**2).sum(axis=2))
    for values, right in zip(found, (exact[4], exact[:, 4]), strict=True):
        # Centred points have a rounding of their own; 2^-20 / CLOSE is what a distance may lose above it.
        np.testing.assert_allclose(values, right, rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda cupy, z: np.where(z > 0, z, 0),
        lambda cupy, z: cupy.where(np.ones(3, bool), z, 0),
        lambda cupy, z: z + np.ones(3),
        lambda cupy, z: np.asarray(z),
        lambda cupy, z: z.__setitem__(slice(None), np.ones(3)),
        lambda cupy, z: z.max(initial=0),
        lambda cupy, z: np.add.reduce(z),
        lambda cupy, z: z.flags.writeable,
        lambda cupy, z: cupy.no_such_function(z),
    ],
)
def test_what_cupy_refuses_is_refused(mistake):
    with device_arrays.device() as (cupy, _), pytest.raises((TypeError, AttributeError)):
        mistake(cupy, cupy.asarray(np.ones(3)))


def test_a_temporary_in_a_capture_is_refused():
    with device_arrays.device() as (cupy, _):
        z, stream = cupy.asarray(np.ones(3)), cupy.cuda.Stream(non_blocking=True)
        for make in (lambda: z + z, lambda: z.sum(), lambda: cupy.where(z > 0, z, 0), lambda: cupy.empty(3)):
            with stream:
                stream.begin_capture()
                with pytest.raises(emulated.EmulationError, match="while a stream captures"):
                    make()
                with pytest.raises(emulated.EmulationError, match="gives no graph"):
                    stream.end_capture()


def test_arrays_of_the_device_compute():
    with device_arrays.device() as (cupy, _):
        z = cupy.asarray([3.0, 1.0, 2.0])
        assert isinstance(z.sum(), device_arrays.ndarray) and z.sum().shape == () and float(z.sum()) == 6
        assert (np.float64(2) * z)[np.array([2, 0])].get().tolist() == [4.0, 6.0]
        assert cupy.asnumpy(cupy.where(z > 1, z, 0)).tolist() == [3.0, 0.0, 2.0]


def test_a_kernel_s_own_shared_memory_counts_too():
    """A block has 48 KiB without being asked for, for what is static and dynamic together."""

    class Static:
        max_dynamic_shared_size_bytes = PLAIN_SHARED_MEMORY - 144

        def __call__(self, grid, block, arguments, *, shared_mem):
            assert shared_mem <= self.max_dynamic_shared_size_bytes

    with device_arrays.device(), pytest.MonkeyPatch.context() as patch:
        from cusink.backends.cupy import run

        patch.setattr(loader, "function", lambda *_: Static())
        patch.setattr(run, "_check", lambda *_: None)
        for shared in (0, PLAIN_SHARED_MEMORY - 144, PLAIN_SHARED_MEMORY - 100, PLAIN_SHARED_MEMORY, 99 << 10):
            run.run(Launch("iterate.cu", "iterate_1", 1, 32, shared), np.float32)


# One call of each kind of argument: arrays, clouds, results (gradients and methods), lists, Measures.
ELSEWHERE = (
    "ragged pairs",
    "sinkhorn",
    "points each",
    "start",
    "costs",
    "documents",
    "kernel",
    "divergence of points",
    "barycenter",
)


@pytest.mark.parametrize("call", ELSEWHERE)
def test_arrays_of_a_device_that_is_not_current_are_computed_on_theirs(call):
    with device_arrays.device() as (cupy, _):

        def there(x):
            with cupy.cuda.Device(1):
                return cupy.asarray(x)

        found = arrays(CALLS[call](there))
        assert found and {array.device.id for array in found} == {1}
        assert cupy.cuda.Device().id == 0


def test_products_do_not_depend_on_tf32():
    """With CUPY_TF32=1 CuPy multiplies in tf32: the error is then measured with the same wrong products."""
    problem = [w.astype("f") for w in (a, b, C)]
    with device_arrays.device(0) as (cupy, _):
        linalg = cupy._core._routines_linalg
        plain = cusink.sinkhorn(*map(cupy.asarray, problem), eps=0.1, tol=1e-5)
        linalg.set_compute_type("f", linalg.COMPUTE_TYPE_TF32)
        rounded = cupy.dot(*(cupy.asarray(x) for x in (problem[0], problem[2])))
        assert abs(rounded.get() - problem[0] @ problem[2]).max() > 1e-5  # so it is felt where it is not put off
        found = cusink.sinkhorn(*map(cupy.asarray, problem), eps=0.1, tol=1e-5)
        np.testing.assert_array_equal(found.cost.get(), plain.cost.get())
        assert linalg.get_compute_type("f") == linalg.COMPUTE_TYPE_TF32
