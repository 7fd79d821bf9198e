"""The CuPy operators for costs that are made in blocks, on emulated kernels, beside stored costs."""

import dataclasses

import emulated
import numpy as np
import pytest
from emulated import oracle
from emulated.cupy_stand_in import operators, part
from emulated.oracle import assert_as_good

import cusink
from cusink.backends.numpy import blocks as numpy_blocks
from cusink.convergence.options import Options
from cusink.costs.operands import PointCost
from cusink.gradients.system import LinearSolve, solve_marginal_system
from cusink.solver.loop import solve
from cusink.solver.problem import Problem

pytestmark = pytest.mark.skipif(emulated.compiler() is None, reason="no g++ to build the emulated kernels")

FEW_BYTES = 1 << 13  # which hold three rows of costs


def costs(n, m, own, dtype, memory_limit=FEW_BYTES):
    """Points with labels, of one problem or of three."""
    rng = np.random.default_rng(0)
    x, y = (rng.random(((3,) if own else ()) + (size, 2)).astype(dtype) for size in (n, m))
    labels, table = (rng.integers(0, 3, n), rng.integers(0, 3, m)), rng.random((3, 3))
    cloud = cusink.PointCloud(x, y, "minkowski", p=3, labels=labels, table=table)
    return cloud.ground.costs(np, cloud.x, cloud.y, cloud.labels, memory_limit, cloud), cloud.dense()


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reductions_over_blocks_agree_with_those_over_a_stored_cost(own, dtype):
    C, stored = costs(37, 34, own, dtype)
    rng, eps = np.random.default_rng(1), 0.5
    p, q = (rng.normal(size=(3, size)).astype(dtype) - 3 for size in (37, 34))
    p[:, 1], q[:, -1] = -np.inf, -np.inf
    v, w = (rng.normal(size=(3, size)).astype(dtype) for size in (34, 37))
    with operators():
        door = part("blocks").OPERATORS
        for name, *args in (
            ("softmin", q, eps, 1),
            ("softmin", p, eps, 0),
            ("apply_plan", p, q, v, eps, 1),
            ("apply_plan", p, q, w, eps, 0),
            ("c_transform", q, 1),
            ("c_transform", p, 0),
            ("transport_cost", p, q, eps),
            ("plan", p, q, eps),
        ):
            with np.errstate(all="ignore"):
                exact = getattr(oracle, name)(stored, *args)
                naive = getattr(oracle, name)(stored, *args, dtype=np.float32)
                assert_as_good(getattr(door, name)(C, *args), exact, naive, stored.max() / eps + 10)
        a, b = np.exp(p), np.exp(q)
        wanted = np.einsum("bi,bij,bj->b" if own else "bi,ij,bj->b", a, stored, b)
        np.testing.assert_allclose(door.bilinear(C, a, b), wanted, rtol=1e-5)
        np.testing.assert_allclose(
            door.cost_block(C, slice(0, 2), slice(3, 9)), stored[..., 3:9, :][:2] if own else stored[3:9]
        )
        assert door.cost_range(C) == (stored.min(), stored.max())


@pytest.mark.parametrize(("own", "memory_limit"), [(False, FEW_BYTES), (True, FEW_BYTES), (False, 1 << 20)])
def test_solves_and_linear_systems_are_those_of_numpy(own, memory_limit):
    C, _ = costs(24, 20, own, np.float64, memory_limit)
    rng = np.random.default_rng(2)
    a, b = rng.dirichlet(np.ones(24), 3), rng.dirichlet(np.ones(20), 3)
    a[1, 3] = 0
    a[1] /= a[1].sum()
    with operators():
        operands = [PointCost(C, module.OPERATORS) for module in (part("blocks"), numpy_blocks)]
        results = [solve(operand, a, b, 0.5, Options(max_iter=200, tol=1e-8)) for operand in operands]
        sums = [f[:, :, None] + g[:, None, :] for f, g, *_ in results]
        np.testing.assert_allclose(*sums, rtol=1e-6, atol=1e-6)
        assert all(converged.all() for *_, converged in (result[:6] for result in results)), "not converged"
        f, g = results[1][:2]
        fits = [
            solve_marginal_system(
                Problem(a=a, b=b, C=operand, eps=0.5, f=f, g=g, dtype=a.dtype, batched=True),
                lambda _, means: (means.mean_cost(1), means.mean_cost(0)),
                LinearSolve(1e-10, 500),
            )
            for operand in operands
        ]
        np.testing.assert_allclose(*(fit[0][:, :, None] + fit[1][:, None, :] for fit in fits), rtol=1e-6, atol=1e-8)
        softmins = [operand.repeated_softmin(0.5)(np.log(b), 1) for operand in operands]
        np.testing.assert_allclose(*softmins, rtol=1e-12)


def test_a_stored_cost_of_documents_takes_the_place_of_one_that_no_kernel_knows():
    C, stored = costs(9, 8, False, np.float64)
    with operators():
        found = part("documents").Costs.of(PointCost(dataclasses.replace(C), part("blocks").OPERATORS))
        np.testing.assert_array_equal(found.x, stored)
        assert found.kind == part("documents").STORED
