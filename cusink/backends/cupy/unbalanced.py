"""What an iteration of unbalanced transport does beside `softmin`, for CuPy arrays: a launch each."""

import cupy as cp
import numpy as np

from cusink.backends.cupy.run import NULL, choose_launch, run, sizes
from cusink.convergence.rules import NO_REACH
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
        scalars = (np.float64(x) for x in (sign, eps, rho, min(rho, NO_REACH * eps)))
        run(choose_launch("damped_update", B, n, 1, dtype), dtype, out, logits, *inputs, past, *scalars, *sizes(B, n))
        return out, logits

    def translation(self, a: Array, b: Array, f: Array, g: Array, reach: Reach) -> Array:
        """Return the shift t (B,) of the highest dual objective for ``f + t`` and ``g - t``."""
        inputs = [cp.ascontiguousarray(x) for x in (a, b, f, g)]
        (B, n), m, dtype = a.shape, b.shape[1], a.dtype
        shift = cp.empty(B, np.float64)
        launch = choose_launch("translate", B, n, m, dtype)
        run(launch, dtype, shift, *inputs, *(np.float64(rho) for rho in reach), *sizes(B, n, m))
        return shift


STEPS = KernelSteps()
