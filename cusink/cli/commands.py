"""The command ``cusink``: read a command line and run it."""

import argparse
import contextlib
import importlib.util
import json
import math
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

import numpy as np

from cusink.backends.devices import device_error, to_device
from cusink.checks.arrays import to_host
from cusink.cli.arguments import (
    ADD,
    BUILD,
    INDEX,
    INFO,
    MATRIX,
    NEAREST,
    SEARCH,
    Parser,
    add_arguments,
    build_arguments,
    info_arguments,
    matrix_arguments,
    nearest_arguments,
    search_arguments,
)
from cusink.cli.files import InputError, load, problem, queries
from cusink.cli.info import as_text, installation
from cusink.cli.output import (
    DiskError,
    OutputError,
    Report,
    check_name,
    check_output,
    note,
    sidecar,
    target,
    tell,
    write_npz,
)
from cusink.retrieval.index import Index
from cusink.retrieval.matrix import distance_matrix
from cusink.retrieval.nearest import nearest
from cusink.retrieval.neighbours import Neighbours
from cusink.types import HostArray
from cusink.version import __version__

__all__ = [
    "choose_device",
    "main",
]


DESCRIPTION = """Sinkhorn distances from the command line.

    cusink distance-matrix queries.npy corpus.npy --grid 8x8 --scale-cost --normalise --eps 0.01 -o distances.npy
    cusink nearest queries.npy corpus.npy --grid 8x8 --scale-cost --normalise --eps 0.01 -k 10 -o neighbours.npz
    cusink index build corpus.npy --grid 8x8 --scale-cost --normalise --eps 0.01 -o corpus.index
    cusink index search corpus.index queries.npy -k 10
    cusink index add corpus.index more.npy
    cusink info

`cusink COMMAND --help` explains each.
"""


CERTIFICATE = ("proved", "undercut")
CLOSED_PIPE = 141  # as a shell reports a process that SIGPIPE ended


class Interrupted(BaseException):
    """The process was told to end; like KeyboardInterrupt, not for ``except Exception`` to catch."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = Namespace()
    try:
        with interruptible():
            make_parser().parse_args(arguments or ["--help"], given)
            status: int = given.run(given)
            return status
    except InputError as error:
        return _failed(arguments, str(error), 2)
    except DiskError as error:
        return _failed(arguments, str(error), 4)
    except OutputError as error:
        if error.closed:
            return CLOSED_PIPE
        output = getattr(given, "output", None)
        done = f"; {output} is written" if output is not None and output.exists() else ""
        note(f"cusink: standard output cannot be written: {error}{done}")
        return 4
    except Interrupted as interruption:
        output = getattr(given, "output", None)
        kept = output is not None and sidecar(output, ".tiles").exists() and not output.exists()
        rest = "what is finished is kept, and the same command goes on" if kept else "nothing was written"
        return _failed(arguments, f"interrupted; {rest}", 128 + interruption.args[0])


def _failed(arguments: Sequence[str], message: str, status: int) -> int:
    """Say what is wrong on stderr, and with --json on stdout too."""
    note(f"cusink: {message}")
    if "--json" in arguments:
        with contextlib.suppress(OutputError):  # the first failure is the one to tell
            tell(json.dumps({"error": message, "status": status}))
    return status


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let the signals that ask the process to end raise Interrupted, so that unfinished files are removed."""

    def interrupt(number: int, _: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def make_parser() -> Parser:
    """Return the parser of all commands."""
    summary, details = DESCRIPTION.split("\n", 1)
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="cusink", description=summary, epilog=details, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"cusink {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(among: Any, name: str, text: str) -> Any:
        summary, details = text.strip().split("\n", 1) if "\n" in text.strip() else (text.strip(), "")
        return among.add_parser(name, help=summary, description=summary, epilog=details, formatter_class=raw)

    of_index = add(commands, "index", INDEX).add_subparsers(metavar="ACTION", required=True)
    for among, name, text, run, arguments in (
        (commands, "distance-matrix", MATRIX, run_distance_matrix, matrix_arguments),
        (commands, "nearest", NEAREST, run_nearest, nearest_arguments),
        (of_index, "build", BUILD, run_build, build_arguments),
        (of_index, "search", SEARCH, run_search, search_arguments),
        (of_index, "add", ADD, run_add, add_arguments),
        (commands, "info", INFO, run_info, info_arguments),
    ):
        command = add(among, name, text)
        command.set_defaults(run=run)
        arguments(command)
        command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def run_distance_matrix(given: Namespace) -> int:
    """Do the work of ``cusink distance-matrix`` and return the exit status."""
    check_output(given, (".npy", ".zarr"))
    device, (A, B, C), shape = _problem(given)
    with Report(given) as report, target(given) as path:
        distance_matrix(A, B, C, out=path, **_options(given))
    text = f"{given.output}: {' x '.join(map(str, shape))} {given.dtype}, {given.value}, eps {given.eps:g}"
    return report.finish(shape, device, text, {"output": str(given.output)})


def run_nearest(given: Namespace) -> int:
    """Do the work of ``cusink nearest`` and return the exit status."""
    if given.output is not None:
        check_output(given, (".npz",))
    device, (A, B, C), shape = _problem(given)
    with Report(given) as report:
        found = nearest(A, B, C, k=given.neighbours, prune=not given.no_prune, full_output=True, **_options(given))
    return _neighbours(given, report, found, device, shape)


def run_build(given: Namespace) -> int:
    """Do the work of ``cusink index build`` and return the exit status."""
    check_name(given.output)
    if given.output.exists() and not given.force:
        raise InputError(f"--output: {given.output} exists; choose another name or pass --force to replace an index")
    device, (B, _, C), (count, _) = _problem(given, divide=False)  # the index does so, and with its queries
    names = ("eps", "value", "tol", "max_iter", "reach", "memory_limit", "normalise", "workers")
    with Report(given) as report:
        index = Index(B, C, **{name: getattr(given, name) for name in names})
        index.save(given.output, overwrite=given.force)
    text = f"{given.output}: an index of {count} items, {given.dtype}, {given.value}, eps {given.eps:g}"
    return report.finish((count, count), device, text, {"output": str(given.output), "items": count})


def run_search(given: Namespace) -> int:
    """Do the work of ``cusink index search`` and return the exit status."""
    if given.output is not None:
        check_output(given, (".npz",))
    device = choose_device(given.device)
    with Report(given) as report:
        index = Index.load(given.index, verify=not given.no_verify, device=device)
        given.value, given.eps, given.tol, given.dtype = index.value, index.eps, index.tol, index.dtype.name
        A = None if given.queries is None else queries(given.queries, index.dtype, given.normalise)
        if device == "cuda":
            (A,) = to_device(A)
        options = {"prune": not given.no_prune, "solve_at_most": given.solve_at_most, "progress": _bar(given)}
        options |= {"workers": given.workers, "candidates": given.candidates and load(given.candidates)}
        found = index.search(A, given.neighbours, full_output=True, **options)
    certified = given.solve_at_most is not None or given.candidates is not None
    more = {name: to_host(getattr(found, name)) for name in CERTIFICATE} if certified else {}
    return _neighbours(given, report, found, device, (len(found.distances), len(index)), **more)


def run_add(given: Namespace) -> int:
    """Do the work of ``cusink index add`` and return the exit status."""
    with Report(given) as report:
        index = Index.load(given.index, verify=not given.no_verify)
        given.value, given.eps, given.tol, given.dtype = index.value, index.eps, index.tol, index.dtype.name
        before = len(index)
        for name in given.files:
            index.add(queries(name, index.dtype, given.normalise), workers=given.workers)
        index.save(given.index, overwrite=True)
    given.output, added = given.index, len(index) - before  # it is written, whatever becomes of standard output
    text = f"{given.index}: {added} added, an index of {len(index)} items"
    return report.finish((added, len(index)), "cpu", text, {"output": str(given.index), "items": len(index)})


def _neighbours(
    given: Namespace, report: Report, found: Neighbours, device: str, shape: tuple[int, int], **certificate: HostArray
) -> int:
    """Print or write what was found, and return the exit status."""
    distances, indices = map(to_host, (found.distances, found.indices))
    more = {"k": given.neighbours, "pairs_solved": int(found.finished), "pruning": found.pruning}
    if given.output is None:
        lines = (
            f"{row}: " + ", ".join(f"{j} ({d:.6g})" for j, d in zip(*both, strict=True))
            for row, both in enumerate(zip(indices, distances, strict=True))
        )
        numbers = [[d if math.isfinite(d) else None for d in row] for row in distances.tolist()]
        more |= {"indices": indices.tolist(), "distances": numbers}
        more |= {name: [x if math.isfinite(x) else None for x in y.tolist()] for name, y in certificate.items()}
        return report.finish(shape, device, "\n".join(lines), more, summarise=True)
    write_npz(given.output, distances=distances, indices=indices, **certificate)
    text = f"{given.output}: {given.neighbours} of {shape[1]} for {shape[0]}, {given.value}, eps {given.eps:g}"
    return report.finish(shape, device, text, more | {"output": str(given.output)})


def run_info(given: Namespace) -> int:
    """Do the work of ``cusink info`` and return the exit status."""
    pairs, bins = given.pairs or (100, 1000), given.bins or (64,)
    if len(pairs) != 2 or len(bins) > 2:
        raise InputError("--pairs must be two numbers, as in 100x1000, and --bins one or two, as in 64 or 64x100")
    found = installation(pairs, (bins * 2)[:2], given.dtype or "float32")
    asked = any(one is not None for one in (given.pairs, given.bins, given.dtype))
    tell(json.dumps(found) if given.json else "\n".join(as_text(found, launches=asked)))
    return 0


def _problem(given: Namespace, divide: bool = True) -> tuple[str, tuple[Any, Any, Any], tuple[int, int]]:
    """Return the device, the arrays of the problem on it, and the shape of the matrix.

    With --normalise, `divide` says whether histograms are divided by their masses already.
    """
    costs = [name for name in ("cost", "grid", "points") if getattr(given, name) is not None]
    if len(costs) != 1:
        raise InputError(
            "the cost must be given once: --cost FILE for a matrix, --grid HxW for cells of a grid, or --points FILE"
        )
    if given.points is not None and len(given.points) > 2:
        raise InputError("--points must be one file, or two: of the bins of the queries, and of the corpus")
    if given.metric is not None and given.cost is not None:
        raise InputError(
            "--metric is the distance between cells of --grid or --points and means nothing with --cost; leave it out"
        )
    if given.progress and importlib.util.find_spec("tqdm") is None:
        raise InputError("--progress needs tqdm, which is not installed: pip install tqdm")
    device = choose_device(given.device)
    A, B, C = problem(given, divide)
    shape = A.shape[0], (A if B is None else B).shape[0]
    if device == "cuda":
        if not all(x is None or isinstance(x, np.ndarray) for x in (A, B)):
            raise InputError("sparse histograms are compared on the CPU by this command; pass --device cpu")
        A, B, C = to_device(A, B, C)
    return device, (A, B, C), shape


def _options(given: Namespace) -> dict[str, Any]:
    """Return the arguments that both functions take."""
    names = ("eps", "value", "tol", "max_iter", "reach", "memory_limit", "workers")
    return {name: getattr(given, name) for name in names} | {"progress": _bar(given)}


def _bar(given: Namespace) -> bool:
    """Return whether to show a bar."""
    if given.progress is None:
        return sys.stderr.isatty() and not given.json and importlib.util.find_spec("tqdm") is not None
    return bool(given.progress)


def choose_device(name: str) -> str:
    """Return "cuda" or "cpu" for "auto", "cuda" or "cpu"; asking for CUDA where there is none is an error."""
    problem = None if name == "cpu" else device_error()
    if name == "cuda" and problem is not None:
        raise InputError(f"--device cuda: {problem}; or use --device cpu")
    return "cpu" if name == "cpu" or problem is not None else "cuda"
