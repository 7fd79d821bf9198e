"""Derivatives that do not exist: refused where one is asked for, and nowhere else.

What a function of autograd is told of its inputs is whether they need a gradient, not whether this one is asked for:
``torch.autograd.functional.hvp`` takes a derivative by other tensors of a function of inputs that need gradients, too.
So the inputs go through a function whose backward raises. The engine calls it where their gradient is asked for.
"""

from collections.abc import Iterable
from typing import Any, Never

import torch

from cusink.bridges.works import Work

Tensors = tuple[torch.Tensor, ...]


def why_once(work: Work, name: str) -> str | None:
    """Return why a gradient has no derivative by an input; None if it has one."""
    if not work.twice:
        return work.once_only
    try:
        work.refuse_product((name,))
    except NotImplementedError as error:
        return str(error)
    return None


def once(work: Work, inputs: Tensors) -> Tensors:
    """Return the inputs of a work for its gradient, which raises where it has no derivative."""
    return without_derivatives(inputs, (why_once(work, name) for name in work.ranks))


def without_derivatives(tensors: Tensors, words: Iterable[str | None]) -> Tensors:
    """Return tensors as they are, whose derivatives raise with these words, where there are some."""
    if not torch.is_grad_enabled():
        return tensors
    return tuple(x if why is None else Refused.apply(x, why) for x, why in zip(tensors, words, strict=True))


def nothing(x: torch.Tensor) -> torch.Tensor:
    """Return the gradient for `Refused`: zeros, in the memory of one."""
    return torch.zeros((), dtype=x.dtype, device=x.device).expand(x.shape)


class Refused(torch.autograd.Function):
    """A tensor as it is, given ``(tensor, words)``."""

    @staticmethod
    def forward(x: torch.Tensor, words: str) -> torch.Tensor:
        """Return the tensor."""
        del words
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """Keep the words."""
        del output
        ctx.words = inputs[1]

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Never:
        """Refuse."""
        raise NotImplementedError(ctx.words)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Never:
        """Refuse."""
        raise NotImplementedError(ctx.words)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: torch.Tensor, words: str) -> Any:
        """Map over an axis."""
        del info
        return Refused.apply(x, words), in_dims[0]
