"""Run the CUDA kernels on a CPU: a C++ compiler builds the sources as they are, on ``cuda_emulation.h``.

The compiler is g++, or the clang of the wheel ``ziglang`` where there is no g++.

`function` stands in for ``backends.cupy.loader.function``. Arguments are checked more strictly than CuPy does: number,
dtype, contiguity, and scalars of exactly the parameter's type. Arrays are copied to and from memory that has an
unmapped stretch on either side, so that an access outside an array ends the launch with an `EmulationError`.
"""

import ctypes
import functools
import hashlib
import importlib.util
import json
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from cusink.backends.cupy import loader

from .callers import with_callers

HERE = Path(__file__).parent
# A second suite (of the wheel, outside the checkout) can use what the first one built: the key is the whole source.
CACHE = Path(os.environ.get("CUSINK_EMULATED_BUILDS") or HERE.parents[1] / ".cache" / "emulated").absolute()
PAGE = mmap.PAGESIZE
LARGE = 1 << 30  # bytes from which on an array is handed over as it is: hardly any of its pages exist
GUARD = 256 * PAGE  # unmapped, on either side of an array, and of a stack
STACK = 16 * PAGE  # of a CUDA thread, for its own arrays and what a compiler puts there
PLAIN_SHARED_MEMORY = 48 << 10  # what a launch may ask for without raising the kernel's own limit
WARNINGS = ("-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Werror")
# A checked build calls cuda_checks.h at every access.
CHECKS = ("-DEMULATED_CHECKS", "-fsanitize=thread", "-fno-threadsafe-statics")
# `bounds` alone takes an array at the end of a struct for one of any length; clang has no other.
GCC = ("-fno-gnu-unique", "-fsanitize=bounds-strict,alignment", "-fsanitize-undefined-trap-on-error")
# Only clang minds that nothing here uses the constants of launch bounds, and that it does not unroll a loop as told.
CLANG = (
    *("-fsanitize=bounds,alignment", "-fsanitize-trap=bounds,alignment"),
    *("-Wno-unused-const-variable", "-Wno-pass-failed"),
)


ONE_AT_A_TIME = threading.Lock()  # of launches, for all devices: the emulation and its guarded memory are one


class EmulationError(Exception):
    """A launch did what CUDA leaves undefined, or what a device would refuse."""


@functools.cache
def compiler():
    """Command of g++, or of the clang in the wheel ``ziglang``, as a tuple; None if there is neither."""
    if path := shutil.which("g++"):
        return (path,)
    return (sys.executable, "-m", "ziglang", "c++") if importlib.util.find_spec("ziglang") else None


def options(checks=False):
    """Return what the compiler is told of every build, with or without checks."""
    gcc = len(compiler()) == 1
    # longjmp between stacks is the point here; index checks trap, and the trap becomes a message. Without
    # -fno-gnu-unique the shared variables of one dtype's templates would be those of the other's; clang has none.
    told = (
        *("-std=c++17", "-O1", "-g0", "-fPIC", "-fno-exceptions", *WARNINGS),
        *(f"-DSTACK_BYTES={STACK}", "-U_FORTIFY_SOURCE", "-fno-stack-protector"),
        *(GCC if gcc else CLANG),
    )
    return (*told, *CHECKS) if checks else told


@functools.cache
def build(text, names, dtype, checks=False):
    """Compile CUDA source `text` (see `cusink.backends.cupy.loader.source`) for `dtype`; return the loaded library."""
    real, told = loader.REAL[np.dtype(dtype)], options(checks)
    text = with_callers(text) if checks else text
    kernels = "".join(f"EMULATED_KERNEL({name}, ({launch_bound(text, name)}))\n" for name in names)
    memory = "thread_local __align__(64) unsigned char dynamic_shared[emulated::SHARED_LIMIT + emulated::GUARD];\n"
    header = HERE / "cuda_emulation.h"
    program = f'#include "cuda_emulation.h"\n{text}\n#line 1 "launchers"\n{memory}{kernels}'
    headers = header.read_text(), (HERE / "cuda_checks.h").read_text()
    key = hashlib.sha256("\0".join((*headers, program, real, *told)).encode()).hexdigest()[:24]
    library = CACHE / f"{key}.so"
    if not library.exists():
        folder = precompiled(header, real, told)
        # A folder of its own: another process may be building the same kernel at this moment.
        with tempfile.TemporaryDirectory(dir=CACHE) as own:
            source, compiled, part = (Path(own, name) for name in ("kernel.cpp", "kernel.o", "kernel.so"))
            source.write_text(program)
            _compile(real, told, f"-I{folder}", f"-I{HERE}", "-c", str(source), "-o", str(compiled))
            # Without the sanitizer's own library: cuda_checks.h is in its place.
            # And without the C++ library, of which nothing is used: zig would first have to build it.
            without = () if len(compiler()) == 1 else ("-nostdlib++",)
            _compile(real, options(), "-shared", *without, str(compiled), "-lm", "-o", str(part))
            part.replace(library)
    return ctypes.CDLL(str(library))


def launch_bound(text, name):
    """Return the threads that a block of kernel `name` may have, as an expression of its source `text`."""
    bounds = re.search(rf"__launch_bounds__\s*\(([^,)]*)[^)]*\)\s*(?:void\s+)?{name}\s*\(", text)
    return bounds[1] if bounds else "1024"


@functools.cache
def precompiled(header, real, told):
    """Folder of a precompiled `header`, which is most of the work in every build."""
    headers = header.read_text(), (HERE / "cuda_checks.h").read_text()
    key = hashlib.sha256("\0".join((*headers, real, *told)).encode()).hexdigest()[:24]
    target = CACHE / key / f"{header.name}.gch"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}")
        _compile(real, told, "-x", "c++-header", str(header), "-o", str(part))
        part.replace(target)
    return target.parent


def _compile(real, told, *arguments):
    # zig keeps what it builds of its own library, by default in the user's home, which may not be writable.
    kept = dict.fromkeys(("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), str(CACHE.parent / "zig")) | os.environ
    command = [*compiler(), *told, f"-DREAL={real}", *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True, env=kept)
    if outcome.returncode:
        raise EmulationError(outcome.stderr[:4000])


class Kernel:
    """One kernel, called as a ``cupy.RawKernel`` is; `change` maps its source to a broken one, on purpose."""

    seed = 0  # of the order in which threads and blocks run

    def __init__(self, file, name, dtype, change=None, checks=False):
        text = loader.source(file)
        if change:
            text = change(text)
        library = build(text, tuple(loader.names(file)), np.dtype(dtype).name, checks)
        signature = getattr(library, f"signature_{name}")
        signature.restype = ctypes.c_char_p
        self.name, self.names = name, parameter_names(text, name)
        self.parameters = signature().decode().split()
        self.static_shared_size_bytes = static_shared(Path(file).name, name, np.dtype(dtype).name)
        self.max_dynamic_shared_size_bytes = PLAIN_SHARED_MEMORY - self.static_shared_size_bytes
        self._regions = library.emulated_regions if checks else None
        self._launch = getattr(library, f"launch_{name}")
        self._launch.restype = ctypes.c_char_p

    def __call__(self, grid, block, args, *, shared_mem=0):
        with ONE_AT_A_TIME:
            self._run(grid, block, args, shared_mem)

    def _run(self, grid, block, args, shared_mem):
        if len(args) != len(self.parameters):
            raise EmulationError(f"{self.name} takes {len(self.parameters)} arguments; got {len(args)}")
        if any(size != 1 for size in (*grid[1:], *block[1:])):
            raise EmulationError(f"{self.name}: only one-dimensional launches are emulated")
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise EmulationError(f"{self.name}: {shared_mem} bytes of shared memory exceed its limit")
        copies, cells = {}, []
        for place, (value, parameter) in enumerate(zip(args, self.parameters, strict=True)):
            cells.append(self._cell(place, value, parameter, copies))
        pointers = (ctypes.c_void_p * len(cells))(*(ctypes.addressof(cell) for cell in cells))
        sizes = (ctypes.c_long(int(x)) for x in (grid[0], block[0], shared_mem))
        if self._regions:
            starts = (ctypes.c_void_p * len(copies))(*(memory.address for _, memory in copies.values()))
            lengths = (ctypes.c_long * len(copies))(*(array.nbytes for array, _ in copies.values()))
            self._regions(ctypes.c_long(len(copies)), starts, lengths)
        error = self._launch(pointers, *sizes, ctypes.c_ulong(self.seed), stacks())
        for array, memory in copies.values():
            memory.fetch(array)
        if error:
            raise EmulationError(f"{self.name}: {error.decode()}")

    def _cell(self, place, value, parameter, copies):
        """Return the C variable that holds argument number `place`."""
        kind = parameter.lstrip("rw")
        if parameter[0] not in "rw":
            if not isinstance(value, np.generic) or value.dtype != np.dtype(kind):
                raise EmulationError(f"{self.name}, argument {place}: {kind} expected, got {type(value).__name__}")
            return np.ctypeslib.as_ctypes_type(value.dtype)(value.item())
        if isinstance(value, np.generic) and value.dtype == np.int64 and value == 0:
            return ctypes.c_void_p(None)
        if not isinstance(value, np.ndarray) or value.dtype != np.dtype(kind):
            got = getattr(value, "dtype", type(value).__name__)
            raise EmulationError(f"{self.name}, argument {place}: array of {kind} expected, got {got}")
        if not value.flags.c_contiguous:
            raise EmulationError(f"{self.name}, argument {place}: the array is not C-contiguous; strides are ignored")
        if value.nbytes > LARGE:
            return ctypes.c_void_p(value.ctypes.data)
        key = value.__array_interface__["data"][0], value.nbytes
        if key not in copies:
            copies[key] = value, GuardedMemory(len(copies), value)
        if parameter[0] == "w":
            copies[key][1].written = True
        return ctypes.c_void_p(copies[key][1].address)


def parameter_names(text, name):
    """Names of the parameters of kernel `name` in the source `text`."""
    declared = re.search(rf"\b{name}\s*\(([^)]*)\)\s*{{", text)[1]
    return [re.findall(r"\w+", parameter)[-1] for parameter in declared.split(",")]


class GuardedMemory:
    """A copy of an array that ends where unmapped memory begins; what lies before it is checked when it is fetched."""

    # (number, pages) -> address: the arrays of a launch each have their own, and the next launch takes them over.
    _regions = {}

    def __init__(self, number, array):
        pages = -(-max(array.nbytes, 1) // PAGE)
        if (number, pages) not in self._regions:
            self._regions[number, pages] = _map(pages)
        start = self._regions[number, pages]
        self.slack = pages * PAGE - array.nbytes
        self.start, self.address, self.written = start, start + self.slack, False
        ctypes.memset(start, 0xFF, self.slack)
        ctypes.memmove(self.address, array.ctypes.data, array.nbytes)

    def fetch(self, array):
        """Copy back to `array` what a kernel was allowed to write."""
        if ctypes.string_at(self.start, self.slack).count(b"\xff") != self.slack:
            raise EmulationError("a write before the beginning of an array")
        if self.written:
            ctypes.memmove(array.ctypes.data, self.address, array.nbytes)


def _map(pages):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    address = libc.mmap(None, pages * PAGE + 2 * GUARD, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise MemoryError("mmap failed")
    if libc.mprotect(address + GUARD, pages * PAGE, mmap.PROT_READ | mmap.PROT_WRITE):
        raise MemoryError("mprotect failed")
    return address + GUARD


@functools.cache
def stacks():
    """Return where the stacks of a block's threads begin. All kernels share them: one launch runs at a time."""
    return (ctypes.c_void_p * 1024)(*(_map(STACK // PAGE) for _ in range(1024)))


@functools.cache
def function(file, name, dtype):
    """Stand in for ``cusink.backends.cupy.loader.function``."""
    return Kernel(file, name, dtype)


@functools.cache
def checked_function(file, name, dtype):
    """Stand in for ``cusink.backends.cupy.loader.function`` with kernels that are built with checks."""
    return Kernel(file, name, dtype, checks=True)


@functools.cache
def static_shared(file, name, dtype):
    """Return the bytes of static shared memory of a kernel, as its budget says; 0 for a toy."""
    kernels = json.loads((HERE.parent / "kernels" / "budget.json").read_text())["kernels"]
    return max((shared for _, shared in kernels.get(f"{file} {name} {dtype}", {}).values()), default=0)


def shuffle(seed):
    """Choose the order in which threads and blocks run from now on."""
    Kernel.seed = seed
