"""The rules of `cusink.convergence` as arguments of the CUDA kernels that check their problems themselves."""

from dataclasses import replace
from typing import NamedTuple, Self

import cupy as cp
import numpy as np

from cusink.convergence.rules import (
    FIRST_OMEGA,
    FIRST_OMEGA_IF_STEEP,
    LARGEST_OMEGA,
    LEAST_OBSERVED,
    PROGRESS,
    STALLED_CHECKS,
    StopState,
)
from cusink.types import Array, HostArray


class StopRules(NamedTuple):
    """Scalar arguments, in the order of ``StopRules`` in ``convergence.cuh``."""

    tol: np.float64
    level: np.float64
    progress: np.float64
    first_omega: np.float64
    largest_omega: np.float64
    stalled_checks: np.int32
    adaptive: np.int32
    least_observed: np.int32

    @classmethod
    def of(cls, state: StopState, tol: float) -> Self:
        """Return the rules for problems in this state; a negative `tol` is one that no error reaches."""
        relaxation, stall = state.relaxation, state.stall
        first = FIRST_OMEGA_IF_STEEP if relaxation.steep else FIRST_OMEGA  # omega when first chosen
        return cls(
            *(np.float64(tol), np.float64(stall.level), np.float64(PROGRESS)),
            *(np.float64(first), np.float64(LARGEST_OMEGA)),
            *(np.int32(STALLED_CHECKS), np.int32(relaxation.adaptive), np.int32(LEAST_OBSERVED)),
        )


NO_RULES = StopRules(*(np.float64(0),) * 5, *(np.int32(0),) * 3)


def to_table(state: StopState) -> Array:
    """Return the ``StopState`` of ``convergence.cuh`` of every problem (B, 8); none has stopped."""
    relaxation, stall, retry = state
    stopped = np.zeros(len(retry))
    columns = (relaxation.omega, relaxation.error, stall.best, stall.checks, stopped, retry)
    return cp.asarray(np.stack([*columns, relaxation.error, relaxation.since], axis=1))


def from_table(table: Array, before: StopState, checks: int) -> tuple[StopState, HostArray, HostArray]:
    """Return the state after another `checks`, the errors at the last one (B,), and which problems stopped (B,)."""
    omega, error, best, stalled, stopped, _, chosen, since = np.ascontiguousarray(cp.asnumpy(table).T)
    earlier = before.relaxation
    relaxation = replace(
        earlier, omega=omega, error=chosen, since=since.astype(np.int64), checks=earlier.checks + checks
    )
    stall = replace(before.stall, best=best, checks=stalled.astype(np.int64))
    return before._replace(relaxation=relaxation, stall=stall), error, stopped != 0
