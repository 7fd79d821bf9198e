"""Sinkhorn distances from the command line.

    cusink distance-matrix queries.npy corpus.npy --grid 8x8 --scale-cost --normalise --eps 0.01 -o distances.npy
    cusink nearest queries.npy corpus.npy --grid 8x8 --scale-cost --normalise --eps 0.01 -k 10 -o neighbours.npz
    cusink info

`cusink COMMAND --help` tells more of each.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import re
import signal
import sys
from pathlib import Path

import numpy as np

from cusink.backends.devices import device_error, to_device
from cusink.cli import info as installation
from cusink.cli.files import InputError, problem
from cusink.cli.output import DiskError, Report, beside, check_output, target, write_npz
from cusink.retrieval.checks import ALL_VALUES
from cusink.version import __version__

__all__ = [
    "Parser",
    "choose_device",
    "main",
    "positive",
]


UNITS = {"": 1} | {prefix: 1000**power for power, prefix in enumerate("KMGT", start=1)}
UNITS |= {f"{prefix}i": 1024**power for power, prefix in enumerate("KMGT", start=1)}

FILES = """
A file of histograms is one array of shape (count, bins), or with --grid also (count, *grid), of non-negative numbers;
all histograms have one mass. Files are .npy, .npz (of several arrays name one, as in corpus.npz:train; or a sparse
matrix as scipy.sparse.save_npz writes it) or Zarr arrays (store.zarr, or store.zarr:array of a group).

The cost of moving mass from bin i to bin j is given once: a matrix (--cost), the cells of a grid that the bins are
(--grid), or the points at which they lie (--points). --eps is the regularisation, in the unit of the cost: with
--scale-cost 0.01 is a good start; smaller is sharper and takes longer.
"""
STATUS = """
Exit status
  0  every pair converged
  2  wrong input; nothing was written, and one line on stderr says what is wrong and how to mend it
  3  the result was written, but some pairs did not reach --tol within --max-iter iterations
  4  the disk failed (it is full, say){kept}
  129, 130 or 143  interrupted{kept}
"""
MATRIX = f"""
Write the Sinkhorn distances between two sets of histograms, or within one set, as a .npy file or a Zarr array.

    cusink distance-matrix queries.npy corpus.npy --grid 8x8 --scale-cost --normalise --eps 0.01 -o distances.npy
    cusink distance-matrix histograms.npy --cost cost.npy --eps 0.05 --dtype float32 -o distances.zarr
{FILES}
The output appears under its name only when it is complete. A command that was stopped, by whatever, goes on when it
is given again: distances.npy.part holds what is finished and distances.npy.tiles says what that is.
{STATUS.format(kept="; what is finished is kept, and the same command goes on")}"""
NEAREST = f"""
Find the histograms of a corpus that are nearest to each query, without solving all pairs.

    cusink nearest queries.npy corpus.npy --grid 8x8 --scale-cost --normalise --eps 0.01 -k 10
    cusink nearest histograms.npy --cost cost.npy --eps 0.05 -k 5 -o neighbours.npz
{FILES}
With one set the neighbours of each histogram are looked for among the others. Without -o they are printed, nearest
first, a line for each query: number: neighbour (distance), ... The .npz file holds the arrays 'distances' and
'indices', both of shape (queries, k).
{STATUS.format(kept="")}"""
INFO = """
Tell the versions, the device, the CUDA kernels, and how a problem of some size would be cut and launched.
"""


class Interrupted(BaseException):
    """The process was told to end; like KeyboardInterrupt, not for ``except Exception`` to catch."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message):
        raise InputError(message)


def main(arguments=None):
    """Run a command and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, given = make_parser(), None
    try:
        with interruptible():
            given = parser.parse_args(arguments or ["--help"])
            return given.run(given)
    except InputError as error:
        return _failed(arguments, str(error), 2)
    except DiskError as error:
        return _failed(arguments, str(error), 4)
    except Interrupted as interruption:
        output = getattr(given, "output", None)
        kept = output is not None and beside(output, ".tiles").exists() and not output.exists()
        rest = "what is finished is kept, and the same command goes on" if kept else "nothing was written"
        return _failed(arguments, f"interrupted; {rest}", 128 + interruption.args[0])


def _failed(arguments, message, status):
    """Say what is wrong on stderr, and with --json on stdout too."""
    print(f"cusink: {message}", file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps({"error": message, "status": status}))
    return status


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


def make_parser():
    """Return the parser of all commands."""
    summary, details = __doc__.split("\n", 1)
    raw = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = Parser(prog="cusink", description=summary, epilog=details, **raw)
    parser.add_argument("--version", action="version", version=f"cusink {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text, run, arguments in (
        ("distance-matrix", MATRIX, distance_matrix, _matrix_arguments),
        ("nearest", NEAREST, nearest, _nearest_arguments),
        ("info", INFO, info, _info_arguments),
    ):
        summary, details = text.strip().split("\n", 1) if "\n" in text.strip() else (text.strip(), "")
        command = commands.add_parser(name, help=summary, description=summary, epilog=details, **raw)
        command.set_defaults(run=run)
        arguments(command)
        command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def _matrix_arguments(parser):
    _problem_arguments(parser, ALL_VALUES)
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", required=True, type=Path, help="the .npy file or .zarr store to write")
    output.add_argument("--force", action="store_true", help="overwrite the output if it exists; begin anew")


def _nearest_arguments(parser):
    _problem_arguments(parser, ALL_VALUES)
    parser.add_argument("-k", "--neighbours", required=True, type=count, metavar="K", help="how many for each query")
    parser.add_argument("--no-prune", action="store_true", help="solve all pairs; the answer is the same")
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", type=Path, help="the .npz file to write; left out: print the neighbours")
    output.add_argument("--force", action="store_true", help="overwrite the output if it exists")


def _info_arguments(parser):
    parser.add_argument("--pairs", type=sizes, default=(100, 1000), metavar="QxD", help="queries x corpus (100x1000)")
    parser.add_argument("--bins", type=sizes, default=(64, 64), metavar="N[xM]", help="bins of a histogram (64)")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="(default: %(default)s)")


def _problem_arguments(parser, values):
    parser.add_argument("queries", help="histograms, one per row of the result")
    parser.add_argument("corpus", nargs="?", help="histograms to compare with; left out: the queries among themselves")
    cost = parser.add_argument_group("cost of moving mass from bin i to bin j (one of --cost, --grid, --points)")
    cost.add_argument("--cost", metavar="FILE", help="matrix of shape (bins, bins); +inf forbids a move")
    cost.add_argument("--grid", type=sizes, metavar="HxW", help="the bins are cells of a grid: 100, 8x8, 4x4x4")
    cost.add_argument(
        "--points",
        nargs="+",
        metavar="FILE",
        help="where the bins lie (bins, d); a second file for those of the corpus",
    )
    cost.add_argument("--metric", help="between cells or points: sqeuclidean (default), or another name cdist knows")
    cost.add_argument("--scale-cost", action="store_true", help="divide the cost by its largest finite entry")
    solver = parser.add_argument_group("solver")
    solver.add_argument("--eps", required=True, type=positive, help="regularisation, in units of the cost")
    solver.add_argument(
        "--tol", type=positive, default=1e-6, help="marginal error of each pair, L1 (default: %(default)s)"
    )
    solver.add_argument("--max-iter", type=count, default=1000, help="iterations at most (default: %(default)s)")
    solver.add_argument(
        "--value",
        choices=values,
        default="cost",
        help="<P, C>; with eps KL(P|ab) added; with eps H(P) taken off; or the reg_cost of a pair less half of that of"
        " each with itself (default: %(default)s)",
    )
    solver.add_argument("--normalise", action="store_true", help="divide every histogram by its mass")
    solver.add_argument("--dtype", choices=["float32", "float64"], default="float64", help="(default: %(default)s)")
    solver.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto is cuda where it works")
    solver.add_argument("--memory-limit", type=size, metavar="SIZE", help="working memory: 500M, 2G, 512MiB")
    solver.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="a bar with rate and remaining time (needs tqdm; by default on a terminal)",
    )


def positive(text):
    """Return the positive, finite number that `text` gives, for argparse."""
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"must be a positive number; got '{text}'")


def count(text):
    """Return the positive whole number that `text` gives."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a positive whole number; got '{text}'")


def sizes(text):
    """Return sizes joined by x as a tuple."""
    if re.fullmatch(r"\d+(x\d+)*", text) and 0 not in (shape := tuple(map(int, text.split("x")))):
        return shape
    raise argparse.ArgumentTypeError(f"must be positive sizes joined by x, such as 8x8; got '{text}'")


def size(text):
    """Return a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)((?:[kKMGT]i?)?)B?", text)
    if match and (number := int(float(match[1]) * UNITS[match[2].replace("k", "K")])) > 0:
        return number
    raise argparse.ArgumentTypeError(f"must be bytes, such as 500M, 2G or 512MiB; got '{text}'")


def distance_matrix(given):
    """Do the work of ``cusink distance-matrix`` and return the exit status."""
    from cusink.retrieval.matrix import distance_matrix as solve

    check_output(given, (".npy", ".zarr"))
    device, (A, B, C), shape = _problem(given)
    with Report(given) as report, target(given) as path:
        solve(A, B, C, out=path, **_options(given))
    text = f"{given.output}: {' x '.join(map(str, shape))} {given.dtype}, {given.value}, eps {given.eps:g}"
    return report.tell(shape, device, text, {"output": str(given.output)})


def nearest(given):
    """Do the work of ``cusink nearest`` and return the exit status."""
    from cusink.retrieval.nearest import nearest as solve

    if given.output is not None:
        check_output(given, (".npz",))
    device, (A, B, C), shape = _problem(given)
    with Report(given) as report:
        found = solve(A, B, C, k=given.neighbours, prune=not given.no_prune, full_output=True, **_options(given))
    distances, indices = (x.get() if device == "cuda" else x for x in (found.distances, found.indices))
    more = {"k": given.neighbours, "pairs_solved": int(found.finished), "pruning": found.pruning}
    if given.output is None:
        lines = (
            f"{row}: " + ", ".join(f"{j} ({d:.6g})" for j, d in zip(*both, strict=True))
            for row, both in enumerate(zip(indices, distances, strict=True))
        )
        numbers = [[d if math.isfinite(d) else None for d in row] for row in distances.tolist()]
        more |= {"indices": indices.tolist(), "distances": numbers}
        return report.tell(shape, device, "\n".join(lines), more, summary=sys.stderr)
    write_npz(given.output, distances=distances, indices=indices)
    text = f"{given.output}: {given.neighbours} of {shape[1]} for {shape[0]}, {given.value}, eps {given.eps:g}"
    return report.tell(shape, device, text, more | {"output": str(given.output)})


def info(given):
    """Do the work of ``cusink info``."""
    if len(given.pairs) != 2 or len(given.bins) > 2:
        raise InputError("--pairs must be two numbers, as in 100x1000, and --bins one or two, as in 64 or 64x100")
    found = installation.info(given.pairs, (given.bins * 2)[:2], given.dtype)
    print(json.dumps(found) if given.json else "\n".join(installation.text(found)))
    return 0


def _problem(given):
    """Return the device, the arrays of the problem on it, and the shape of the matrix."""
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
    A, B, C = problem(given)
    shape = A.shape[0], (A if B is None else B).shape[0]
    if device == "cuda":
        if not all(x is None or isinstance(x, np.ndarray) for x in (A, B)):
            raise InputError("sparse histograms are compared on the CPU by this command; pass --device cpu")
        A, B, C = to_device(A, B, C)
    return device, (A, B, C), shape


def _options(given):
    """Arguments that both functions take."""
    names = ("eps", "value", "tol", "max_iter", "memory_limit", "progress")
    options = {name: getattr(given, name) for name in names}
    if given.progress is None:
        options["progress"] = sys.stderr.isatty() and not given.json and importlib.util.find_spec("tqdm") is not None
    return options


def choose_device(name):
    """Return "cuda" or "cpu" for "auto", "cuda" or "cpu"; asking for CUDA where there is none is an error."""
    problem = None if name == "cpu" else device_error()
    if name == "cuda" and problem is not None:
        raise InputError(f"--device cuda: {problem}; or use --device cpu")
    return "cpu" if name == "cpu" or problem is not None else "cuda"
