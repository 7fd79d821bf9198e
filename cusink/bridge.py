"""Options, refusals and rules of half precision that the losses of `cusink.torch` and `cusink.jax` share."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from cusink.checks.arrays import array_module
from cusink.checks.scalars import one_of
from cusink.checks.weights import MASS_TOLERANCE
from cusink.solver import checks
from cusink.types import Array, Value

__all__ = [
    "LossOptions",
]

Gradient: TypeAlias = Literal["exact", "multiplier"]
Reduction: TypeAlias = Literal["mean", "sum", "none"]


@dataclass(frozen=True, eq=False)
class LossOptions:
    """Options of a loss, whose words are checked; `solver` holds those of `cusink.sinkhorn`, which checks them."""

    value: Value
    gradient: Gradient
    reduction: Reduction
    solver: dict[str, Any]

    def __post_init__(self) -> None:
        one_of("value", self.value, get_args(Value))
        one_of("gradient", self.gradient, get_args(Gradient))
        one_of("reduction", self.reduction, get_args(Reduction))

    @property
    def reach(self) -> tuple[float, float] | None:
        """The checked prices of the marginals, None for balanced transport."""
        return checks.reach(self.solver.get("reach"), self.solver.get("method", "auto"))

    def cotangents(self, grad_losses: Array) -> dict[str, Any]:
        """Return the keywords of `cusink.sinkhorn_adjoint` for the gradient `grad_losses` (B,) or () of the losses.

        Where that is not finite it counts as zero here, and `lost` tells.
        """
        multiplier = self.gradient == "multiplier" and self.value == "cost"
        value = "reg_cost" if multiplier else self.value
        xp = array_module(grad_losses)
        finite = xp.isfinite(grad_losses)
        grad_losses = grad_losses if finite.all() else xp.where(finite, grad_losses, 0)
        tol = self.solver.get("tol", "auto")
        return {f"grad_{value}": grad_losses, "tol": 1e-6 if tol in (None, "auto") else tol}

    def reduce(self, losses: Any) -> Any:
        """Return the mean or the sum of the losses (B,), or the losses themselves."""
        return losses if self.reduction == "none" else getattr(losses, self.reduction)()


def lost(name: str, grad: Array, grad_losses: Array) -> Array:
    """Return the gradient of a, b, C or eps, NaN for the problems where that of the losses (B,) or () is not finite.

    The scaler of half-precision training expects an overflow to arrive at the parameters.
    """
    xp = array_module(grad_losses)
    wrong = ~xp.isfinite(grad_losses)
    if not wrong.any():
        return grad
    inner = {"a": 1, "b": 1, "C": 2, "eps": 0}[name]  # axes of one problem
    own = wrong.ndim == 1 and grad.ndim > inner and len(grad) == len(wrong)
    return xp.where(wrong.reshape(-1, *(1,) * inner) if own else wrong.any(), xp.nan, grad).astype(grad.dtype)


def stored_cost(name: str, C: object, wanted: str, dense: str) -> None:
    """Refuse a `cusink.PointCloud` or `cusink.Grid`, which has no memory to share and no gradient here."""
    if hasattr(C, "dense"):
        given = f"cusink.{type(C).__name__}"
        raise TypeError(f"'{name}' must be {wanted}; got {given}. Pass {dense}, or C itself to cusink.sinkhorn")


def mass_ratio(xp: Any, a: Any, b: Any) -> Any:
    """Return the factors (..., 1) that give `b` the mass of `a`, 1 where rounding to half precision is no reason.

    `xp` is the library of a (..., n) and b (..., m): torch or jax.numpy.
    """
    ratio = a.sum(axis=-1, keepdims=True) / b.sum(axis=-1, keepdims=True)
    return xp.where(abs(ratio - 1) <= MASS_TOLERANCE["bfloat16"], ratio, 1)
