"""Every kernel passes the checks of ``cuda_checks.h``: no races, no stale shared memory, right with the device's exp2.

Small problems in float32, in several launches and orders of the threads; the values are held to the oracle as well.
"""

import numpy as np
import pytest
from backends.cupy import (
    test_clouds,
    test_documents,
    test_near,
    test_operators,
    test_ragged,
    test_strip_sums,
    test_sums,
)

import cusink
import emulated
from cusink.backends.cupy import loader
from cusink.backends.cupy.launch import PAIR_STATE, configure
from emulated import cupy_stand_in, device_arrays, oracle
from emulated.cupy_stand_in import force, operators, part

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

CHECKED = emulated.checked_function


def close(actual, exact):
    finite = np.isfinite(exact)
    assert (finite == np.isfinite(actual)).all()
    np.testing.assert_allclose(actual[finite], exact[finite], atol=2e-4 * np.abs(exact[finite]).max(initial=1))


def reductions(ops, half):
    """Every reduction over a stored cost, for a few problems, many, and a cost each."""
    rng = np.random.default_rng(0)
    for own, B in ((False, 9), (False, 3), (True, 3)):
        C, a, b, eps, f, g = test_operators.make("plain", B, 40, 37, own, np.float32)
        p, q = oracle.logits(a, f, eps).astype("f"), oracle.logits(b, g, eps).astype("f")
        for axis, logits in ((0, p), (1, q)):
            v = rng.normal(size=logits.shape).astype("f")
            close(ops.softmin(C, logits, eps, axis), oracle.softmin(C, logits, eps, axis))
            close(ops.apply_plan(C, p, q, v, eps, axis), oracle.apply_plan(C, p, q, v, eps, axis))
            close(ops.c_transform(C, logits, axis), oracle.c_transform(C, logits, axis))
            if half:
                rounded = C.astype("e")
                close(ops.softmin(rounded, logits, eps, axis), oracle.softmin(rounded.astype("d"), logits, eps, axis))
        close(ops.plan(C, p, q, eps), oracle.plan(C, p, q, eps))
        close(ops.transport_cost(C, p, q, eps), oracle.transport_cost(C, p, q, eps))


def test_kernels_of_stored_costs():
    with operators(function=CHECKED) as ops:
        for seed in range(3):
            emulated.shuffle(seed)
            reductions(ops, half=seed == 0)
        test_operators.plan_sums(np.float32, launches=((7, 3), (40, 16)))
        force(configure)
        for form, memory, method, own in test_operators.FORMS:
            test_operators.give(memory)
            problem = test_operators.make("zero weights", 5, 13, 37, own, np.float32)
            test_operators.check(form, method, problem, np.float32)
        test_operators.give(test_operators.FUSED)
        for problems in (1, 2, 4):
            test_operators.force_fused(problems, 3, 4)
            problem = test_operators.make("wide range", 5, 40, 37, False, np.float32)
            test_operators.check("FusedForm", "auto", problem, np.float32)
        ran = set(ops.launched)
    files = ("apply_plan.cu", "c_transform.cu", "iterate.cu", "plan.cu", "scaling.cu", "softmin.cu")
    assert {name for file in files for name in loader.names(file)} <= ran


def test_the_fused_kernel_s_own_checks():
    """The branch in which a block stops its problems by itself, with state in static shared memory."""
    with operators(function=CHECKED) as ops:
        C, a, b, eps, f, g = test_operators.make("plain", 5, 13, 37, False, np.float32)
        iteration = ops.Iteration(C, a, b, eps, f, g, "auto")
        relaxation = test_operators.Relaxation.start(5, "auto", 1 / eps)
        stall = test_operators.StallDetector.start(5, np.dtype(np.float32), 1 / eps)
        state = test_operators.StopState.start(relaxation, stall)
        _, _, taken, stopped = iteration.advance_until_converged(state, 1e-4, 5, 16)
        assert stopped.all() and (taken > 0).all()


def test_kernels_of_points():
    with operators(function=CHECKED, shared_memory=232448) as ops:
        for metric in test_clouds.METRICS[:1]:
            test_clouds.compare([metric], (np.float32,), test_clouds.SHAPES[1:3], test_clouds.LAUNCHES[1:2])
        force(test_clouds.forced(2, 1))
        assert test_clouds.far_points(3) < 4  # with the errors of the device's exp2
        for d in (17, 40):
            assert test_clouds.products(3, True, (2, 90, 330, d), 3) < 1
        assert set(loader.names("points.cu")) - {"cost_points"} <= set(ops.launched)
        assert set(loader.names("point_products.cu")) <= set(ops.launched)


def test_kernels_of_large_clouds():
    rng = np.random.default_rng(0)
    with operators(function=CHECKED) as ops:
        for seed, kind in enumerate(("plain", "apart", "zeros")):
            emulated.shuffle(seed)
            x, y, q = test_near.clouds(kind, 70, 2100, 2 + seed % 2, np.float32, rng)
            C = test_near.PointCosts(x, y, *test_near.METRICS[seed % 2])
            with test_near.launched(*test_near.LAUNCHES[seed]):
                close(test_near.near_sums(C, q, 1e-2, 1), oracle.softmin(C.astype("d").block(np), q, 1e-2, 1))
        assert set(ops.launched) == set(loader.names("near_points.cu"))


def test_kernels_of_sums():
    ran = []

    def kernel_of(*args):
        return cupy_stand_in.CapturingKernel(CHECKED(*args), ran)

    for launch in ((2, 2), (1, 4)):
        with cupy_stand_in.backend(cupy_stand_in.module(), kernel_of):
            force(lambda *sizes, launch=launch, **options: test_sums.forced(*launch, *sizes, **options))
            for operator in PAIR_STATE:
                for shape in ((2, 20, 30, 2), (1, 20, 30, 6)):
                    test_sums.compare(part("sums"), operator, shape, "laplace", np.float32, 1)
    assert set(ran) == set(loader.names("kernel_product.cu"))


def test_kernels_of_sums_on_tensor_cores():
    with operators(function=CHECKED, shared_memory=test_strip_sums.MEMORY) as ops:
        for seed, d in enumerate((17, 40)):
            emulated.shuffle(seed)
            force(test_strip_sums.always(3))
            for operator in test_strip_sums.SUMS:
                kernel = "distance" if "distance" in operator else "laplace"
                given = test_strip_sums.make("towns", 2, 90, 330, d)
                found, exact, _ = test_strip_sums.sums(operator, kernel, 2.0, *given)
                close(found, exact)
        assert set(ops.launched) == {"split_points", *loader.names("strip_sums.cu")}


@pytest.mark.parametrize("memory", [99 << 10, 3 << 10])
def test_kernels_of_documents(memory):
    with operators(function=CHECKED, shared_memory=memory) as ops:
        given, dense = test_documents.costs(("euclidean", 1), np.float32)
        A, B = test_documents.corpus((33,), np.float32, 1), test_documents.corpus((1, 20), np.float32)
        _, found = test_documents.on_device(A, B, given, 1.0, **test_documents.exactly(4))
        np.testing.assert_allclose(found["cost"], test_documents.table(A, B, dense, 1.0, 4)[0], rtol=1e-4)
        _, found = test_documents.on_device(A, B, given, 1.0, tol=1e-2, max_iter=8, overrelaxation="auto")
        assert (found["n_iter"] <= 8).all()
        assert set(ops.launched) == {"documents"}


@pytest.mark.parametrize("memory", [99 << 10, 3 << 10], ids=["inside", "some outside"])
def test_kernels_of_ragged_pairs(memory):
    """Blocks solve several pairs one after the other, tiles are in shared and in global memory, a cloud comes twice."""
    given = x, y, a, b = test_ragged.drawn(np.float32, [(3, 20), (34, 5), (1, 2), (7, 7), (12, 9)])
    y[3], b[3] = x[3], a[3]
    metric, eps = "euclidean", 0.5
    host = cusink.sinkhorn(*test_ragged.measures(given), metric, eps=eps)
    slopes = cusink.sinkhorn_adjoint(host, grad_cost=1.0)
    of_host = cusink.sinkhorn_divergence(*test_ragged.measures(given), metric, eps=eps)
    with device_arrays.device(memory, CHECKED) as (cupy, launched):
        ragged = part("ragged")
        real = ragged.ragged_launches
        ragged.ragged_launches = lambda *given: [
            one._replace(launch=one.launch._replace(grid=2, block=96)) for one in real(*given)
        ]
        sides = test_ragged.measures(given, cupy.asarray)
        pairs = cusink.sinkhorn(*sides, metric, eps=eps)
        close(pairs.f.get(), host.f)
        close(cusink.sinkhorn_adjoint(pairs, grad_cost=1.0, tol=1e-4).x.get(), slopes.x)
        divergences = cusink.sinkhorn_divergence(*sides, metric, eps=eps)
        assert divergences.divergence.get()[3] == 0
        found, wanted = map(cusink.sinkhorn_divergence_adjoint, (divergences, of_host))
        close(found.x.get(), wanted.x)
        assert set(launched) == {"ragged", "ragged_adjoint"}
        damped = cusink.sinkhorn(*sides, metric, eps=eps, reach=1.0, tol=1e-3)
        assert damped.converged.get().all()
        assert np.isfinite(cusink.sinkhorn_adjoint(damped, grad_cost=1.0, tol=1e-4).x.get()).all()
        assert set(launched) == {"ragged", "ragged_adjoint", "ragged_unbalanced"}
