"""What an iteration of unbalanced transport does beside `softmin`, for CuPy arrays: a launch each."""

from typing import Any

import cupy as cp
import numpy as np

from cusink.backends.cupy.run import NULL, choose_launch, run, sizes
from cusink.convergence.rules import NO_REACH
from cusink.costs.operators import Damped
from cusink.types import Array, Reach


class KernelSteps:
    """`cusink.costs.operators.DampedSteps` by the kernels of ``unbalanced.cu``."""

    def update(
        self,
        potential: Array,
        image: Array,
        shift: Array,
        sign: int,
        weights: Array,
        log_weights: Array,
        excess: Array | None,
        eps: float,
        rho: float,
    ) -> tuple[Array, Array]:
        """Return the next potential (B, n) of a side, and its logits."""
        inputs = [cp.ascontiguousarray(x) for x in (potential, image, weights, log_weights, shift)]
        (B, n), dtype = potential.shape, potential.dtype
        out, logits = cp.empty((B, n), dtype), cp.empty((B, n), dtype)
        past = NULL if excess is None else cp.ascontiguousarray(excess)
        scalars = (np.float64(x) for x in (sign, eps, rho, step_down(eps, rho)))
        run(choose_launch("damped_update", B, n, 1, dtype), dtype, out, logits, *inputs, past, *scalars, *sizes(B, n))
        return out, logits

    def translation(self, a: Array, b: Array, f: Array, g: Array, reach: Reach) -> Array:
        """Return the shift t (B,) of the highest dual objective for ``f + t`` and ``g - t``."""
        shift = cp.empty(len(a), np.float64)
        a, b, f, g = map(cp.ascontiguousarray, (a, b, f, g))
        translate(shift, a, b, f, g, reach)
        return shift

    def iterate(self, *_: Any) -> Damped | None:
        """Return None: the loop of the solver does as well."""
        return None


def translate(shift: Array, a: Array, b: Array, f: Array, g: Array, reach: Reach) -> None:
    """Write the shift to `shift` (B,) or (B, 1); all arrays are contiguous."""
    (B, n), m, dtype = a.shape, b.shape[1], a.dtype
    launch = choose_launch("translate", B, n, m, dtype)
    run(launch, dtype, shift, a, b, f, g, *(np.float64(rho) for rho in reach), *sizes(B, n, m))


def step_down(eps: float, rho: float) -> float:
    """Return the unit of a step down."""
    return min(rho, NO_REACH * eps)


STEPS = KernelSteps()
