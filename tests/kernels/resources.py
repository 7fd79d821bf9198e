"""Compile every kernel with the CUDA compiler alone (no GPU, no driver, no CuPy) and hold what it uses to a budget.

``python tests/kernels/resources.py`` prints registers, shared memory, stack and spills of every kernel, dtype and
architecture; with ``--write-budget`` it rewrites ``budget.json``, which is how a deliberate change is made.
"""

import argparse
import concurrent.futures
import ctypes
import ctypes.util
import functools
import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from cusink.backends.cupy import loader

ARCHITECTURES = (75, 80, 90, 100, 120)
DTYPES = ("float32", "float64")
MOST_REGISTERS = 255  # that a thread can have
BUDGET = Path(__file__).parent / "budget.json"
# Compiling takes half a minute; a second suite (of the wheel, outside the checkout) can be shown the first one's logs.
CACHE = Path(
    os.environ.get("CUSINK_KERNEL_LOGS") or Path(__file__).resolve().parents[2] / ".cache" / "kernel-logs"
).absolute()

# What CuPy adds to a RawModule's own options; without them something else would be measured than what runs.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")


class Resources(NamedTuple):
    """What one thread (registers, stack and spills in bytes) and one block (static shared memory in bytes) take."""

    registers: int
    shared: int
    stack: int
    spills: int


class Compiled(NamedTuple):
    """A compilation: whether it worked, the compiler's log, and the resources of each kernel by name."""

    ok: bool
    log: str
    kernels: dict


@functools.cache
def compiler_path():
    """Path of libnvrtc: the ``nvidia-cuda-nvrtc`` wheel's, else the system's; None where there is none."""
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations if spec else ():
        for pattern in ("cuda_nvrtc/lib/libnvrtc.so.*", "cu*/lib/libnvrtc.so.*"):
            if found := sorted(Path(place).glob(pattern)):
                return str(found[-1])
    return ctypes.util.find_library("nvrtc")


@functools.cache
def _compiler():
    if compiler_path() is None:
        raise FileNotFoundError("no CUDA compiler (libnvrtc): pip install nvidia-cuda-nvrtc-cu12")
    return ctypes.CDLL(compiler_path())


@functools.cache
def compiler_version():
    """NVRTC's version, ``"12.9"``."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _compiler().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def nvrtc(source, options):
    """Compile `source`; return (error text or "", log)."""
    library = _compiler()
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    program = ctypes.c_void_p()
    code = library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    if code:
        raise RuntimeError(f"nvrtcCreateProgram: {library.nvrtcGetErrorString(code).decode()}")
    try:
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        code = library.nvrtcCompileProgram(program, len(options), array)
        size = ctypes.c_size_t()
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
    return library.nvrtcGetErrorString(code).decode() if code else "", log.value.decode()


def _number(pattern, text):
    if not (found := re.search(pattern, text)):
        raise ValueError(f"the compiler's resource log has no {pattern!r}:\n{text}")
    return int(found[1])


def parse(log):
    """Return {kernel: Resources} from the log of a compilation with ``--ptxas-options=-v``."""
    kernels = {}
    for part in log.split("Compiling entry function '")[1:]:
        name = part.partition("'")[0]
        # A kernel's own properties come first; functions that it calls may follow, each under a heading of its own.
        own = part.partition(f"Function properties for {name}\n")[2].partition("Function properties for ")[0]
        frame = _number(r"(\d+) bytes stack frame", own)
        deepest = _number(r"(\d+) bytes cumulative stack", part) if "cumulative stack" in part else 0
        kernels[name] = Resources(
            registers=_number(r"Used (\d+) registers", part),
            shared=_number(r"(\d+) bytes smem", part) if "bytes smem" in part else 0,
            stack=max(frame, deepest),
            spills=_number(r"(\d+) bytes spill stores", own) + _number(r"(\d+) bytes spill loads", own),
        )
    return kernels


def compile_one(file, dtype, arch):
    """Compile `file` for `dtype` and compute capability `arch`; the log is kept by a hash of all that makes it."""
    source = loader.source(file)
    options = (*loader.options(dtype), *CUPY_OPTIONS, f"-arch=sm_{arch}", "--ptxas-options=-v")
    compiler = f"{compiler_version()} {os.path.getsize(compiler_path()) if os.path.exists(compiler_path()) else 0}"
    key = hashlib.sha256("\0".join((source, *options, compiler)).encode()).hexdigest()
    kept = CACHE / f"{key}.json"
    if kept.exists():
        error, log = json.loads(kept.read_text())
    else:
        error, log = nvrtc(source, options)
        CACHE.mkdir(parents=True, exist_ok=True)
        fresh = kept.with_suffix(f".{multiprocessing.current_process().pid}")
        fresh.write_text(json.dumps([error, log]))
        fresh.replace(kept)
    return Compiled(not error, f"{error}\n{log}" if error else log, {} if error else parse(log))


def compile_all(files, dtypes=DTYPES, architectures=ARCHITECTURES, processes=2):
    """Return {(file, dtype, arch): Compiled} for all combinations."""
    jobs = list(itertools.product(files, dtypes, architectures))
    # The compiler holds a lock of its own, so threads would wait for each other.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        return dict(zip(jobs, pool.map(compile_one, *zip(*jobs, strict=True)), strict=True)) if jobs else {}


def allowance(used):
    """Return the budget for a measured `used`: registers up to the next multiple of 8 that leaves 2 free.

    The hardware hands out registers by 8, so fewer cannot be told apart; 2 are for the next release of the compiler.
    """
    return Resources(min(-(-(used.registers + 2) // 8) * 8, MOST_REGISTERS), used.shared, 0, 0)


def over_budget(used, allowed):
    """Return what of `used` exceeds `allowed`, in words; an empty list if nothing does."""
    pairs = zip(Resources._fields, used, allowed, strict=True)
    return [f"{field} {have} > {may}" for field, have, may in pairs if have > may]


def write_budget(compiled, path=BUDGET):
    """Write the budget that `compile_all`'s result asks for; a line per kernel and dtype, for readable diffs."""
    lines = {}
    for (file, dtype, arch), result in compiled.items():
        for name, used in result.kernels.items():
            allowed = allowance(used)
            lines.setdefault(f"{file} {name} {dtype}", {})[f"sm_{arch}"] = [allowed.registers, allowed.shared]
    kernels = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(lines.items()))
    head = f' "compiler": "NVRTC {compiler_version()}",\n "values": ["registers", "static shared memory in bytes"],'
    path.write_text(f'{{\n{head}\n "kernels": {{\n{kernels}\n }}\n}}\n')


def read_budget(path=BUDGET):
    """Return {(file, kernel, dtype, arch): Resources}; a stack and spills are in nobody's budget.

    Compilers differ in how many registers they take: the numbers bind only the one that they were written for.
    """
    budget = json.loads(path.read_text())
    same = budget["compiler"] == f"NVRTC {compiler_version()}"
    return {
        (*key.split(), int(arch.removeprefix("sm_"))): Resources(registers if same else MOST_REGISTERS, shared, 0, 0)
        for key, by_arch in budget["kernels"].items()
        for arch, (registers, shared) in by_arch.items()
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--write-budget", action="store_true", help="rewrite budget.json from what is used now")
    wanted = parser.parse_args(arguments)
    compiled = compile_all(loader.kernel_files())
    bad = 0
    for (file, dtype, arch), result in compiled.items():
        if not result.ok:
            bad += 1
            print(f"{file} {dtype} sm_{arch} does not compile:\n{result.log}")
        for name, used in result.kernels.items():
            bad += bool(used.stack or used.spills)
            print(f"{file:24} {name:28} {dtype} sm_{arch:<4}", *(f"{k} {v:<5}" for k, v in used._asdict().items()))
    if bad:
        print(f"{bad} compilations fail, spill or use local memory" + ("; no budget written" * wanted.write_budget))
    elif wanted.write_budget:
        write_budget(compiled)
        print(f"wrote {BUDGET}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
