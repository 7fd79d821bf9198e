"""What the primitives call: works on arrays of NumPy or CuPy, and the shapes and dtypes of what comes back."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cusink.bridges import works
from cusink.bridges.works import Work

REST = "_rest"  # of a float64 that JAX does not hold, beside what float32 holds of it

Values = Sequence[Any]


def _is_double(name: str) -> bool:
    return name.startswith("potential") or name == "shift"


def _state_names(work: Work, wide: bool) -> list[str]:
    rests = [] if wide else [name + REST for name in work.state if _is_double(name)]
    return [*work.state, *rests]


# ---- what runs on arrays of NumPy or CuPy -----------------------------------------------------------------------


def _named(work: Work, tensors: Values, wide: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return inputs and state by name; the state is in float64 again."""
    count = len(work.ranks)
    given = dict(zip(work.ranks, tensors[:count], strict=True))
    kept = dict(zip(_state_names(work, wide), tensors[count:], strict=True))
    for name in work.state if not wide else ():
        if _is_double(name):
            kept[name] = kept[name].astype(np.float64) + kept.pop(name + REST)
    return given, kept


def run(*tensors: Any, work: Work, lead: int, wide: bool) -> list[Any]:
    """Return outputs and state of a work."""
    out = works.run(work, lead, dict(zip(work.ranks, tensors, strict=True)))
    for name in work.state if not wide else ():
        if _is_double(name):
            exact = out[name]
            out[name] = exact.astype(np.float32)
            with np.errstate(invalid="ignore"):  # +inf has no rest
                out[name + REST] = np.nan_to_num(exact - out[name]).astype(np.float32)
    return [out[name] for name in (*work.outputs, *_state_names(work, wide))]


def pull(*tensors: Any, work: Work, lead: int, wide: bool, wanted: tuple[str, ...]) -> list[Any]:
    """Return the gradients of the inputs in `wanted`; cotangents come first."""
    count = len(work.outputs)
    given, kept = _named(work, tensors[count:], wide)
    out = works.pull(work, lead, given, kept, dict(zip(work.outputs, tensors[:count], strict=True)), wanted)
    return [out[name] for name in wanted]


def push(*tensors: Any, work: Work, lead: int, wide: bool, moving: tuple[str, ...]) -> list[Any]:
    """Return the derivatives of the outputs along moves of the inputs in `moving`, which come first."""
    given, kept = _named(work, tensors[len(moving) :], wide)
    out = works.push(work, lead, given, kept, dict(zip(moving, tensors[: len(moving)], strict=True)))
    return [out[name] for name in work.outputs]


def product(
    *tensors: Any, work: Work, lead: int, wide: bool, wanted: tuple[str, ...], moving: tuple[str, ...]
) -> list[Any]:
    """Return the derivatives of gradients along moves; cotangents come first, moves next."""
    count, moved = len(work.outputs), len(work.outputs) + len(moving)
    given, kept = _named(work, tensors[moved:], wide)
    cotangents = dict(zip(work.outputs, tensors[:count], strict=True))
    moves = dict(zip(moving, tensors[count:moved], strict=True))
    out = works.product(work, lead, given, kept, cotangents, moves, wanted)
    return [out[name] for name in wanted]


# ---- shapes ----------------------------------------------------------------------------------------------------


def _front(lead: int, tensors: Values) -> tuple[int, ...]:
    return tuple(np.broadcast_shapes(*(x.shape[:lead] for x in tensors)))


def _base(work: Work, lead: int, inputs: Values) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape[lead:]) for name, x in zip(work.ranks, inputs, strict=True)}


def avals_of_run(*tensors: Any, work: Work, lead: int, wide: bool) -> list[Any]:
    """Return what outputs and state are like."""
    shapes, dtype = work.shapes(_base(work, lead, tensors)), tensors[0].dtype
    out = []
    for name in (*work.outputs, *_state_names(work, wide)):
        plain = name.removesuffix(REST)
        of = np.bool_ if name == "converged" else np.float64 if wide and _is_double(name) else dtype
        out.append(jax.core.ShapedArray(_front(lead, tensors) + shapes[plain], of))
    return out


def _avals_of_inputs(work: Work, wanted: tuple[str, ...], inputs: Values) -> list[Any]:
    by_name = dict(zip(work.ranks, inputs, strict=True))
    return [jax.core.ShapedArray(by_name[name].shape, by_name[name].dtype) for name in wanted]


def avals_of_pull(*tensors: Any, work: Work, lead: int, wide: bool, wanted: tuple[str, ...]) -> list[Any]:
    """Return what gradients are like: their inputs."""
    del lead, wide
    return _avals_of_inputs(work, wanted, _inputs(work, tensors[len(work.outputs) :]))


def avals_of_push(*tensors: Any, work: Work, lead: int, wide: bool, moving: tuple[str, ...]) -> list[Any]:
    """Return what derivatives of the outputs are like."""
    del wide
    inputs = _inputs(work, tensors[len(moving) :])
    shapes = work.shapes(_base(work, lead, inputs))
    front = _front(lead, tensors)
    return [jax.core.ShapedArray(front + shapes[name], inputs[0].dtype) for name in work.outputs]


def avals_of_product(
    *tensors: Any, work: Work, lead: int, wide: bool, wanted: tuple[str, ...], moving: tuple[str, ...]
) -> list[Any]:
    """Return what derivatives of gradients are like: their inputs."""
    del lead, wide
    return _avals_of_inputs(work, wanted, _inputs(work, tensors[len(work.outputs) + len(moving) :]))


def _inputs(work: Work, tensors: Values) -> Values:
    return tensors[: len(work.ranks)]
