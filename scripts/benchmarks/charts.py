#!/usr/bin/env python3
"""Draw the charts of the documentation from the files in docs/measurements/, and from nothing else.

A chart is a list of panels. A panel names its file, the rows to show, and where they are: a table of Markdown by its
heading, or records of JSON by their work and dtype. A row that is not there, or a table without a column of ratios, is
an error: a chart cannot say what no file says.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

from arguments import Parser

from benchmarks.harness import records

ROOT = Path(__file__).resolve().parents[2]
MEASUREMENTS = ROOT / "docs" / "measurements"
INK, GREY, OURS, RIGHT, WRONG = "#1b1b1b", "#5c5c5c", "#0072b2", "#999999", "#d55e00"


class Row(NamedTuple):
    """A bar: what was measured, how often as long it took as cusink, and whether the answer was right."""

    name: str
    ratio: float
    right: bool


class Panel(NamedTuple):
    """Rows of a measurement file that are shown, in order, under names that a stranger knows.

    `place` is the heading of a table, or the work and the dtype of records.
    """

    title: str
    file: str
    place: str | tuple[str, str]
    rows: dict


CHARTS = {
    "speed": [
        Panel(
            "256 pairs × 100 bins\n100 iterations, eps 0.01, float64",
            "sinkhorn-cpu.md",
            "### W1, eps 0.01, float64",
            {
                "cusink": "cusink",
                "NumPy, unguarded loop": "plain NumPy loop, unchecked",
                "OTT `lse_mode=False`": "OTT, kernel mode, unchecked",
                "POT `sinkhorn2`, loop over pairs": "POT sinkhorn2, loop",
                "POT `solve_batch` sinkhorn": "POT solve_batch",
                "OTT `lse_mode=True`": "OTT, log domain",
            },
        ),
        Panel(
            "256 pairs of far-apart Gaussians\n100 iterations, eps 0.001, float32",
            "sinkhorn-cpu.md",
            "### W1g, eps 0.001, float32",
            {
                "cusink": "cusink",
                "NumPy, unguarded loop": "plain NumPy loop, unchecked",
                "OTT `lse_mode=False`": "OTT, kernel mode, unchecked",
                "POT `sinkhorn2`, loop over pairs": "POT sinkhorn2, loop",
                "POT `solve_batch` sinkhorn": "POT solve_batch",
                "OTT `lse_mode=True`": "OTT, log domain",
            },
        ),
        Panel(
            "50 × 500 digits, eps 0.01\neach pair to an error of 1e-6",
            "sinkhorn-cpu.md",
            "### W2, eps 0.01, float64",
            {
                "cusink": "cusink",
                "NumPy, pairs dropped, query's support": "plain NumPy, pairs dropped",
                "POT `sinkhorn2` one-to-many": "POT sinkhorn2, one to many",
                "POT `emd2`, loop over pairs": "POT emd2 (exact distance)",
                "OTT lse, momentum 1.5": "OTT, log domain, momentum",
            },
        ),
    ],
    "training": [
        Panel(
            "loss and gradient by the weights\n256 pairs × 100 bins, float32",
            "gradients-cpu.md",
            "### W4, float32",
            {
                "cusink, envelope": "cusink, of reg_cost",
                "cusink, exact": "cusink, of cost",
                "OTT Danskin, kernel mode": "OTT, kernel mode, unchecked",
                "torch autograd, unguarded products": "PyTorch autograd, unchecked",
                "OTT Danskin, lse": "OTT, log domain",
                "torch autograd, log domain": "PyTorch autograd, log domain",
            },
        ),
        Panel(
            "two clouds of 5000 points\nper iteration, float32",
            "point-clouds-cpu.md",
            "## 5000 x 5000 points",
            {
                "cusink": "cusink",
                "POT `empirical_sinkhorn`": "POT, unchecked",
                "OTT `PointCloud`": "OTT",
                "NumPy, blocks of log-sum-exp": "plain NumPy, log domain",
                "POT `empirical_sinkhorn`, lazy": "POT, lazy",
            },
        ),
        Panel(
            "documents, 50 × 350 news texts",
            "documents-cpu.md",
            "CPU time of all threads:",
            {
                "cusink": "cusink",
                "POT emd2, costs at hand": "POT emd2, costs ready",
                "gensim wmdistance": "gensim wmdistance",
            },
        ),
    ],
    "few": [
        Panel(
            "16 pairs × 100 bins\n100 iterations, eps 0.01, float32",
            "suite-cpu.jsonl",
            ("pairs", "float32"),
            {
                "cusink": "cusink",
                "NumPy, unguarded loop": "plain NumPy loop, unchecked",
                "OTT `lse_mode=False`": "OTT, kernel mode, unchecked",
                "OTT `lse_mode=True`": "OTT, log domain",
                "POT `solve_batch` sinkhorn": "POT solve_batch",
                "POT `sinkhorn2`, loop over pairs": "POT sinkhorn2, loop",
            },
        ),
        Panel(
            "10 nearest of 1697 digits\nfor 10 queries, float64",
            "suite-cpu.jsonl",
            ("nearest", "float64"),
            {
                "cusink `nearest`": "cusink nearest",
                "faiss, 100 candidates, cusink `nearest`": "faiss, then cusink, not proved",
                "faiss, 100 candidates, POT `sinkhorn2`": "faiss, then POT, not proved",
                "cusink, all pairs and a sort": "cusink, all pairs",
            },
        ),
        Panel(
            "two clouds of 500 points\nto convergence, float32",
            "suite-cpu.jsonl",
            ("clouds", "float32"),
            {
                "cusink": "cusink",
                "POT `empirical_sinkhorn`": "POT, unchecked",
                "OTT `PointCloud`": "OTT",
                "GeomLoss `SamplesLoss`, tensorized": "GeomLoss, tensorized",
                "NumPy, log-sum-exp": "plain NumPy, log domain",
                "GeomLoss `SamplesLoss`, KeOps": "GeomLoss, KeOps",
            },
        ),
    ],
}
# The table and its columns that are drawn over the first one, under their titles.
GROWTH = {
    "index_growth": (
        "index-cpu.md",
        "## 5 queries among mixtures",
        {"CPU time of a query": "CPU time of a query", "pairs solved for a query": "pairs solved for it"},
    )
}


def main(arguments=None):
    """Draw the charts and return the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images", help="folder (default: docs/images)")
    given = parser.parse_args(arguments)
    try:
        charts = {name: [(panel, rows_of(panel)) for panel in panels] for name, panels in CHARTS.items()}
        growths = {
            name: {title: points_of(file, place, column) for title, column in columns.items()}
            for name, (file, place, columns) in GROWTH.items()
        }
    except (OSError, ValueError) as error:
        print(f"charts: {error}", file=sys.stderr)
        return 2
    given.output.mkdir(parents=True, exist_ok=True)
    for drawn, made in ((draw, charts), (draw_growth, growths)):
        for name, content in made.items():
            path = given.output / f"{name}.png"
            drawn(path, content)
            print(path)
    return 0


def rows_of(panel):
    """Read the rows of a panel from its file."""
    if panel.file.endswith(".jsonl"):
        table = table_of_records(records.read(MEASUREMENTS / panel.file), *panel.place)
    else:
        table = table_under((MEASUREMENTS / panel.file).read_text(encoding="utf-8"), panel.place, panel.file)
    return [Row(shown, *judged(table, name, f"{panel.file}, {panel.place}")) for name, shown in panel.rows.items()]


def table_of_records(found, work, dtype):
    """Return the records of a work as `table_under` returns a table; one without a time has no ratio."""
    rows = [r for r in found if (r["work"], r.get("dtype")) == (work, dtype)]
    ours = records.ours(rows)
    table = {}
    for r in rows:
        ratio = repr(r["seconds"] / ours["seconds"]) if ours and r.get("seconds") else ""
        table[r["peer"]] = {"answer": "WRONG" if r["status"] == "wrong" else "right", "time / cusink's": ratio}
    return table


def points_of(file, place, column):
    """Read a curve: the numbers of the first column of a table, those of another, and their unit."""
    table = table_under((MEASUREMENTS / file).read_text(encoding="utf-8"), place, file)
    if any(column not in row for row in table.values()):
        raise ValueError(f"{file}, {place} has no column {column!r}")
    cells = [row[column].split() for row in table.values()]
    units = {" ".join(cell[1:]) for cell in cells}
    if len(units) != 1 or len(cells) < 2:
        raise ValueError(f"{file}, {place}: {column!r} is a curve of one unit; got {sorted(units)}")
    return [float(x) for x in table], [float(cell[0]) for cell in cells], units.pop()


def table_under(text, heading, file):
    """Return the first table after a heading: its rows by their first cell, each a dict of column to cell."""
    place = text.find(f"\n{heading}")
    if place < 0:
        raise ValueError(f"{file} has no heading that begins with {heading!r}")
    lines = text[place + 1 :].splitlines()[1:]
    first = next((k for k, line in enumerate(lines) if line.startswith("|")), None)
    if first is None or any(line.startswith("#") for line in lines[:first]):
        raise ValueError(f"{file} has no table under {heading!r}")
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    columns = rows[0]
    return {row[0]: dict(zip(columns, row, strict=True)) for row in rows[2:]}


def judged(table, name, where):
    """Return the ratio of a row and whether its answer is right."""
    if name not in table:
        raise ValueError(f"{where} has no row {name!r}; it has {sorted(table)}")
    row = table[name]
    cells = [cell for column, cell in row.items() if column.startswith("time / ")]
    ratio = re.match(r"[\d.]+(e[+-]?\d+)?", cells[0]) if cells else None
    if ratio is None:
        raise ValueError(f"{where} has no ratio for {name!r}")
    return float(ratio[0]), not row.get("answer", "").startswith("WRONG")


def draw(path, panels):
    """Save the panels side by side: bars of time relative to cusink, on one logarithmic axis each."""
    from matplotlib.figure import Figure

    most = max(len(rows) for _, rows in panels)
    names = [[row.name for row in rows] for _, rows in panels]
    # Names that are those of the panel to the left are not written again: what is left is room for large letters.
    written = [k == 0 or names[k] != names[k - 1] for k in range(len(panels))]
    figure = Figure(figsize=(10.6 + 1.2 * sum(written), 1.3 + 0.4 * most), facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, wspace=0.08)  # notes end before the names of the next panel
    for ax, (panel, rows), named in zip(figure.subplots(1, len(panels)), panels, written, strict=True):
        for k, row in enumerate(rows):
            colour = OURS if row.name.startswith("cusink") else RIGHT if row.right else WRONG
            # From 1, which is cusink, to the ratio: the length of a bar from any other place would mean nothing.
            ax.plot([1, row.ratio], [k, k], color=colour, linewidth=7, solid_capstyle="butt", zorder=2)
            ax.plot(row.ratio, k, "o" if row.right else "X", color=colour, markersize=11, zorder=3)
            note = f"{two_digits(row.ratio)} ×" + ("" if row.right else "  wrong")
            ax.text(max(row.ratio, 1) * 2.2, k, note, va="center", fontsize=12, color=INK if row.right else WRONG)
        ax.set_yticks(range(len(rows)), [row.name if named else "" for row in rows], fontsize=12)
        ax.set_ylim(most - 0.5, -0.5)
        ax.set_xscale("log")
        ax.set_xlim(0.07, 8000)
        ax.axvline(1, color=OURS, linewidth=1, zorder=0)
        ax.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
        ax.set_xlabel("time relative to cusink", fontsize=11, color=GREY)
        ax.set_title(panel.title, fontsize=13, color=INK, loc="left", x=-0.45 if named else 0)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.minorticks_off()
    figure.savefig(path, dpi=130)


def two_digits(ratio):
    """Return a ratio with the two digits that a repeated measurement confirms, in full above 10."""
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"


def draw_growth(path, curves):
    """Save curves side by side on logarithmic axes, each beside a line of exponent 1 and with its last exponent."""
    from math import log

    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.9), facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, wspace=0.08)
    for ax, (title, (x, y, unit)) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        exponent = log(y[-1] / y[-2]) / log(x[-1] / x[-2])
        ax.plot(x, y, "o-", color=OURS, linewidth=2, markersize=7, zorder=3)
        ax.annotate(
            f"exponent {exponent:.2f}\nat the end",
            (x[-1], y[-1]),
            (-58, -4),
            textcoords="offset points",
            color=OURS,
            fontsize=12,
            ha="right",
            va="top",
        )
        low = min(y) / 1.4
        ax.plot([x[-1] * low / y[-1], x[-1]], [low, y[-1]], ":", color=RIGHT, linewidth=1.8, zorder=2)
        at = 3 * x[-1] * low / y[-1]  # beside the line's lower end, where no curve is
        ax.text(at, 1.45 * low, "proportional\nto the items", fontsize=12, color=GREY, va="center")
        ax.set(xscale="log", yscale="log", ylim=(low, max(y) * 1.5))
        ax.set_xticks(x[::2], [f"{value:,.0f}".replace(",", "\u202f") for value in x[::2]])
        ticks = [d * 10**e for e in range(-1, 7) for d in (1, 2, 5) if low <= d * 10**e <= max(y) * 1.5]
        ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.set_xlabel("items", fontsize=12, color=GREY)
        ax.set_title(title + (f", {unit}" if unit else ""), fontsize=13, color=INK, loc="left")
        ax.grid(color="#e6e6e6", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=11, colors=GREY, length=3)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
