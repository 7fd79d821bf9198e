"""Works of `cusink.bridges` as functions of autograd: derivatives of both modes, of second order, and maps over them.

PyTorch's own rules for custom functions hold: `setup_context`, `jvp` and `vmap` let ``torch.func`` compose them. Where
code is being compiled, `cusink.torch.operators` stands in for them.
"""

from typing import Any, Never

import torch

from cusink.bridges import works
from cusink.bridges.works import Work
from cusink.placement import undisturbed
from cusink.torch.arrays import array, stream, tensor

Tensors = tuple[torch.Tensor, ...]
Optional = tuple[torch.Tensor | None, ...]


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
        return tuple(_like(tensor(out[name], inputs[0]), x) for name, x in _chosen(work, wanted, inputs))


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
        return tuple(_like(tensor(out[name], inputs[0]), x) for name, x in _chosen(work, wanted, inputs))


class Solve(torch.autograd.Function):
    """Outputs and state of a work, given ``(work, lead, *inputs)``."""

    @staticmethod
    def forward(work: Work, lead: int, *inputs: torch.Tensor) -> Tensors:
        """Run the work."""
        return run(work, lead, inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Keep what derivatives need."""
        ctx.work, ctx.lead, *tensors = inputs
        state = output[len(ctx.work.outputs) :]
        ctx.mark_non_differentiable(*state)
        ctx.set_materialize_grads(False)
        # Once these are saved, PyTorch notices if they change in place before backward, as for functions of its own.
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Return gradients."""
        work = ctx.work
        inputs, outputs, state = _parts(work, ctx.saved_tensors)
        wanted = tuple(name for name, need in zip(work.ranks, ctx.needs_input_grad[2:], strict=True) if need)
        if not wanted:
            return (None,) * (2 + len(inputs))
        cotangents = (torch.zeros_like(y) if g is None else g for g, y in zip(grads, outputs, strict=False))
        found = Pull.apply(work, ctx.lead, wanted, *cotangents, *inputs, *state)
        return None, None, *_spread(work, wanted, found)

    @staticmethod
    def jvp(ctx: Any, *moves: Any) -> tuple[torch.Tensor | None, ...]:
        """Return derivatives along moves."""
        work = ctx.work
        inputs, _, state = _parts(work, ctx.saved_tensors)
        moving, moves = _moving(work, moves[2:])
        found = Push.apply(work, ctx.lead, moving, *moves, *inputs, *state)
        return *found, *(None,) * len(state)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], work: Work, lead: int, *inputs: torch.Tensor) -> Any:
        """Map over an axis, as one more in front."""
        del info
        tensors = _in_front(inputs, in_dims[2:])
        return Solve.apply(work, lead + 1, *tensors), (0,) * (len(work.outputs) + len(work.state))


class Pull(torch.autograd.Function):
    """Gradients, given ``(work, lead, wanted, *cotangents, *inputs, *state)``, as a function of all they depend on."""

    @staticmethod
    def forward(work: Work, lead: int, wanted: tuple[str, ...], *tensors: torch.Tensor) -> Tensors:
        """Run the work."""
        cotangents, rest = tensors[: len(work.outputs)], tensors[len(work.outputs) :]
        return pull(work, lead, wanted, cotangents, rest[: len(work.ranks)], rest[len(work.ranks) :])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Keep what derivatives need."""
        del output
        ctx.work, ctx.lead, ctx.wanted, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Multiply with the Hessian, which is its own transpose."""
        work, count = ctx.work, len(ctx.work.outputs)
        cotangents, inputs, state = _pulled(work, tensors := ctx.saved_tensors)
        moving = tuple(name for name, g in zip(ctx.wanted, grads, strict=True) if g is not None)
        moves = tuple(g for g in grads if g is not None)
        needs = ctx.needs_input_grad[3:]
        wanted = tuple(name for name, need in zip(work.ranks, needs[count:], strict=False) if need)
        if not moving:
            return (None,) * (3 + len(tensors))
        of_cotangents: tuple[Any, ...] = (None,) * count
        if any(needs[:count]):
            of_cotangents = Push.apply(work, ctx.lead, moving, *moves, *inputs, *state)
        of_inputs: tuple[Any, ...] = (None,) * len(inputs)
        if wanted:
            refuse_twice(work)
            found = Product.apply(work, ctx.lead, wanted, moving, *cotangents, *moves, *inputs, *state)
            of_inputs = _spread(work, wanted, found)
        return None, None, None, *of_cotangents, *of_inputs, *(None,) * len(state)

    @staticmethod
    def jvp(ctx: Any, *moves: Any) -> tuple[torch.Tensor | None, ...]:
        """Return derivatives along moves."""
        work, count = ctx.work, len(ctx.work.outputs)
        cotangents, inputs, state = _pulled(work, ctx.saved_tensors)
        of_cotangents = moves[3 : 3 + count]
        total: Optional = (None,) * len(ctx.wanted)
        if any(x is not None for x in of_cotangents):
            full = (torch.zeros_like(w) if x is None else x for x, w in zip(of_cotangents, cotangents, strict=True))
            total = Pull.apply(work, ctx.lead, ctx.wanted, *full, *inputs, *state)
        moving, of_inputs = _moving(work, moves[3 + count : 3 + count + len(inputs)])
        if moving:
            refuse_twice(work)
            found = Product.apply(work, ctx.lead, ctx.wanted, moving, *cotangents, *of_inputs, *inputs, *state)
            total = tuple(y if x is None else x + y for x, y in zip(total, found, strict=True))
        return total

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], work: Work, lead: int, wanted: Any, *tensors: torch.Tensor) -> Any:
        """Map over an axis, as one more in front."""
        full = _expanded(work, _in_front(tensors, in_dims[3:]), len(work.outputs), wanted, info.batch_size)
        return Pull.apply(work, lead + 1, wanted, *full), (0,) * len(wanted)


class Push(torch.autograd.Function):
    """Derivatives of the outputs, given ``(work, lead, moving, *moves, *inputs, *state)``."""

    @staticmethod
    def forward(work: Work, lead: int, moving: tuple[str, ...], *tensors: torch.Tensor) -> Tensors:
        """Run the work."""
        moves, rest = tensors[: len(moving)], tensors[len(moving) :]
        return push(work, lead, moving, moves, rest[: len(work.ranks)], rest[len(work.ranks) :])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Keep what derivatives need."""
        del output
        ctx.work, ctx.lead, ctx.moving, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Return gradients: by the moves, in which the derivative is linear, that is the gradient of the work."""
        work, count = ctx.work, len(ctx.moving)
        tensors = ctx.saved_tensors
        moves, rest = tensors[:count], tensors[count:]
        inputs, state = rest[: len(work.ranks)], rest[len(work.ranks) :]
        needs = ctx.needs_input_grad[3:]
        if len(grads) > 1:
            _refuse(work)
        cotangent = grads[0]
        if cotangent is None:
            return (None,) * (3 + len(tensors))
        of_moves: tuple[Any, ...] = (None,) * count
        if any(needs[:count]):
            whole = _whole(work, inputs, dict(zip(ctx.moving, moves, strict=True)), ctx.lead)
            found = Pull.apply(work, ctx.lead, ctx.moving, cotangent, *whole, *state)
            of_moves = tuple(x.sum_to_size(move.shape) for x, move in zip(found, moves, strict=True))
        of_inputs: tuple[Any, ...] = (None,) * len(inputs)
        wanted = tuple(name for name, need in zip(work.ranks, needs[count:], strict=False) if need)
        if wanted:
            refuse_twice(work)
            found = Product.apply(work, ctx.lead, wanted, ctx.moving, cotangent, *moves, *inputs, *state)
            of_inputs = _spread(work, wanted, found)
        return None, None, None, *of_moves, *of_inputs, *(None,) * len(state)

    @staticmethod
    def jvp(_ctx: Any, *_: Any) -> Never:
        """Refuse forward mode over forward mode."""
        raise RuntimeError(
            "cusink losses cannot be differentiated forwards twice. Take the forward derivative of a gradient, as "
            "torch.func.hessian does"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], work: Work, lead: int, moving: Any, *tensors: torch.Tensor) -> Any:
        """Map over an axis, as one more in front."""
        del info
        return Push.apply(work, lead + 1, moving, *_in_front(tensors, in_dims[3:])), (0,) * len(work.outputs)


class Product(torch.autograd.Function):
    """Derivatives of gradients, given ``(work, lead, wanted, moving, *cotangents, *moves, *inputs, *state)``."""

    @staticmethod
    def forward(
        work: Work, lead: int, wanted: tuple[str, ...], moving: tuple[str, ...], *tensors: torch.Tensor
    ) -> Tensors:
        """Run the work."""
        count, moved = len(work.outputs), len(work.outputs) + len(moving)
        rest = tensors[moved:]
        parts = tensors[:count], tensors[count:moved], rest[: len(work.ranks)], rest[len(work.ranks) :]
        return product(work, lead, wanted, moving, *parts)

    @staticmethod
    def setup_context(_ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Keep nothing."""
        del inputs, output

    @staticmethod
    def backward(_ctx: Any, *_: torch.Tensor) -> Never:
        """Refuse derivatives of third order."""
        raise RuntimeError("cusink losses can be differentiated twice only: their Hessians have no derivative")

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], work: Work, lead: int, wanted: Any, moving: Any, *tensors: torch.Tensor
    ) -> Any:
        """Map over an axis, as one more in front."""
        before = len(work.outputs) + len(moving)
        full = _expanded(work, _in_front(tensors, in_dims[4:]), before, wanted, info.batch_size)
        return Product.apply(work, lead + 1, wanted, moving, *full), (0,) * len(wanted)


def refuse_twice(work: Work) -> None:
    """Refuse a second derivative that does not exist here."""
    if not work.twice:
        _refuse(work)


def _refuse(work: Work) -> Never:
    raise RuntimeError(
        f"the {type(work).__name__} of cusink can be differentiated once only: its gradient has no derivative"
    )


def _named(work: Work, inputs: Tensors, state: Tensors, cotangents: Tensors) -> tuple[Any, Any, Any]:
    """Return arrays by name: of inputs, state and cotangents."""
    given, kept, weights = (
        dict(zip(of, map(array, x), strict=False))
        for of, x in ((work.ranks, inputs), (work.state, state), (work.outputs, cotangents))
    )
    return given, kept, weights


def _chosen(work: Work, wanted: tuple[str, ...], inputs: Tensors) -> list[tuple[str, torch.Tensor]]:
    """Return names and tensors of the inputs in `wanted`, in its order."""
    by_name = dict(zip(work.ranks, inputs, strict=True))
    return [(name, by_name[name]) for name in wanted]


def _like(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return a gradient on the device and in the dtype of its input."""
    return grad.to(x.device, x.dtype)


def _spread(work: Work, wanted: tuple[str, ...], found: Tensors) -> tuple[torch.Tensor | None, ...]:
    """Return gradients in the order of the inputs, None for those that are not wanted."""
    by_name = dict(zip(wanted, found, strict=True))
    return tuple(by_name.get(name) for name in work.ranks)


def _moving(work: Work, moves: tuple[Any, ...]) -> tuple[tuple[str, ...], Tensors]:
    """Return the names of the inputs that move, and how."""
    pairs = [(name, x) for name, x in zip(work.ranks, moves, strict=True) if x is not None]
    return tuple(name for name, _ in pairs), tuple(x for _, x in pairs)


def _whole(work: Work, inputs: Tensors, moves: dict[str, torch.Tensor], lead: int) -> Tensors:
    """Return inputs with the `lead` axes of maps that their moves have, too, as the gradients by the moves will."""

    def whole(x: torch.Tensor, move: torch.Tensor) -> torch.Tensor:
        return x.expand(*torch.broadcast_shapes(x.shape[:lead], move.shape[:lead]), *x.shape[lead:])

    return tuple(whole(x, moves[name]) if name in moves else x for name, x in zip(work.ranks, inputs, strict=True))


def _parts(work: Work, tensors: Tensors) -> tuple[Tensors, Tensors, Tensors]:
    """Return inputs, outputs and state."""
    inputs, rest = tensors[: len(work.ranks)], tensors[len(work.ranks) :]
    return inputs, rest[: len(work.outputs)], rest[len(work.outputs) :]


def _pulled(work: Work, tensors: Tensors) -> tuple[Tensors, Tensors, Tensors]:
    """Return cotangents, inputs and state."""
    cotangents, rest = tensors[: len(work.outputs)], tensors[len(work.outputs) :]
    return cotangents, rest[: len(work.ranks)], rest[len(work.ranks) :]


def _in_front(tensors: Tensors, dims: tuple[Any, ...]) -> list[torch.Tensor]:
    """Return tensors with the axis of a map in front, of size 1 in those that are not mapped."""
    return [x.unsqueeze(0) if dim is None else x.movedim(dim, 0) for x, dim in zip(tensors, dims, strict=True)]


def _expanded(
    work: Work, tensors: list[torch.Tensor], before: int, wanted: tuple[str, ...], size: int
) -> list[torch.Tensor]:
    """Return tensors in which the inputs in `wanted`, after `before` others, have the whole axis of a map."""
    full = {before + k for k, name in enumerate(work.ranks) if name in wanted}
    return [x.expand(size, *x.shape[1:]) if k in full else x for k, x in enumerate(tensors)]
