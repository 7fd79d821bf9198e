"""The rules of `cusink.convergence` as arguments of the CUDA kernels that check their problems themselves."""

from dataclasses import replace
from typing import NamedTuple, Self

import cupy as cp
import numpy as np

from cusink.convergence.rules import (
    FIRST_OMEGA,
    FIRST_OMEGA_IF_STEEP,
    LARGEST_OMEGA,
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

    @classmethod
    def of(cls, state: StopState, tol: float) -> Self:
        """Return the rules for problems in this state; a negative `tol` is one that no error reaches."""
        relaxation, stall = state.relaxation, state.stall
        first = FIRST_OMEGA_IF_STEEP if relaxation.steep else FIRST_OMEGA  # omega after the first check
        return cls(
            *(np.float64(tol), np.float64(stall.level), np.float64(PROGRESS)),
            *(np.float64(first), np.float64(LARGEST_OMEGA)),
            *(np.int32(STALLED_CHECKS), np.int32(relaxation.adaptive)),
        )


NO_RULES = StopRules(*(np.float64(0),) * 5, *(np.int32(0),) * 2)


def to_table(state: StopState) -> Array:
    """Return the ``StopState`` of ``convergence.cuh`` of every problem (B, 6); none has stopped."""
    relaxation, stall, retry = state
    columns = (relaxation.omega, relaxation.error, stall.best, stall.checks, np.zeros(len(retry)), retry)
    return cp.asarray(np.stack(columns, axis=1))


def from_table(table: Array, before: StopState, checks: int) -> tuple[StopState, HostArray]:
    """Return the state after another `checks`, and which problems stopped (B,)."""
    omega, error, best, stalled, stopped, _ = np.ascontiguousarray(cp.asnumpy(table).T)
    relaxation = replace(before.relaxation, omega=omega, error=error, checks=before.relaxation.checks + checks)
    stall = replace(before.stall, best=best, checks=stalled.astype(np.int64))
    return before._replace(relaxation=relaxation, stall=stall), stopped != 0
