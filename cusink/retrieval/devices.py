"""Tiles shared out to the GPUs of one process: one queue, and a stream and arrays of its own for each device."""

import dataclasses
import itertools
import threading
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np

from cusink.checks.arrays import kind
from cusink.checks.scalars import integer, shown
from cusink.retrieval.pairs import Pairs, Solved
from cusink.retrieval.progress import progress_bar
from cusink.retrieval.tiles import PairValues, Sink, SolvedTile, pair_count, tiles
from cusink.types import Array, ArrayModule
from cusink.workers import each, working

Devices: TypeAlias = tuple[int, ...] | Literal["all"] | None


def check_devices(devices: Any) -> Devices:
    """Check the form of `devices`: None, "all", or different numbers from 0 up."""
    rule = "'devices' must be None, \"all\", or the numbers of GPUs, as [0, 1]"
    if devices is None or (isinstance(devices, str) and devices == "all"):
        return "all" if devices is not None else None
    if not isinstance(devices, (list, tuple)):
        got = repr(shown(devices)) if isinstance(devices, str) else kind(devices)
        raise TypeError(f"{rule}; got {got}")
    if not devices:
        raise ValueError(f"{rule}, one at least; got {shown(devices)}. Leave it out for the device of the arrays")
    numbers = [integer(number) for number in devices]
    for number, given in zip(numbers, devices, strict=True):
        if number is None:
            raise TypeError(f"{rule}; got {kind(given)} among them")
    found = tuple(int(number) for number in numbers if number is not None)
    if min(found) < 0 or len(set(found)) < len(found):
        raise ValueError(f"{rule}, from 0 up, each once; got {shown(list(found))}")
    return found


def chosen(devices: Devices, xp: ArrayModule) -> tuple[int, ...]:
    """Return the numbers of the GPUs to share the work out to, of those that the process sees; () for none."""
    if devices is None:
        return ()
    if xp is np:
        raise ValueError(
            f"'devices' must be None for NumPy arrays, which are on no GPU; got {shown(devices)}. Pass CuPy arrays, or "
            "leave it out"
        )
    count: int = xp.cuda.runtime.getDeviceCount()
    numbers = tuple(range(count)) if devices == "all" else devices
    if max(numbers) >= count:
        raise ValueError(f"'devices' must be below {count}, the GPUs that this process sees; got {max(numbers)}")
    return numbers


def solve_on_devices(
    values: PairValues,
    tile: tuple[int, int],
    sink: Sink,
    devices: tuple[int, ...],
    pairs_here: Callable[[], Pairs],
    progress: bool = False,
) -> None:
    """Solve the tiles that the sink has not finished, each on the device that is free next.

    `pairs_here` makes the pairs again on the current device, of copies. Arrays of the sink are on the device that is
    current now, and tiles come there one at a time.
    """
    pairs = values.pairs
    xp, own = pairs.xp, pairs.xp.cuda.Device()
    todo = [at for at in tiles(pairs, *tile) if (at[0].start, at[1].start) not in sink.finished]
    total, left = pair_count(pairs), sum(pair_count(pairs, *at) for at in todo)
    terms = values.self_terms if values.value == "divergence" else (None, None)
    own.synchronize()  # other streams read what the caller's may still be writing
    numbers, failed, writing = itertools.count(), threading.Event(), threading.Lock()

    def serve(device: int, update: Callable[[int], Any]) -> None:
        with xp.cuda.Device(device), xp.cuda.Stream(non_blocking=True) as stream:
            mine = values
            if device != own.id:
                mine = dataclasses.replace(values, pairs=pairs_here(), given=(_here(terms[0]), _here(terms[1])))
            while not failed.is_set() and (k := next(numbers)) < len(todo):
                solved = mine.tile(*todo[k], sink.names, update)
                stream.synchronize()
                with writing, own:
                    sink.write(*todo[k], _brought(xp, solved))
                    # Before the memory of the tile, on another device, is given back. To wait for the whole device
                    # would end the capture of another thread, which CUDA forbids while one of its streams captures.
                    xp.cuda.get_current_stream().synchronize()

    def serve_or_stop(device: int) -> None:
        try:
            serve(device, bar.update)
        except BaseException:
            failed.set()
            raise

    with progress_bar(total, total - left, progress) as bar, working(len(devices)):
        each(serve_or_stop, [(device,) for device in devices])


def here(x: Any, xp: ArrayModule) -> Any:
    """Return a copy of an array on the current device; anything else as it is."""
    return x.copy() if isinstance(x, xp.ndarray) else x


def _here(term: Solved | None) -> Solved | None:
    return None if term is None else term._replace(distances=term.distances.copy())


def _brought(xp: ArrayModule, solved: SolvedTile) -> SolvedTile:
    """Return a tile with its fields on the current device."""
    fields: dict[Any, Array] = {name: here(field, xp) for name, field in solved.fields.items()}
    return solved._replace(fields=fields)
