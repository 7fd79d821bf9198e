#!/usr/bin/env python3
"""Time and check this library beside its peers on the same work, and print the tables as Markdown.

All competitors of a row run interleaved in one process (A B C A B C ...), one at a time with all cores to itself; each
one's time is its median over the rounds. Before that, every answer is compared with a float64 log-domain reference:
a wrong answer is shown as WRONG and counts in no comparison. Compilation and the first call are left out for everyone.

``scripts/bench`` makes the environment and runs this file.
"""

import json
import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

from arguments import Parser

from benchmarks.harness import peers, works
from benchmarks.harness.memory import measure_memory
from benchmarks.harness.peers import Competitor
from benchmarks.harness.timing import Row, Target, machine, print_row, print_targets, run_row

ROWS = ("w1", "w1g", "w2", "w2-small-eps", "memory")


def pair_competitors(quick):
    """Who does W1 and W1g."""
    few = 2 if quick else 3
    competitors = [
        Competitor("cusink", "ours", peers.cusink_pairs, start="weights"),
        Competitor("NumPy, unguarded loop", "plain", peers.unguarded_loop, start="weights"),
        Competitor("NumPy, unguarded, in place", "plain", peers.unguarded_in_place, start="weights"),
        Competitor("OTT `lse_mode=False`", "kernel", partial(peers.ott_pairs, lse_mode=False)),
        Competitor("OTT `lse_mode=True`", "log", partial(peers.ott_pairs, lse_mode=True), rounds=few),
        Competitor("POT `sinkhorn2`, loop over pairs", "kernel", peers.pot_pairs, rounds=few),
        Competitor("POT `solve_batch` sinkhorn", "kernel", partial(peers.pot_batch, method="sinkhorn"), rounds=few),
        Competitor("POT `solve_batch` log_sinkhorn", "log", partial(peers.pot_batch, method="log_sinkhorn"), rounds=1),
    ]
    return competitors[:-1] if quick else competitors


def w1_rows(args):
    for eps in (0.01,) if args.quick else (0.1, 0.01, 0.001):
        work = works.dirichlet_pairs(eps)
        for dtype, least in (("float64", 30), ("float32", 10)):
            targets = [
                Target("NumPy, unguarded loop", at_most=1.1),
                Target("best log", at_least=least),
                *([Target("reference", at_most=1e-10)] if dtype == "float64" else []),
            ]
            title = f"W1, eps {eps:g}, {dtype}: 256 pairs x 100 bins, exactly 100 iterations"
            tolerance = {"float64": 1e-9, "float32": 1e-4}[dtype]
            yield Row(title, work.cast(dtype), work, pair_competitors(args.quick), targets, tolerance)


def w1g_rows(args):
    work = works.gaussian_pairs()
    for dtype, tolerance in (("float64", 1e-9), ("float32", 1e-4)):
        targets = [Target("best log", at_least=3), Target("reference", at_most=tolerance)]
        title = f"W1g, eps {work.eps:g}, {dtype}: 256 pairs of far-apart Gaussians x 100 bins, exactly 100 iterations"
        yield Row(title, work.cast(dtype), work, pair_competitors(args.quick), targets, tolerance)


def digits(eps, quick):
    return works.digit_retrieval(eps, queries=10 if quick else 50)


def w2_rows(args):
    work = digits(0.01, args.quick)
    log_share = 0.1 if args.quick else 0.04
    competitors = [
        Competitor("cusink", "ours", peers.cusink_retrieval),
        Competitor("NumPy, pairs dropped, query's support", "plain", peers.plain_retrieval),
        Competitor("POT `sinkhorn2` one-to-many", "kernel", peers.pot_one_to_many, rounds=3),
        Competitor(
            "POT `sinkhorn_stabilized` one-to-many",
            "kernel",
            partial(peers.pot_one_to_many, method="sinkhorn_stabilized", stop=1e-6, share=0.2),
            rounds=2,
            share=0.2,
        ),
        Competitor(
            "OTT lse, momentum 1.5",
            "log",
            partial(peers.ott_retrieval, momentum={"value": 1.5}, share=log_share),
            rounds=2,
            share=log_share,
        ),
        Competitor("OTT lse", "log", partial(peers.ott_retrieval, share=log_share), rounds=1, share=log_share),
        Competitor("POT `emd2`, loop over pairs", "exact", partial(peers.pot_exact, share=0.2), rounds=3, share=0.2),
    ]
    targets = [
        Target("best library", at_least=4),
        Target("best log", at_least=20),
        Target("POT `emd2`, loop over pairs", at_least=1),
        Target("all to tol", at_most=work.tol),
    ]
    title = f"W2, eps 0.01, float64: {len(work.queries)} x 500 digits, each pair to L1 error 1e-6"
    yield Row(title, work, work, competitors, targets, None)


def w2_small_rows(args):
    for eps, per_query in ((0.003, 4), (0.001, 2)):
        work = digits(eps, args.quick)
        competitors = [
            Competitor("cusink", "ours", peers.cusink_retrieval),
            Competitor("cusink, omega = 1", "variant", partial(peers.cusink_retrieval, overrelaxation=None), rounds=2),
            Competitor("NumPy, pairs dropped, query's support", "plain", peers.plain_retrieval, rounds=2),
        ]
        targets = [Target("all to tol", at_most=work.tol)]
        title = f"W2, eps {eps:g}, float64: {len(work.queries)} x 500 digits, each pair to L1 error 1e-6"
        yield Row(title, work, work, competitors, targets, None, per_query=per_query)


def chosen(row, only):
    """Return the row with this library and the competitors `only` alone, None for all."""
    if only is None:
        return row
    competitors = [c for c in row.competitors if c.kind == "ours" or c.name in only]
    known = {"reference", "all to tol", *(c.name for c in competitors)}
    return replace(row, competitors=competitors, targets=[t for t in row.targets if t.against in known])


def main(argv=None):
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="which work to do (default: all)")
    parser.add_argument("--repeats", type=int, default=None, help="rounds of the fast competitors (default 9; quick 3)")
    parser.add_argument("--quick", action="store_true", help="fewer eps, queries, competitors and rounds")
    parser.add_argument("--patience", type=float, default=120, help="seconds that a row waits for a quiet CPU")
    parser.add_argument(
        "--one-core", action="store_true", help="CPU time on one core: steady where others use the machine, too"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="competitors to time this library beside (all)")
    parser.add_argument("--json", metavar="FILE", help="also write every number to FILE")
    args = parser.parse_args(argv)
    if args.one_core and len(os.sched_getaffinity(0)) > 1:
        # The threads of BLAS and XLA are counted when these are loaded: start again on one core.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.execv(sys.executable, [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)])

    from joblib import Memory

    # The references take minutes: they are kept, by their code and their inputs.
    keep = Memory(Path(__file__).resolve().parents[2] / ".cache" / "bench", verbose=0).cache
    rounds = args.repeats or (3 if args.quick else 9)

    clock, patience = (time.process_time, 0) if args.one_core else (time.perf_counter, args.patience)
    facts = machine() | {"time": "CPU time on one core" if args.one_core else "wall time on all cores"}
    print("\n".join(f"- {key}: {value}" for key, value in facts.items()), flush=True)
    done = []
    makers = {"w1": w1_rows, "w1g": w1g_rows, "w2": w2_rows, "w2-small-eps": w2_small_rows}
    for name in ROWS:
        if name in args.rows and name in makers:
            for row in makers[name](args):
                outcome = run_row(chosen(row, args.only), rounds, patience, keep, clock)
                print_row(outcome)
                done.append(outcome)
    if "memory" in args.rows:
        outcome = measure_memory(digits(0.01, args.quick))
        print_row(outcome)
        done.append(outcome)
    print_targets(done)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": facts, "rounds": rounds, "rows": done}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
