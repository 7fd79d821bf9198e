"""The works of `cusink.bridges` as operators of PyTorch, so that ``torch.compile`` keeps a loss inside its graph.

A compiled graph knows tensors and words alone: a work goes in as a word, from which it is made again.
"""

import ast
import functools
import math
from collections.abc import Sequence
from types import NoneType
from typing import Any, Never

import torch
from torch.autograd import forward_ad

from cusink.bridges.options import CostKind
from cusink.bridges.relative import EpsOfCosts, eps_of_grid
from cusink.bridges.works import Work
from cusink.checks.regularisation import RelativeEps
from cusink.placement import undisturbed
from cusink.torch import autograd, calls


def apply(work: Work, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return the outputs of a work, as a function of autograd or, in code that is being compiled, as an operator."""
    tensors = [inputs[name] for name in work.ranks]
    if torch.compiler.is_compiling() and not _transformed():
        return _solved(work, tensors)[: len(work.outputs)]
    return _differentiable(work, tensors)[: len(work.outputs)]


def _transformed() -> bool:
    """Return whether derivatives are taken forwards, or by ``torch.func``, of which operators know nothing."""
    # Where it is traced, `is not None` holds of every level, of None too.
    transformed = not isinstance(torch._C._functorch.peek_interpreter_stack(), NoneType)
    return transformed or forward_ad._current_level >= 0


@undisturbed
def _differentiable(work: Work, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return outputs and state of a work by a function of autograd."""
    out: tuple[torch.Tensor, ...] = autograd.Solve.apply(work, 0, *tensors)
    return out


def eps_in_units(eps: RelativeEps, kind: CostKind, named: dict[str, Any]) -> Any:
    """Return eps in the unit of the costs among named tensors; no gradient goes through it."""
    if not kind.names:
        return eps_of_grid(eps, kind)
    (number,) = apply(EpsOfCosts(kind, eps.share, eps.of), {name: named[name].detach() for name in kind.names})
    return number


def _solved(work: Work, tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return outputs and state of a work."""
    word = f"{type(work).__name__} {_word(work.made_of)}"
    return tuple(torch.ops.cusink.solve(word, tensors))


def _word(part: Any) -> str:
    """Return what `ast.literal_eval` reads as a part of a work."""
    if isinstance(part, tuple):
        return "(" + "".join([_word(x) + ", " for x in part]) + ")"
    if isinstance(part, (int, float)) and not isinstance(part, bool):
        [number] = {part: None}  # a key is a number also where compiled code has a symbol, which has no word
        return "1e999" if number == math.inf else repr(float(number) if isinstance(part, float) else int(number))
    return repr(part)


@functools.lru_cache(1024)
def work_of(word: str) -> Work:
    """Return the work that a word stands for."""
    name, _, parts = word.partition(" ")
    try:
        given = ast.literal_eval(parts)
    except (ValueError, SyntaxError):
        raise TypeError(
            f"options of a loss must be numbers and words where code is compiled; got {parts}. Call the loss outside "
            "of torch.compile"
        ) from None
    made: Any = Work.kinds[name]
    work: Work = made(
        *(CostKind(*part) if at == 0 and isinstance(part, tuple) else part for at, part in enumerate(given))
    )
    return work


def _shapes(work: Work, inputs: Sequence[torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return work.shapes({name: tuple(x.shape) for name, x in zip(work.ranks, inputs, strict=True)})


@torch.library.custom_op("cusink::solve", mutates_args=())
def _solve(word: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x.clone() for x in calls.run(work_of(word), 0, tuple(inputs))]


@_solve.register_fake
def _(word: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    work, out = work_of(word), []
    for name, shape in _shapes(work, inputs).items():
        dtype = torch.float64 if name.startswith("potential") or name == "shift" else inputs[0].dtype
        out.append(inputs[0].new_empty(shape, dtype=torch.bool if name == "converged" else dtype))
    return out


@torch.library.custom_op("cusink::pull", mutates_args=())
def _pull(word: str, wanted: str, cotangents: list[torch.Tensor], tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    work = work_of(word)
    inputs, state = tuple(tensors[: len(work.ranks)]), tuple(tensors[len(work.ranks) :])
    names = tuple(wanted.split())
    return [x.clone() for x in calls.pull(work, 0, names, tuple(cotangents), inputs, state)]


@_pull.register_fake
def _(word: str, wanted: str, cotangents: list[torch.Tensor], tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    del cotangents
    by_name = dict(zip(work_of(word).ranks, tensors, strict=False))
    return [torch.empty_like(by_name[name]) for name in wanted.split()]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    ctx.word, tensors = inputs
    work = work_of(ctx.word)
    ctx.count = len(tensors)
    ctx.needed = [name for name, x in zip(work.ranks, tensors, strict=True) if x.requires_grad]
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grads: list[torch.Tensor]) -> tuple[None, list[torch.Tensor | None]]:
    work, tensors = work_of(ctx.word), ctx.saved_tensors  # which may be asked for once
    inputs, rest = tensors[: ctx.count], tensors[ctx.count :]
    outputs, state = rest[: len(work.outputs)], rest[len(work.outputs) :]
    cotangents = [torch.zeros_like(y) if g is None else g for g, y in zip(grads, outputs, strict=False)]
    found = torch.ops.cusink.pull(ctx.word, " ".join(ctx.needed), cotangents, [*inputs, *state])
    by_name = dict(zip(ctx.needed, found, strict=True))
    return None, [by_name.get(name) for name in work.ranks]


_solve.register_autograd(_backward, setup_context=_keep)


def _refuse_twice(_ctx: Any, *_: Any) -> Never:
    raise RuntimeError(
        "a compiled loss of cusink can be differentiated once only. Call the loss outside of torch.compile"
    )


_pull.register_autograd(_refuse_twice)
