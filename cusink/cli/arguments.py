"""The arguments of the commands, and the help that explains them."""

import argparse
import contextlib
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from cusink.cli.files import InputError
from cusink.cli.output import tell
from cusink.retrieval.checks import ALL_VALUES

__all__ = [
    "ADD",
    "BUILD",
    "INDEX",
    "INFO",
    "MATRIX",
    "NEAREST",
    "SEARCH",
    "Parser",
    "add_arguments",
    "build_arguments",
    "info_arguments",
    "matrix_arguments",
    "nearest_arguments",
    "positive",
    "search_arguments",
]


UNITS = {"": 1} | {prefix: 1000**power for power, prefix in enumerate("KMGT", start=1)}
UNITS |= {f"{prefix}i": 1024**power for power, prefix in enumerate("KMGT", start=1)}

FILES = """
A file of histograms is one array of shape (count, bins), or with --grid also (count, *grid), of non-negative numbers;
all histograms have one mass, unless --normalise or --reach is given. Files are .npy, .npz (of several arrays name one,
as in corpus.npz:train; or a sparse matrix as scipy.sparse.save_npz writes it) or Zarr arrays (store.zarr, or
store.zarr:array of a group).

The cost of moving mass from bin i to bin j is given once: a matrix (--cost), the cells of a grid that the bins are
(--grid), or the points at which they lie (--points). --eps is the regularisation, in the unit of the cost: with
--scale-cost 0.01 is a good start; smaller is sharper and takes longer.
"""
STATUS = """
Exit status
  0  every pair converged
  2  wrong input; nothing was written, and one line on stderr says what is wrong and how to correct it
  3  the result was written, but some pairs did not reach --tol within --max-iter iterations
  4  the disk failed (it is full, say){kept}; or standard output did
  129, 130 or 143  interrupted{kept}
  141  nobody reads standard output any more; nothing is said
"""
MATRIX = f"""
Write the Sinkhorn distances between two sets of histograms, or within one set, as a .npy file or a Zarr array.

    cusink distance-matrix queries.npy corpus.npy --grid 8x8 --scale-cost --normalise --eps 0.01 -o distances.npy
    cusink distance-matrix histograms.npy --cost cost.npy --eps 0.05 --dtype float32 -o distances.zarr
{FILES}
The output appears under its name only when it is complete. A command that was stopped goes on when it is given again:
distances.npy.part holds the finished tiles and distances.npy.tiles lists them.
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
INDEX = """
Keep a collection as an index, and search it again and again.

    cusink index build corpus.npy --grid 8x8 --scale-cost --normalise --eps 0.01 -o corpus.index
    cusink index search corpus.index queries.npy -k 10
    cusink index add corpus.index more.npy

An index is a folder of .npy files and one of JSON.
"""
BUILD = f"""
Find out once what searches need of a collection, and write it into a folder.

    cusink index build corpus.npy --grid 8x8 --scale-cost --normalise --eps 0.01 -o corpus.index
{FILES}
The folder appears under its name only when it is complete. It says itself what it is for: a search gives the value,
--eps and --tol of the index, and divides its queries by their masses if --normalise did so with the items.
{STATUS.format(kept="")}"""
ADD = f"""
Add histograms to an index, after those that are there.

    cusink index add corpus.index more.npy others.npy

Files are as for cusink index build, on the bins of the index. The answers are those of an index that was built of all
items at once. The whole index is written anew beside the old one, which it replaces when it is complete: the disk needs
room for both. One command at a time should do so: of two, the later one would undo what the first has added.
{STATUS.format(kept="; the index stays as it was")}"""
SEARCH = f"""
Find the items of an index that are nearest to each query.

    cusink index search corpus.index queries.npy -k 10
    cusink index search corpus.index queries.npy -k 10 --solve-at-most 100 -o neighbours.npz
    cusink index search corpus.index queries.npy -k 10 --candidates proposed.npy

Queries are files as for cusink nearest, on the bins of the index. Without them the neighbours of each item are looked
for among the others. With --solve-at-most or --candidates the .npz file also holds 'proved' and 'undercut', (queries,):
whether the neighbours are those of a full search for certain, and how much nearer one that was not looked at could be.
{STATUS.format(kept="")}"""
INFO = """
Tell the versions, the device, the CUDA kernels, and how a problem of some size would be tiled and launched.
"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise InputError(message)

    def _print_message(self, message: str, file: Any = None) -> None:  # of --help and --version
        del file
        tell(message.rstrip("\n"))


def matrix_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cusink distance-matrix``."""
    _problem_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", required=True, type=Path, help="the .npy file or .zarr store to write")
    output.add_argument("--force", action="store_true", help="overwrite the output if it exists; start again")


def nearest_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cusink nearest``."""
    _problem_arguments(parser)
    parser.add_argument("-k", "--neighbours", required=True, type=count, metavar="K", help="how many for each query")
    parser.add_argument("--no-prune", action="store_true", help="solve all pairs; the answer is the same")
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", type=Path, help="the .npz file to write; left out: print the neighbours")
    output.add_argument("--force", action="store_true", help="overwrite the output if it exists")


def build_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cusink index build``."""
    parser.add_argument("queries", metavar="corpus", help="histograms that are to be looked among")
    parser.set_defaults(corpus=None)
    _cost_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", required=True, type=Path, help="the folder to write")
    output.add_argument("--force", action="store_true", help="replace an index that exists")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cusink index add``."""
    parser.add_argument("index", type=Path, help="the folder of an index")
    parser.add_argument("files", nargs="+", metavar="items", help="histograms to be added, in this order")
    parser.add_argument("--normalise", action="store_true", help="divide every histogram by its mass")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the checksums of the files")
    _workers(parser)
    parser.set_defaults(output=None)


def search_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cusink index search``."""
    parser.add_argument("index", type=Path, help="the folder of an index")
    parser.add_argument("queries", nargs="?", help="histograms, one per line of the result")
    parser.add_argument("-k", "--neighbours", required=True, type=count, metavar="K", help="how many for each query")
    parser.add_argument("--solve-at-most", type=count, metavar="N", help="pairs to be solved of each query at most")
    parser.add_argument(
        "--candidates",
        metavar="FILE",
        help="numbers of the items (queries, c) that may be neighbours of each query, as a vector database proposes",
    )
    parser.add_argument("--no-prune", action="store_true", help="solve all pairs; the answer is the same")
    parser.add_argument(
        "--normalise", action="store_true", help="divide every query by its mass, as an index built with it does anyway"
    )
    parser.add_argument("--no-verify", action="store_true", help="do not compare the checksums of the files")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto is cuda where it works")
    _workers(parser)
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, help="a bar (needs tqdm)")
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", type=Path, help="the .npz file to write; left out: print the neighbours")
    output.add_argument("--force", action="store_true", help="overwrite the output if it exists")
    parser.set_defaults(corpus=None, cost=None, points=None)


def info_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``cusink info``."""
    problem = parser.add_argument_group("how a problem would be run (told where one of these is given)")
    problem.add_argument("--pairs", type=sizes, metavar="QxD", help="queries x corpus (default: 100x1000)")
    problem.add_argument("--bins", type=sizes, metavar="N[xM]", help="bins of a histogram (default: 64)")
    problem.add_argument("--dtype", choices=["float32", "float64"], help="of the histograms (default: float32)")


def _problem_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queries", help="histograms, one per row of the result")
    parser.add_argument("corpus", nargs="?", help="histograms to compare with; left out: the queries among themselves")
    _cost_arguments(parser)


def _cost_arguments(parser: argparse.ArgumentParser) -> None:
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
        choices=ALL_VALUES,
        default="cost",
        help="<P, C>; with eps KL(P|ab) added; with eps H(P) subtracted; or the reg_cost of a pair less half"
        " the reg_cost of each with itself (default: %(default)s)",
    )
    solver.add_argument("--normalise", action="store_true", help="divide every histogram by its mass")
    solver.add_argument(
        "--reach",
        type=positive,
        help="price of mass that appears or vanishes, in units of the cost; masses may then differ",
    )
    solver.add_argument("--dtype", choices=["float32", "float64"], default="float64", help="(default: %(default)s)")
    solver.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto is cuda where it works")
    _workers(solver)
    solver.add_argument("--memory-limit", type=size, metavar="SIZE", help="working memory: 500M, 2G, 512MiB")
    solver.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="a bar with rate and remaining time (needs tqdm; by default on a terminal)",
    )


def _workers(parser: Any) -> None:
    parser.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="threads (default: the environment variable CUSINK_WORKERS, or as many cores as pay)",
    )


def positive(text: str) -> float:
    """Return the positive, finite number in `text`, for argparse."""
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"must be a positive number; got '{text}'")


def count(text: str) -> int:
    """Return the positive whole number in `text`."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a positive whole number; got '{text}'")


def sizes(text: str) -> tuple[int, ...]:
    """Return sizes joined by x as a tuple."""
    if re.fullmatch(r"\d+(x\d+)*", text) and 0 not in (shape := tuple(map(int, text.split("x")))):
        return shape
    raise argparse.ArgumentTypeError(f"must be positive sizes joined by x, such as 8x8; got '{text}'")


def size(text: str) -> int:
    """Return a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)((?:[kKMGT]i?)?)B?", text)
    if match and (number := int(float(match[1]) * UNITS[match[2].replace("k", "K")])) > 0:
        return number
    raise argparse.ArgumentTypeError(f"must be bytes, such as 500M, 2G or 512MiB; got '{text}'")
