#!/usr/bin/env python3
"""Write the Sinkhorn distances between two sets of histograms, or within one set, as a .npy file.

    distance_matrix.py queries.npy corpus.npy --grid 8x8 --scale-cost --normalise --eps 0.01 -o distances.npy
    distance_matrix.py histograms.npy --cost cost.npy --eps 0.05 --dtype float32 --progress -o distances.npy

A file of histograms is one array of shape (count, bins), or with --grid also (count, *grid), of non-negative numbers;
all histograms have one mass. Files are .npy or .npz; of an .npz with several arrays name one, as in corpus.npz:train.

The output appears under its name only when it is complete.

Exit status: 0, every pair converged; 2, wrong input, nothing was written, one line on stderr says what is wrong and how
to mend it; 3, the output was written, but some pairs did not reach --tol within --max-iter iterations; 130 or 143,
interrupted, nothing was written.
"""

import argparse
import contextlib
import importlib.util
import math
import os
import re
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np

import cusink

UNITS = {"": 1} | {prefix: 1000**power for power, prefix in enumerate("KMGT", start=1)}
UNITS |= {f"{prefix}i": 1024**power for power, prefix in enumerate("KMGT", start=1)}


class InputError(Exception):
    """What the user gave cannot be used; the message names it, the rule, what came and the way out."""


class Interrupted(BaseException):
    """The process was told to end; like KeyboardInterrupt, not for ``except Exception`` to catch."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message):
        raise InputError(message)


def main(arguments=None):
    """Run the command and return its exit status."""
    try:
        with interruptible():
            return run(parse(arguments))
    except InputError as error:
        print(f"distance_matrix: {error}", file=sys.stderr)
        return 2
    except Interrupted as interruption:
        print("distance_matrix: interrupted; nothing was written", file=sys.stderr)
        return 128 + interruption.args[0]


@contextlib.contextmanager
def interruptible():
    """Let the signals that ask the process to end raise Interrupted, so that what was begun is cleared away."""

    def interrupt(number, frame):
        raise Interrupted(number)

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def parse(arguments):
    """Return the arguments; those that can be judged without reading a file are checked."""
    summary, details = __doc__.split("\n", 1)
    parser = Parser(description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", help="histograms, one per row of the result")
    parser.add_argument("corpus", nargs="?", help="histograms, one per column; left out: the queries among themselves")
    parser.add_argument("-o", "--output", required=True, type=Path, help="the .npy file to write")
    parser.add_argument("--force", action="store_true", help="overwrite the output if it exists")
    cost = parser.add_argument_group("cost of moving mass from bin i to bin j (one of --cost and --grid)")
    cost.add_argument("--cost", metavar="FILE", help="matrix of shape (bins, bins); +inf forbids a move")
    cost.add_argument(
        "--grid", type=_grid, metavar="HxW", help="the bins are cells of a grid, in C order: 100, 8x8, 4x4x4"
    )
    cost.add_argument("--metric", help="distance between cells: sqeuclidean (default) or another name cdist knows")
    cost.add_argument("--scale-cost", action="store_true", help="divide the cost by its largest finite entry")
    solver = parser.add_argument_group("solver")
    solver.add_argument("--eps", required=True, type=positive, help="regularisation, in units of the cost")
    solver.add_argument(
        "--tol", type=positive, default=1e-6, help="marginal error of each pair, L1 (default: %(default)s)"
    )
    solver.add_argument("--max-iter", type=_count, default=1000, help="iterations at most (default: %(default)s)")
    solver.add_argument(
        "--value",
        choices=["cost", "reg_cost", "entropic_cost"],
        default="cost",
        help="<P, C>, or with eps KL(P|ab) added, or with eps H(P) taken off (default: %(default)s)",
    )
    solver.add_argument("--normalise", action="store_true", help="divide every histogram by its mass")
    solver.add_argument("--dtype", choices=["float32", "float64"], default="float64", help="(default: %(default)s)")
    solver.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto is cuda where it works")
    solver.add_argument("--memory-limit", type=_bytes, metavar="SIZE", help="working memory: 500M, 2G, 512MiB")
    solver.add_argument("--progress", action="store_true", help="show a bar (needs tqdm)")
    given = parser.parse_args(arguments)

    if (given.cost is None) == (given.grid is None):
        raise InputError("the cost must be given once: --cost FILE for a matrix, or --grid HxW for cells of a grid")
    if given.metric is not None and given.grid is None:
        raise InputError("--metric is the distance between cells of --grid and means nothing with --cost; leave it out")
    if given.progress and importlib.util.find_spec("tqdm") is None:
        raise InputError("--progress needs tqdm, which is not installed: pip install tqdm")
    check_output(given)
    return given


def positive(text):
    """Return the positive, finite number that `text` gives, for argparse."""
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"must be a positive number; got '{text}'")


def _count(text):
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a positive whole number; got '{text}'")


def _grid(text):
    if re.fullmatch(r"\d+(x\d+)*", text) and 0 not in (shape := tuple(map(int, text.split("x")))):
        return shape
    raise argparse.ArgumentTypeError(f"must be positive sizes joined by x, such as 8x8; got '{text}'")


def _bytes(text):
    match = re.fullmatch(r"(\d+(?:\.\d+)?)((?:[kKMGT]i?)?)B?", text)
    if match and (size := int(float(match[1]) * UNITS[match[2].replace("k", "K")])) > 0:
        return size
    raise argparse.ArgumentTypeError(f"must be bytes, such as 500M, 2G or 512MiB; got '{text}'")


def check_output(given):
    """Raise if the output cannot be written, before any work is done."""
    output = given.output
    if output.suffix != ".npy":
        raise InputError(f"--output: must be a .npy file; got '{output}'")
    if output.is_dir():
        raise InputError(f"--output: {output} is a folder; name a file in it")
    if not output.parent.is_dir():
        raise InputError(f"--output: there is no folder {output.parent}; make it first")
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"--output: the folder {output.parent} may not be written to; choose another")
    inputs = [split_name(name)[0] for name in (given.queries, given.corpus, given.cost) if name is not None]
    if output.exists() and any(path.exists() and path.samefile(output) for path in inputs):
        raise InputError(f"--output: {output} is one of the inputs; choose another name")
    if output.exists() and not given.force:
        raise InputError(f"--output: {output} exists; choose another name or pass --force to overwrite it")


def run(given):
    """Do the work that `given` asks for and return the exit status."""
    device = choose_device(given.device)
    dtype = np.dtype(given.dtype)
    A, B, C = read_problem(given, dtype)
    shape = (len(A), len(A if B is None else B))
    names = ("eps", "value", "tol", "max_iter", "memory_limit", "progress")
    options = {name: getattr(given, name) for name in names}
    start = time.perf_counter()
    with new_array(given.output, shape, dtype, given.force) as out, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if device == "cuda":
                import cupy

                on_device = [None if array is None else cupy.asarray(array) for array in (A, B, C)]
                out[...] = cusink.distance_matrix(*on_device, **options).get()
            else:
                cusink.distance_matrix(A, B, C, out=out, **options)
        except MemoryError as error:
            raise InputError(f"out of memory ({_line(error)}); pass a lower --memory-limit") from None
        except (TypeError, ValueError) as error:
            raise InputError(_line(error)) from None
    seconds = time.perf_counter() - start
    for warning in caught:
        print(f"distance_matrix: warning: {_line(warning.message)}", file=sys.stderr)
    size = " x ".join(map(str, shape))
    print(f"{given.output}: {size} {dtype}, {given.value}, eps {given.eps:g}, {seconds:.1f} s on {device}")
    return 3 if any(issubclass(warning.category, cusink.ConvergenceWarning) for warning in caught) else 0


def _line(message):
    return " ".join(str(message).split()) or type(message).__name__


def choose_device(name):
    """Return "cuda" or "cpu" for "auto", "cuda" or "cpu"; asking for CUDA where there is none is an error."""
    if name == "cpu":
        return "cpu"
    if importlib.util.find_spec("cupy") is None:
        missing = "CuPy is not installed; in the checkout run: pip install '.[cuda12]' (driver from 580 on: cuda13)"
    else:
        try:
            import cupy

            if cupy.cuda.runtime.getDeviceCount() > 0:
                return "cuda"
            reason = "no device"
        except Exception as error:  # no one class covers a missing driver, missing libraries and a driver too old
            reason = _line(error)
        missing = f"CuPy cannot use a GPU ({reason}); see whether nvidia-smi lists one and whether CuPy fits its driver"
    if name == "cuda":
        raise InputError(f"--device cuda: {missing}; or use --device cpu")
    return "cpu"


def read_problem(given, dtype):
    """Return the histograms and the cost as arrays of `dtype`, checked; the corpus is None if there is none."""
    names = [given.queries] if given.corpus is None else [given.queries, given.corpus]
    sets = [load(name) for name in names]
    if given.cost is None:
        cells = np.indices(given.grid).reshape(len(given.grid), -1).T.astype(np.float64)
        try:
            C = cusink.cost_matrix(cells, cells, metric=given.metric or "sqeuclidean")
        except (TypeError, ValueError) as error:
            raise InputError(f"--metric: {_line(error)}") from None
        of_cost = f"the grid {'x'.join(map(str, given.grid))}"
        sets = [array.reshape(len(array), -1) if array.shape[1:] == given.grid else array for array in sets]
    else:
        C = load(given.cost)
        of_cost = f"the cost of shape {C.shape}"
        if C.ndim != 2 or C.size == 0 or (len(sets) == 1 and C.shape[0] != C.shape[1]):
            rule = "(bins, bins)" if len(sets) == 1 else "(bins of queries, bins of corpus)"
            raise InputError(f"{given.cost}: the cost must have shape {rule}; got {C.shape}")
        if (wrong := first(np.isnan(C) | (C == -np.inf))) is not None:
            raise InputError(f"{given.cost}: a cost must be a number or +inf (forbidden); got {C[wrong]} at {wrong}")
    C = C.astype(dtype)
    if given.scale_cost:
        if not (largest := C.max(initial=0, where=np.isfinite(C))) > 0:
            raise InputError("--scale-cost: the cost must have a positive entry to be divided by; leave it out")
        C /= largest
    sets = [check_histograms(*item, of_cost, dtype) for item in zip(names, sets, C.shape, strict=False)]
    masses = [array.sum(axis=1, dtype=np.float64) for array in sets]
    for name, mass in zip(names, masses, strict=True):
        if (wrong := first(mass <= 0)) is not None:
            raise InputError(f"{name}: every histogram must have some mass; that of row {wrong[0]} is 0. Remove it")
    if given.normalise:
        sets = [np.divide(array, mass[:, None], out=array) for array, mass in zip(sets, masses, strict=True)]
    else:
        check_masses(names, masses, dtype)
    return sets[0], sets[1] if given.corpus is not None else None, np.ascontiguousarray(C)


def split_name(name):
    """Return path and array name of ``file.npy``, ``file.npz`` or ``file.npz:array``."""
    head, separator, key = name.rpartition(".npz:")
    return (Path(f"{head}.npz"), key) if separator else (Path(name), None)


def load(name):
    """Return the array of real numbers in the file that `name` gives."""
    path, key = split_name(name)
    try:
        with open(path, "rb") as file, contextlib.ExitStack() as stack:
            array = np.load(file, allow_pickle=False)
            if not isinstance(array, np.ndarray):
                archive = stack.enter_context(array)
                held = f"it has {', '.join(archive.files) or 'none'}"
                if key is None and len(archive.files) != 1:
                    raise InputError(f"{path}: must hold one array, or name one as in {path}:name; {held}")
                if key is not None and key not in archive.files:
                    raise InputError(f"{path}: has no array '{key}'; {held}")
                array = archive[key or archive.files[0]]
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or _line(error)}") from None
    except MemoryError:
        raise InputError(f"{path}: does not fit into memory; split it") from None
    except Exception as error:  # damaged files raise ValueError, EOFError, BadZipFile, zlib.error, SyntaxError, ...
        if "Object arrays" in str(error):
            raise InputError(f"{path}: holds pickled objects, which are never read; save an array of numbers") from None
        raise InputError(f"{path}: is not a .npy or .npz file, or is damaged; write it with numpy.save") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: must hold real numbers; got dtype {array.dtype}")
    return array


def check_histograms(name, array, bins, of_cost, dtype):
    """Return `array` in `dtype`, after checking that it is (count, bins), finite and non-negative."""
    if array.ndim != 2 or array.shape[1] != bins or len(array) == 0:
        raise InputError(f"{name}: must have shape (count, {bins}) to match {of_cost}; got {array.shape}")
    if (wrong := first(~np.isfinite(array))) is not None:
        raise InputError(f"{name}: weights must be finite; got {array[wrong]} at row {wrong[0]}, bin {wrong[1]}")
    if (wrong := first(array < 0)) is not None:
        raise InputError(
            f"{name}: weights must not be negative; got {array[wrong]:g} at row {wrong[0]}, bin {wrong[1]}."
            " Clip or shift them"
        )
    return array.astype(dtype, order="C")


def check_masses(names, masses, dtype):
    """Raise unless all histograms have one mass, to the relative tolerance that the solver asks for."""
    tolerance = 1e-3 if dtype == np.float32 else 1e-6
    expected = masses[0][0]
    for name, mass in zip(names, masses, strict=True):
        if (wrong := first(abs(mass - expected) > tolerance * expected)) is not None:
            raise InputError(
                f"{name}: all histograms must have one mass; row {wrong[0]} has {mass[wrong]:g}, row 0 of"
                f" {names[0]} has {expected:g}. Pass --normalise to divide each by its own"
            )


def first(condition):
    """Return the index of the first true entry as a tuple of int, or None."""
    position = int(np.argmax(condition))
    index = tuple(int(i) for i in np.unravel_index(position, condition.shape))
    return index if condition[index] else None


@contextlib.contextmanager
def new_array(path, shape, dtype, force):
    """Give an array on disk to be filled; it takes the name `path` when the block ends well, and is gone otherwise.

    It is a memory map, so that a result larger than the memory can be written tile by tile.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            array = np.lib.format.open_memmap(draft, mode="w+", dtype=dtype, shape=shape)
            if hasattr(os, "posix_fallocate"):
                # A full disk must be an error here: met while writing to the map, it would kill the process.
                with open(draft, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, draft.stat().st_size)
        except OSError as error:
            raise InputError(f"--output: {path} cannot be written: {error.strerror or _line(error)}") from None
        yield array
        array.flush()
        if path.exists() and not force:
            raise InputError(f"--output: {path} was made by someone else meanwhile; pass --force to overwrite it")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
