#!/usr/bin/env python3
"""Run every peer on the same work, in one process and in turns, and write one line of JSON for each measurement.

    pairs      16 pairs of histograms on one cost, exactly 100 iterations
    far-apart  the same with Gaussians whose sums leave the range of float32
    retrieval  handwritten digits against each other, each pair to an L1 error of 1e-6
    nearest    the ten nearest of 1697 digits; the error is the share of neighbours that are missed
    gradients  the loss with its gradient in the weights
    clouds     two clouds of points in space, to convergence
    grids      pairs of images, exactly 100 iterations
    unbalanced pairs of histograms of unequal masses, to convergence
    barycenters  mixtures of two images, to convergence
    documents  news texts as clouds of words, at most 2 % above the exact distance
    roofline   the operators of the NumPy backend, as shares of what the machine does at its best

An answer is compared with a float64 reference that uses no library before it is timed. A wrong answer is written down
with its error and its time, as "wrong", and counts in no comparison. A peer that cannot be imported is written down as
"not installed". Times are CPU seconds on one core, medians of interleaved rounds.

``./scripts/bench suite`` makes the environment and runs this file; ``./scripts/bench tables`` makes tables and charts.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

from arguments import Parser

from benchmarks import gradients
from benchmarks.harness import images, masses, peers, searches, spaces, texts, works
from benchmarks.harness.peers import Competitor
from benchmarks.harness.rates import operator_records
from benchmarks.harness.timing import Row, judge, machine, references, schedule
from benchmarks.sinkhorn import pair_competitors

OUTPUT = Path(__file__).resolve().parents[2] / "docs" / "measurements" / "suite-cpu.jsonl"
PACKAGES = {
    "cusink": "cusink",
    "NumPy": "numpy",
    "POT": "POT",
    "OTT": "ott-jax",
    "GeomLoss": "geomloss",
    "torch": "torch",
    "faiss": "faiss-cpu",
    "scikit-learn": "scikit-learn",
    "gensim": "gensim",
}
# What was looked for and cannot be measured here.
ABSENT = {"Daza's loop (wassdistance)": "not on PyPI; `torch, log-sum-exp loop` is the same algorithm"}


@dataclass(frozen=True)
class Work:
    """What everyone does, who does it, and how an answer is judged.

    `judged` takes a competitor and its answer and returns ``(right, error, words)``. `problem` is what ``make`` gets.
    """

    name: str
    size: str
    dtype: str
    problem: Any
    competitors: list[Competitor]
    judged: Callable


def pairs(quick):
    for name, work, dtype in (
        ("pairs", works.dirichlet_pairs(0.01, count=8 if quick else 16), "float64"),
        ("pairs", works.dirichlet_pairs(0.01, count=8 if quick else 16), "float32"),
        ("far-apart", works.gaussian_pairs(count=8 if quick else 16), "float32"),
    ):
        tolerance = {"float64": 1e-9, "float32": 1e-4}[dtype]
        row = Row("", work.cast(dtype), work, [], [], tolerance)
        by_torch = Competitor("torch, log-sum-exp loop", "log", torch_pairs, rounds=1, start="weights")
        yield Work(
            name,
            f"{len(work.a)} x {work.C.shape[0]} x {work.C.shape[1]}, eps {work.eps:g}",
            dtype,
            row.work,
            [*pair_competitors(quick=True), by_torch],
            partial(judged_costs, references(row, kept)),
        )


def torch_pairs(work):
    """``works.torch_log_domain`` without a gradient: what a user of PyTorch would write."""
    import torch

    a, b, C = (torch.as_tensor(x) for x in (work.a, work.b, work.C))

    def run():
        with torch.no_grad():
            return works.torch_log_domain(a, b, C, work.eps, work.iterations).numpy()

    return run, peers.Answer


def retrieval(quick):
    work = works.digit_retrieval(0.01, queries=2 if quick else 10, corpus=40 if quick else 500)
    share = 0.1
    competitors = [
        Competitor("cusink", "ours", peers.cusink_retrieval),
        Competitor("NumPy, pairs dropped, query's support", "plain", peers.plain_retrieval),
        Competitor("POT `sinkhorn2` one-to-many", "kernel", peers.pot_one_to_many, rounds=2),
        Competitor(
            "OTT lse, momentum 1.5",
            "log",
            partial(peers.ott_retrieval, momentum={"value": 1.5}, share=share),
            rounds=1,
            share=share,
        ),
        Competitor("POT `emd2`, loop over pairs", "exact", partial(peers.pot_exact, share=share), 1, share),
    ]
    row = Row("", work, work, competitors, [], None, per_query=4)
    size = f"{len(work.queries)} x {len(work.corpus)} x {len(work.C)} bins, eps {work.eps:g}, L1 error {work.tol:g}"
    yield Work("retrieval", size, "float64", work, competitors, partial(judged_costs, references(row, kept)))


def judged_costs(arguments, competitor, answer):
    """Judge costs; None for an answer to another question."""
    given = arguments(competitor, answer)
    return (True, None, "another distance") if given is None else judge(*given)


_memory = {}


def kept(function):
    """Remember what a reference is for a work: works of both precisions share theirs."""

    def remembered(work, *rest, **named):
        key = (function.__name__, id(work), rest, tuple(named.items()))
        if key not in _memory:
            _memory[key] = function(work, *rest, **named)
        return _memory[key]

    return remembered


def gradient(quick):
    work = replace(works.dirichlet_pairs(0.01, count=2 if quick else 16), iterations=20 if quick else 100)
    dtype = "float32"
    found = {}

    def reference(kind, start):
        if (kind, start) not in found:
            found[kind, start] = gradients.reference_gradients(work, kind, start)
        return found[kind, start]

    entrants = {x.competitor.name: x for x in gradients.entrants(quick=True) if x.gradient is not None}

    def judged(competitor, answer):
        entrant = entrants[competitor.name]
        allowed = gradients.tolerance_of(entrant, dtype, reference)
        return gradients.judge_gradient(answer, reference(entrant.gradient, competitor.start), allowed)

    competitors = [
        replace(x.competitor, make=lambda work, make=x.competitor.make: (make(work), lambda answer: answer))
        for x in entrants.values()
    ]
    size = f"{len(work.a)} x {len(work.C)} x {len(work.C)}, eps {work.eps:g}, {work.iterations} iterations"
    yield Work("gradients", size, dtype, work.cast(dtype), competitors, judged)


def nearest(quick):
    work = searches.digits(queries=2 if quick else 10, items=60 if quick else 1697)
    size = f"{len(work.A)} x {len(work.B)} x {len(work.C)} bins, eps {work.eps:g}, k {work.k}"
    yield Work("nearest", size, "float64", work, searches.COMPETITORS, partial(searches.judged, work))


def clouds(quick):
    work = spaces.problem(40 if quick else 500)
    size = f"{len(work.x)} x {len(work.y)} points, d {work.x.shape[1]}, eps a twentieth of the mean cost"
    yield Work("clouds", size, "float32", work, spaces.COMPETITORS, partial(spaces.judged, work))


def grids(quick):
    work = images.pairs(2 if quick else 16)
    pixels = f"{images.grid.SIDE} x {images.grid.SIDE}"
    size = f"{len(work.a)} pairs of {pixels} pixels, eps {work.eps:g}"
    yield Work("grids", size, "float64", work, images.PAIRS, images.judged_costs(work))


def unbalanced(quick):
    work = masses.problem(2 if quick else 16)
    size = (
        f"{len(work.a)} x {len(work.C)} x {len(work.C)} bins, masses 1 and 1.5, eps {work.eps:g}, reach {work.reach:g}"
    )
    yield Work("unbalanced", size, "float64", work, masses.COMPETITORS, masses.judged_costs(work))


def barycenters(quick):
    work = images.mixtures(2 if quick else 5)
    size = f"{len(work.shares)} mixtures of 2 images of {work.side} x {work.side} pixels, eps {work.eps:g}"
    yield Work("barycenters", size, "float64", work, images.MIXTURES, images.judged_mixtures(work))


def documents(quick):
    work = texts.problem(*((1, 60) if quick else (4, 300)))
    size = f"{len(work.texts)} x {len(work.others)} news texts, eps {work.eps:g}, L1 error {work.tol:g}"
    yield Work("documents", size, "float32", work, texts.COMPETITORS, texts.judged(work))


WORKS = {
    "pairs": pairs,
    "retrieval": retrieval,
    "nearest": nearest,
    "gradients": gradient,
    "clouds": clouds,
    "grids": grids,
    "unbalanced": unbalanced,
    "barycenters": barycenters,
    "documents": documents,
}

PARTS = (*WORKS, "roofline")


def run_work(work, rounds, clock=time.process_time):
    """Check everyone, time everyone in turns, and return a record each."""
    print(f"{work.name}, {work.dtype}: {work.size} ...", file=sys.stderr, flush=True)
    runs, records = {}, {}
    for competitor in work.competitors:
        runs[competitor.name], records[competitor.name] = first_call(work, competitor)
    times = {name: [] for name, run in runs.items() if run is not None}
    limits = {c.name: c.rounds for c in work.competitors if c.name in times}
    shares = {c.name: c.share for c in work.competitors}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for name in schedule(limits, rounds):
            start = clock()
            runs[name]()
            times[name].append((clock() - start) / shares[name])
    for name, taken in times.items():
        records[name] |= {"seconds": statistics.median(taken), "least": min(taken), "rounds": len(taken)}
    return list(records.values())


def first_call(work, competitor):
    """Make, call once and judge a competitor: ``(run or None, record)``."""
    package = PACKAGES[competitor.name.replace(",", " ").split()[0]]
    record = {"work": work.name, "size": work.size, "dtype": work.dtype, "peer": competitor.name, "package": package}
    record |= {"version": version(package), "seconds": None, "error": None}
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            run, read = competitor.make(work.problem)
            answer = read(run())
    except ImportError as problem:
        return None, record | {"status": "not installed", "detail": str(problem)[:120]}
    except Exception as problem:  # a peer that fails must not end the others' run
        detail = f"{type(problem).__name__}: {' '.join(str(problem).split())[:120]}"
        return None, record | {"status": "failed", "detail": detail}
    right, error, words = work.judged(competitor, answer)
    status = "another answer" if error is None else "right" if right else "wrong"
    finite = error if error is not None and np.isfinite(error) else None
    return run, record | {"status": status, "error": finite, "detail": words}


def version(package):
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main(argv=None):
    """Run the works, write the records, and return the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=PARTS, default=PARTS, help="which to run (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="how often the fast ones are timed (default: 3)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"file of JSON lines (default: {OUTPUT.name})")
    parser.add_argument("--quick", action="store_true", help="sizes of a test: the times mean nothing")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"argument --rounds: must be at least 1; got {args.rounds}")
    facts = {key: value for key, value in machine().items() if key != "versions"}
    facts |= {"clock": "CPU time on one core", "python": sys.version.split()[0]}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for name in args.works:
        facts["load"] = round(os.getloadavg()[0], 1)  # of the whole machine: other work makes CPU time longer, too
        if name == "roofline":
            records = operator_records(args.quick)
        else:
            records = []
            for work in WORKS[name](args.quick):
                records += run_work(work, args.rounds)
                write(args.output, [record | {"part": name} | facts for record in records])
        write(args.output, [record | {"part": name} | facts for record in records])
    absent = [{"work": "all", "peer": peer, "status": "absent", "detail": why} for peer, why in ABSENT.items()]
    write(args.output, [record | {"part": "absent"} | facts for record in absent])
    print(args.output)
    return 0


def write(path, records):
    """Replace the records of one part in the file, so that a run which is cut short leaves the others."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    part = records[0]["part"]
    others = [line for line in lines if json.loads(line)["part"] != part]
    text = "".join(line + "\n" for line in [*others, *map(json.dumps, records)])
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


if __name__ == "__main__":
    # The threads of BLAS and XLA are counted when these are loaded: start again on one core.
    if len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.execv(sys.executable, [sys.executable, __file__, *sys.argv[1:]])
    sys.exit(main())
