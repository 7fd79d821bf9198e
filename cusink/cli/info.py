"""Versions, device, CUDA kernels, and how a problem of some size would be run, for ``cusink info``."""

import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np

from cusink.backends.cupy import loader
from cusink.backends.cupy.launch import H100, Device, configure
from cusink.backends.devices import device_error
from cusink.operand import dense_cost
from cusink.retrieval.histograms import memory
from cusink.retrieval.tiles import Sizes, tile_shape
from cusink.version import __version__

__all__ = [
    "as_text",
    "installation",
]


# What the package, its extras and its scripts import, by the names under which they are installed.
PACKAGES = (
    *("numpy", "scipy", "threadpoolctl", "cupy", "torch", "jax", "scikit-learn", "dask", "distributed", "zarr"),
    *("matplotlib", "tqdm", "POT"),
)
OPERATORS = ("softmin", "apply_plan", "transport_cost", "c_transform", "iterate")


def installation(pairs: tuple[int, int], bins: tuple[int, int], dtype: str) -> dict[str, Any]:
    """Return everything as a dict that JSON can hold; `pairs` and `bins` are (Q, D) and (n, m)."""
    problem = device_error()
    device = None if problem else _device()
    launching = H100 if device is None else Device(device["multiprocessors"], device["shared_memory_per_block"])
    sizes = Sizes(pairs, False, *memory(dense_cost(np.broadcast_to(np.zeros((), dtype), bins))))
    tile = tile_shape(sizes, None)
    launches = {
        operator: launch and launch._asdict()
        for operator in OPERATORS
        for launch in [configure(operator, min(tile[1], pairs[1]), *bins, dtype, launching)]
    }
    return {
        "cusink": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "blas": _blas(),
        "device": device,
        "no_device": problem,
        "kernels": {
            "folder": str(loader.folder()),
            "files": {file: loader.names(file) for file in loader.kernel_files()},
        },
        "problem": {
            "pairs": list(pairs),
            "bins": list(bins),
            "dtype": np.dtype(dtype).name,
            "tile": list(tile),
            "tile_bytes": tile[1] * sizes.pair_bytes + sizes.shared_bytes,
            "launches_on": "an H100" if device is None else device["name"],
            "launches": launches,
        },
    }


def _device() -> dict[str, Any]:
    import cupy

    number = cupy.cuda.runtime.getDevice()
    attributes = cupy.cuda.Device(number).attributes
    capability = cupy.cuda.Device(number).compute_capability
    return {
        "name": cupy.cuda.runtime.getDeviceProperties(number)["name"].decode(),
        "count": cupy.cuda.runtime.getDeviceCount(),
        "compute_capability": f"{capability[:-1]}.{capability[-1]}",
        "memory": cupy.cuda.runtime.memGetInfo()[1],
        "multiprocessors": attributes["MultiProcessorCount"],
        "shared_memory_per_block": attributes["MaxSharedMemoryPerBlockOptin"],
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "runtime": cupy.cuda.runtime.runtimeGetVersion(),
    }


def _version(name: str) -> str | None:
    if name == "cupy":
        name, *_ = importlib.metadata.packages_distributions().get("cupy", ["cupy"])
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _blas() -> str | None:
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return " ".join(str(blas[key]) for key in ("name", "version") if blas.get(key)) or None


def as_text(found: dict[str, Any], *, launches: bool) -> Iterator[str]:
    """Yield lines of text that describe an `installation`; of its problem where `launches` are asked for."""
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    missing = ", ".join(name for name, version in found["packages"].items() if not version)
    device = found["device"]
    yield f"cusink {found['cusink']}, Python {found['python']}, {found['platform']}"
    yield f"packages: {packages}" + (f"; not installed: {missing}" if missing else "")
    yield f"BLAS: {found['blas']}"
    if device is None:
        yield f"device: the CPU. {found['no_device']}"
    else:
        yield (
            f"device: {device['name']}, compute capability {device['compute_capability']}, "
            f"{device['memory'] >> 20} MiB, {device['multiprocessors']} multiprocessors, driver {device['driver']}, "
            f"runtime {device['runtime']}"
        )
    files = found["kernels"]["files"]
    count = sum(len(names) for names in files.values())
    yield f"kernels: {count} in {len(files)} files of {found['kernels']['folder']} (--json names them)"
    if launches:
        yield from _launches(found["problem"])


def _launches(problem: dict[str, Any]) -> Iterator[str]:
    pairs, bins, tile = ("x".join(map(str, problem[name])) for name in ("pairs", "bins", "tile"))
    yield f"{pairs} pairs of {bins} bins in {problem['dtype']}: tiles of {tile} pairs, {problem['tile_bytes']} bytes"
    yield f"launches of a row of a tile on {problem['launches_on']}:"
    for operator, launch in problem["launches"].items():
        if launch is None:
            yield f"  {operator}: does not fit into shared memory; a launch for each half-step instead"
        else:
            yield (
                f"  {operator}: {launch['kernel']} ({launch['file']}), {launch['grid']} blocks of {launch['block']} "
                f"threads, {launch['shared']} bytes of shared memory"
            )
