#!/usr/bin/env python3
"""Make docs/measurements/suite-cpu.md from suite-cpu.jsonl, and draw all charts from the measurement files.

``./scripts/bench suite`` writes the lines, ``./scripts/bench tables`` runs this file. Nothing is measured here.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

from arguments import Parser

from benchmarks import charts
from benchmarks.harness.records import ours, read
from benchmarks.harness.timing import shown

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "measurements"
TITLES = {
    "pairs": "Pairs of histograms, exactly 100 iterations",
    "far-apart": "Pairs of far-apart Gaussians, exactly 100 iterations",
    "retrieval": "All pairs of digits",
    "nearest": "Nearest neighbours among digits",
    "gradients": "Loss and gradient in the weights",
    "clouds": "Two clouds of points, to convergence",
    "grids": "Pairs of images on a grid, exactly 100 iterations",
    "unbalanced": "Pairs of unequal masses, to convergence",
    "barycenters": "Mixtures of two images, to convergence",
    "documents": "News texts as clouds of words",
}
NOTES = {
    "nearest": "`nearest` proves its neighbours. Candidates by L2 may miss some, and nothing would say so.",
    "pairs": "Few and small problems: what a call costs once counts. `sinkhorn-cpu.md` has 256 pairs.",
    "gradients": "Three gradients are compared, each with its own reference: see `scripts/benchmarks/gradients.py`."
    " Few and small problems, as above: `gradients-cpu.md` has 256 pairs.",
    "clouds": "Small clouds: `point-clouds-cpu.md` has larger ones, also with KeOps.",
    "grids": "`grid-cpu.md` has 256 pairs, and more values of eps.",
    "unbalanced": "`unbalanced-cpu.md` has 256 pairs.",
    "barycenters": "The error is the L1 distance from scalings in float64 that converged.",
    "documents": "Right is at most 2 % above the exact distance, which a linear program of SciPy finds for three of the"
    " pairs. The exact solvers take a twentieth of the pairs, and their time is multiplied.",
}
HEAD = """# Every peer on the same work

`./scripts/bench suite` measured `suite-cpu.jsonl`, and `./scripts/bench tables` made this page of it. How it measures
is at the top of `scripts/benchmarks/suite.py`: one process, peers in turns, CPU time on one core, medians. The error is
that of the answer against a float64 reference without any library. **A wrong answer is no fast answer**: it has no
ratio, however short its time.

{conditions}
"""

ROOFLINE = """## Operators beside the machine's rates

An operator's limit is the time of the slowest of three kinds of work, at the rate of one core that the same run
measured: multiply-adds of a matrix product, exponentials in the cache, bytes of a copy. More than 100 % means that the
operator avoids work that its definition asks for."""


def conditions(records):
    """Return the machines, versions and commits of the records as a list."""
    lines = []
    for key in ("machine", "clock", "python", "date", "commit"):
        found = sorted({record[key] for record in records})
        lines.append(f"- {key}: {', '.join(found)}")
    loads = {r["part"]: r["load"] for r in records if "load" in r}
    if loads:
        said = ", ".join(f"{load:g} at the start of {part}" for part, load in loads.items())
        lines.append(f"- load of the machine, which other programs shared: {said}")
    versions = {r["package"]: r["version"] for r in records if r.get("version")}
    return "\n".join([*lines, "- versions: " + ", ".join(f"{k} {v}" for k, v in sorted(versions.items()))])


def table(records):
    """Return the rows of one work."""
    base = ours(records)
    lines = ["| | answer | error | time | time / cusink's |", "|---|---|---|---|---|"]
    for r in records:
        right = r["status"] in ("right", "another answer")
        answer = {"right": "right", "wrong": "WRONG"}.get(r["status"], r["status"])
        if r["status"] in ("wrong", "failed", "another answer"):
            answer = r["detail"]
        error = "" if r["error"] is None else f"{r['error']:.1e}" if r["error"] else "0"
        time = shown(r["seconds"]) if r["seconds"] else ""
        ratio = f"{r['seconds'] / base['seconds']:.3g}" if base and right and r["seconds"] else ""
        lines.append(f"| {r['peer']} | {answer} | {error} | {time} | {ratio or '–'} |")
    return "\n".join(lines)


def roofline(records):
    """Return the operators' shares of the machine's rates."""
    lines = ["| operator | dtype | size | error | time | limit | share of it |", "|---|---|---|---|---|---|---|"]
    for r in records:
        share = f"{r['share']:.0%}" if r["status"] == "right" else "WRONG"
        cells = (r["peer"], r["dtype"], r["size"], f"{r['error']:.1e}", shown(r["seconds"]), r["limit"], share)
        lines.append(f"| {' | '.join(cells)} |")
    rates = {r["dtype"]: r["rates"] for r in records}
    for dtype, best in rates.items():
        flops, exps, copied = (best[key] / 1e9 for key in ("flops", "exps", "bytes"))
        lines.append(f"\nOne core in {dtype}: {flops:.3g} GFLOP/s, {exps:.3g}e9 exp/s, {copied:.3g} GB/s copied.")
    return "\n".join(lines)


def page(records):
    """Return the page of all records."""
    measured = [r for r in records if r["status"] != "absent"]
    text = [HEAD.format(conditions=conditions(measured))]
    for work, title in TITLES.items():
        for dtype in ("float64", "float32"):
            rows = [r for r in measured if (r["work"], r["dtype"]) == (work, dtype)]
            if rows:
                words = " ".join(filter(None, [f"{rows[0]['size']}.", NOTES.get(work)]))
                text.append(f"## {title}, {dtype}\n\n{words}\n\n{table(rows)}\n")
    rows = [r for r in measured if r["work"] == "roofline"]
    if rows:
        text.append(f"{ROOFLINE}\n\n{roofline(rows)}\n")
    lines = [f"- {r['peer']}: {r['detail']}" for r in records if r["status"] in ("absent", "not installed")]
    lines += [
        f"- {title}: not measured yet" for work, title in TITLES.items() if work not in {r["work"] for r in records}
    ]
    if lines:
        text.append("## What did not take part\n\n" + "\n".join(lines) + "\n")
    return "\n".join(text)


def main(argv=None):
    """Write the page, draw the charts, and return the exit status."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, default=FOLDER / "suite-cpu.jsonl", help="file of JSON lines")
    parser.add_argument("--output", type=Path, default=FOLDER / "suite-cpu.md", help="page to write")
    parser.add_argument("--charts", type=Path, default=None, help="folder of the charts (default: docs/images)")
    args = parser.parse_args(argv)
    try:
        text = page(read(args.input))
    except (OSError, ValueError) as error:
        print(f"tables: {error}", file=sys.stderr)
        return 2
    args.output.write_text(text, encoding="utf-8")
    print(args.output)
    return charts.main(["--output", str(args.charts)] if args.charts else [])


if __name__ == "__main__":
    sys.exit(main())
