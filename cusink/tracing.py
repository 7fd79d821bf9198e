"""PyTorch's compiler kept out of the package: it would make PyTorch's functions of NumPy's, with other numbers.

Code that is being compiled, and what it calls, is traced by TorchDynamo, NumPy included. Not all that it makes of NumPy
computes the same.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function, and all that it calls, run as they stand where PyTorch's compiler would trace them."""
    apart: list[Callable[P, R]] = []
    reason = f"'{function.__name__}' of cusink computes with NumPy or CuPy"

    @functools.wraps(function)
    def wrapped(*args: P.args, **options: P.kwargs) -> R:
        if not apart:
            dynamo: Any = sys.modules.get("torch._dynamo")  # without it nothing is traced
            disable = getattr(dynamo, "disable", None)
            if disable is None:
                return function(*args, **options)
            apart.append(disable(function, reason=reason))
        return apart[0](*args, **options)

    vars(wrapped).update(_torchdynamo_disable=True, _torchdynamo_disable_msg=reason)  # nor is this looked into
    return wrapped
