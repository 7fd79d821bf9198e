"""Find, compile and memoise the CUDA kernels; the only user of ``cupy.RawModule`` in the project.

A kernel file names the shared device code it needs with ``// uses: name.cuh`` lines; `source` puts each such file, once
and before its users, in front of it. There is no ``#include`` between our files: CuPy keys its disk cache by the source
text it is given and does not look into included files, so that an edited header would keep running its old binary. A
``#line`` directive before each file makes the messages of the compiler name the file and line to edit.

CuPy is imported by `function` alone; everything else here works without it.
"""

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cusink.placement import INSTALL_CUPY

REAL = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}

_USES = re.compile(r"^//\s*uses:\s*(.+?)\s*$", re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_BOUNDS = r"(?:__launch_bounds__\s*\([^;{]*?\)\s*)?"
_ENTRY = re.compile(rf"__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*\(")


class KernelCompileError(RuntimeError):
    """A kernel could not be built for the current device."""


@functools.cache
def folder() -> Path:
    """Return the folder of the CUDA sources: inside an installed package, next to the package in a checkout."""
    package = Path(__file__).resolve().parents[2]
    for candidate in (package / "kernels", package.parent / "kernels"):
        # site-packages may hold the folder 'kernels' of another package; ours has CUDA files in it.
        if any(candidate.glob("*.cu")):
            return candidate
    raise FileNotFoundError("this installation of cusink has no CUDA sources (kernels/*.cu); reinstall it")


def kernel_files() -> list[str]:
    """Return the names of all kernel files, sorted: ``["softmin.cu", ...]``."""
    return sorted(path.name for path in folder().glob("*.cu"))


def source(file: str) -> str:
    """Return the text that is compiled for `file`: every file it uses, then the file itself.

    Parameters
    ----------
    file : str
        Name of a file in `folder`, or the absolute path of a file elsewhere; the files it uses are in the same folder.

    Returns
    -------
    str
    """
    path = Path(file)
    parts: list[str] = []
    _collect(path if path.is_absolute() else folder() / path, (), set(), parts)
    return "".join(parts)


def _collect(path: Path, users: tuple[Path, ...], done: set[Path], parts: list[str]) -> None:
    """Append the text of `path` to `parts` after all files it uses; `users` are the files that lead here."""
    if path in done:
        return
    chain = " -> ".join(user.name for user in (*users, path))
    if path in users:
        raise ValueError(f"the 'uses' lines form a circle: {chain}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        found = ", ".join(sorted(p.name for p in path.parent.glob("*.cu*"))) or "no CUDA file"
        raise FileNotFoundError(f"no kernel source {path} (needed as {chain}); the folder has {found}") from None
    for line in _USES.findall(text):
        for name in re.split(r"[,\s]+", line):
            _collect(path.parent / name, (*users, path), done, parts)
    done.add(path)
    # The name of the folder is enough to find the file; the whole path would make CuPy's cache key differ by machine.
    parts.append(f'#line 1 "{path.parent.name}/{path.name}"\n{text.rstrip()}\n')


def names(file: str) -> list[str]:
    """Return the names of the kernels that `file` defines, in the order of their definition."""
    return _ENTRY.findall(_COMMENT.sub(" ", source(file)))


@functools.cache
def parameters(file: str, name: str) -> tuple[str, ...]:
    """Return the types of the parameters of a kernel as they are declared: ``("REAL*", "int", ...)``."""
    declared = re.search(rf"\b{name}\s*\(([^)]*)\)\s*{{", _COMMENT.sub(" ", source(file)))
    if declared is None:
        raise KeyError(f"{file} has no kernel {name!r}; it has {', '.join(names(file))}")
    plain = re.sub(r"\bconst\b|\b__restrict__\b", "", declared[1])
    return tuple(" ".join(parameter.split()[:-1]) for parameter in plain.split(",") if parameter.strip())


def options(dtype: npt.DTypeLike) -> tuple[str, str]:
    """Return the compiler options for `dtype`; TypeError for anything but float32 and float64."""
    try:
        real = REAL[np.dtype(dtype)]
    except KeyError:
        raise TypeError(f"kernels exist for float32 and float64; got {np.dtype(dtype)}") from None
    return ("-std=c++17", f"-DREAL={real}")


def function(file: str, name: str, dtype: npt.DTypeLike) -> Any:
    """Return kernel `name` of `file`, compiled for `dtype` and the current device.

    The sources are read once per process, and a kernel is compiled at its first use. A launch is
    ``function(...)(grid, block, args, shared_mem=bytes)``.

    Parameters
    ----------
    file : str
        As for `source`.
    name : str
        Name of an ``extern "C" __global__`` function.
    dtype : dtype
        float32 or float64: the type ``REAL`` of the source.

    Returns
    -------
    cupy.RawKernel

    Raises
    ------
    KernelCompileError
        With file, kernel, dtype, architecture and the first error of the compiler; or if CuPy's cache cannot be
        written.
    """
    import cupy

    return _function(file, name, np.dtype(dtype), cupy.cuda.runtime.getDevice())


@functools.cache
def _function(file: str, name: str, dtype: np.dtype[Any], device: int) -> Any:
    import cupy

    module = _module(file, dtype, device)
    if name not in (known := names(file)):
        raise KeyError(f"{file} has no kernel {name!r}; it has {', '.join(known)}")
    try:
        return module.get_function(name)
    except (cupy.cuda.compiler.CompileException, RuntimeError) as error:
        arch = cupy.cuda.Device(device).compute_capability
        raise KernelCompileError(
            f"kernel '{name}' of {file} ({dtype}, sm_{arch}) cannot be built: {_first_error(str(error))}"
        ) from error
    except OSError as error:
        raise KernelCompileError(
            f"kernel '{name}' of {file} ({dtype}) cannot be kept in CuPy's cache: {error}. Set CUPY_CACHE_DIR to a "
            "folder that can be written to"
        ) from error


@functools.cache
def _module(file: str, dtype: np.dtype[Any], device: int) -> Any:  # noqa: ARG001 - one module per device
    # CuPy loads a module on the current device.
    import cupy

    return cupy.RawModule(code=source(file), options=options(dtype), backend="nvrtc")


def _first_error(log: str) -> str:
    """Return the line of a compiler log (or of any other message) with the first error."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["no message"]
    first = next((line for line in lines if re.search(r"\berror\b", line)), lines[0])
    if "libnvrtc" in log:
        first += f"; there is no CUDA compiler: {INSTALL_CUPY}"
    return first
