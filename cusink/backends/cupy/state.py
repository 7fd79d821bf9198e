"""Problems under way on a GPU."""

from dataclasses import dataclass, fields
from typing import Self

import cupy as cp
import numpy as np

from cusink.backends.cupy.run import choose_launch, run, sizes
from cusink.types import Array


@dataclass(frozen=True, eq=False)
class State:
    """Scalings and base-2 logits of B problems, see ``kernels/scaling.cuh``; kernels change the arrays in place."""

    a: Array  # (B, n)
    b: Array  # (B, m)
    u: Array  # (B, n), scalings of the rows
    p: Array  # (B, n), logits of the rows
    v: Array  # (B, m)
    q: Array  # (B, m)
    level: Array  # (B,), the gauge: the logits that balancing has moved from the rows to the columns
    offset: Array  # (B,), the constants of `Form.offsets`
    mass: Array  # (B,), kept so that a check does not have to sum the weights again
    index: Array | None  # (B,), which of the costs each problem has; None for a shared cost

    @classmethod
    def start(
        cls, a: Array, b: Array, f: Array, g: Array, cost_scale: float, offset: Array, index: Array | None
    ) -> Self:
        """Return the state at the potentials f (B, n) and g (B, m)."""
        (B, n), m, dtype = a.shape, b.shape[1], a.dtype
        # Potentials of an earlier solve are in float64 whatever the weights are.
        a, b, f, g = (cp.ascontiguousarray(x, dtype) for x in (a, b, f, g))
        # The kernels flush subnormals. Such a weight is an empty bin in the logits, so it must be one in the sums too.
        a, b = (cp.where(weights < np.finfo(dtype).tiny, dtype.type(0), weights) for weights in (a, b))
        u, p, v, q = (cp.empty_like(x) for x in (a, a, b, b))
        state = cls(a, b, u, p, v, q, cp.empty(B, np.float64), offset, b.sum(axis=1, dtype=np.float64), index)
        outputs = (u, p, v, q, state.level)
        launch = choose_launch("start_scalings", B, n, m, dtype)
        run(launch, dtype, *outputs, a, b, f, g, offset, np.float64(cost_scale), *sizes(B, n, m))
        return state

    @property
    def sizes(self) -> tuple[int, int, int]:
        """``(B, n, m)``."""
        B, n = self.a.shape
        return B, n, self.b.shape[1]

    def select(self, problems: Array) -> Self:
        """Return a copy of the problems at the indices `problems`."""
        parts = (getattr(self, field.name) for field in fields(self))
        return type(self)(*(None if part is None else cp.ascontiguousarray(part[problems]) for part in parts))

    def balance(self) -> None:
        """Bring the scalings of both sides to the same size."""
        launch = choose_launch("balance_scalings", *self.sizes, self.a.dtype)
        run(launch, self.a.dtype, self.u, self.p, self.v, self.q, self.level, *sizes(*self.sizes))

    def natural_logits(self) -> tuple[Array, Array]:
        """Return ``log a + f / eps`` (B, n) and ``log b + g / eps`` (B, m)."""
        return _logits(self.p, self.offset + self.level), _logits(self.q, -self.level)

    def potentials(self, plain_f: Array, plain_g: Array, cost_scale: float) -> tuple[Array, Array]:
        """Return f (B, n) and g (B, m). A zero weight has no scaling: its potential is taken from the other two."""
        rows, columns = self.offset + self.level, -self.level
        return (
            _potentials(self.u, self.p, self.a, plain_f, rows, cost_scale),
            _potentials(self.v, self.q, self.b, plain_g, columns, cost_scale),
        )


def _logits(logit: Array, constant: Array) -> Array:
    out = cp.empty_like(logit)
    (B, kept), dtype = logit.shape, logit.dtype
    launch = choose_launch("read_logits", B, kept, 1, dtype)
    run(launch, dtype, out, logit, constant, *sizes(B, kept))
    return out


def _potentials(
    scaling: Array, logit: Array, weights: Array, plain: Array, constant: Array, cost_scale: float
) -> Array:
    out = cp.empty_like(logit)
    (B, kept), dtype = logit.shape, logit.dtype
    launch = choose_launch("read_potentials", B, kept, 1, dtype)
    inputs = (scaling, logit, weights, plain, constant, np.float64(cost_scale))
    run(launch, dtype, out, *inputs, *sizes(B, kept))
    return out
