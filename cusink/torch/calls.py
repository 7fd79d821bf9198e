"""Works of `cusink.bridges` on tensors: what the functions of autograd call."""

from typing import Any

import torch

from cusink.bridges import works
from cusink.bridges.works import Work
from cusink.placement import undisturbed
from cusink.torch.arrays import array, stream, tensor

Tensors = tuple[torch.Tensor, ...]


@undisturbed
def run(work: Work, lead: int, inputs: Tensors) -> Tensors:
    """Return outputs and state."""
    with stream(inputs[0]):
        out = works.run(work, lead, dict(zip(work.ranks, map(array, inputs), strict=True)))
        return tuple(tensor(out[name], inputs[0]) for name in (*work.outputs, *work.state))


@undisturbed
def pull(
    work: Work, lead: int, wanted: tuple[str, ...], cotangents: Tensors, inputs: Tensors, state: Tensors
) -> Tensors:
    """Return the gradients of the inputs in `wanted`."""
    with stream(inputs[0]):
        given, kept, weights = _named(work, inputs, state, cotangents)
        out = works.pull(work, lead, given, kept, weights, wanted)
        return tuple(_like(tensor(out[name], inputs[0]), x) for name, x in chosen(work, wanted, inputs))


@undisturbed
def push(work: Work, lead: int, moving: tuple[str, ...], moves: Tensors, inputs: Tensors, state: Tensors) -> Tensors:
    """Return the derivatives of the outputs along the `moves` of the inputs in `moving`."""
    with stream(inputs[0]):
        given, kept, _ = _named(work, inputs, state, ())
        out = works.push(work, lead, given, kept, dict(zip(moving, map(array, moves), strict=True)))
        return tuple(tensor(out[name], inputs[0]) for name in work.outputs)


@undisturbed
def product(
    work: Work,
    lead: int,
    wanted: tuple[str, ...],
    moving: tuple[str, ...],
    cotangents: Tensors,
    moves: Tensors,
    inputs: Tensors,
    state: Tensors,
) -> Tensors:
    """Return the derivatives of the gradients of the inputs in `wanted`."""
    with stream(inputs[0]):
        given, kept, weights = _named(work, inputs, state, cotangents)
        directions = dict(zip(moving, map(array, moves), strict=True))
        out = works.product(work, lead, given, kept, weights, directions, wanted)
        return tuple(_like(tensor(out[name], inputs[0]), x) for name, x in chosen(work, wanted, inputs))


def _named(work: Work, inputs: Tensors, state: Tensors, cotangents: Tensors) -> tuple[Any, Any, Any]:
    """Return arrays by name: of inputs, state and cotangents."""
    given, kept, weights = (
        dict(zip(of, map(array, x), strict=False))
        for of, x in ((work.ranks, inputs), (work.state, state), (work.outputs, cotangents))
    )
    return given, kept, weights


def chosen(work: Work, wanted: tuple[str, ...], inputs: Tensors) -> list[tuple[str, torch.Tensor]]:
    """Return names and tensors of the inputs in `wanted`, in its order."""
    by_name = dict(zip(work.ranks, inputs, strict=True))
    return [(name, by_name[name]) for name in wanted]


def _like(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return a gradient on the device and in the dtype of its input."""
    return grad.to(x.device, x.dtype)
