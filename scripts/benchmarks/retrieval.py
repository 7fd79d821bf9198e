#!/usr/bin/env python3
"""Time and check retrieval on handwritten digits, and measure the memory that it and documents take.

nearest   `cusink.nearest` beside the full distance matrix and a stable sort, 100 queries and 1697 items: a row for
          each value. An answer is right if it has the same indices.
full      the distances of all 1797 digits from each other beside POT's `ot.batch.solve_batch` on some of the pairs.
          An answer is right if it is near a float64 reference, as `benchmarks/sinkhorn.py` judges it.
memory    the largest resident set of a process with a `memory_limit`, read from outside that process.

The competitors of a row run interleaved in one process, each one's time is its median over the rounds.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

from benchmarks.harness import lee, works
from benchmarks.harness.timing import (
    STOPPING_SLACK,
    Target,
    compare,
    judge,
    machine,
    print_targets,
    quiet_turn,
    schedule,
    shown,
    summarise,
)

# name: (value, eps of the largest cost, dtype, how many times faster than the matrix it has to be)
NEAREST = {
    "reg_cost": ("reg_cost", 0.01, "float64", 8),
    "divergence": ("divergence", 0.01, "float64", 8),
    "cost": ("cost", 0.003, "float64", 3),
    "entropic_cost": ("entropic_cost", 0.01, "float64", None),
    "reg_cost-small-eps": ("reg_cost", 0.003, "float64", None),
    "cost-large-eps": ("cost", 0.01, "float64", 4),
    "reg_cost-float32": ("reg_cost", 0.01, "float32", None),
    "cost-float32": ("cost", 0.003, "float32", None),
}
K, TOL = 10, 1e-6
OURS, FULL = "cusink.nearest", "distance_matrix and sort"
# All digits: eps of the largest cost and L1 error; how many digits, pairs for POT, and queries in a round, if quick.
EPS_ALL, TOL_ALL = 0.01, 1e-4
SIZES = {False: (1797, 300, 200), True: (60, 20, 20)}
# POT's batch: array library, method, pairs in a batch, its stopping error. That one is an L2 norm: at 2.5e-5 its L1
# errors are those that ours are at 1e-4. The last one stops at 1e-4 of its own, which is less work than was asked for.
POT = [
    ("NumPy", "sinkhorn", 30, 2.5e-5),
    ("torch", "sinkhorn", 10, 2.5e-5),
    ("torch", "sinkhorn", 30, 2.5e-5),
    ("torch", "sinkhorn", 100, 2.5e-5),
    ("torch", "sinkhorn", 300, 2.5e-5),
    ("NumPy", "log_sinkhorn", 30, 2.5e-5),
    ("torch", "log_sinkhorn", 30, 2.5e-5),
    ("torch", "sinkhorn", 30, 1e-4),
]
MEMORY_LIMITS = (64e6, 16e6)  # bytes


def digits(queries, dtype):
    """Histograms of `queries` digits and of all others, in an order drawn at random, and the cost between cells."""
    from sklearn.datasets import load_digits

    import cusink

    images = load_digits().data[np.random.default_rng(0).permutation(1797)]
    weights = images / images.sum(axis=1, keepdims=True)
    cells = np.indices((8, 8)).reshape(2, -1).T
    C = cusink.cost_matrix(cells.astype(float))
    return (x.astype(dtype) for x in (weights[:queries], weights[queries:], C / C.max()))


def sort(matrix):
    indices = np.argsort(matrix, axis=1, kind="stable")[:, :K]
    return np.take_along_axis(matrix, indices, axis=1), indices


def nearest_row(name, args, clock, until):
    """Time one row; return all of its numbers."""
    import cusink

    value, eps, dtype, least = NEAREST[name]
    A, B, C = digits(20 if args.quick else 100, dtype)
    options = {"eps": eps, "value": value, "tol": TOL}
    title = f"{name}: {len(A)} x {len(B)} digits, {value}, eps {eps:g}, {dtype}, k {K}, each pair to L1 error {TOL:g}"
    print(f"{title} ...", file=sys.stderr, flush=True)
    want = sort(cusink.distance_matrix(A, B, C, **options))
    found = cusink.nearest(A, B, C, k=K, full_output=True, **options)
    same = np.array_equal(found.indices, want[1])
    relative = float(np.max(np.abs(found.distances / want[0] - 1)))
    verdict = "indices identical" if same else f"WRONG: {np.count_nonzero(found.indices != want[1])} indices differ"
    runs = {
        OURS: lambda: cusink.nearest(A, B, C, k=K, **options),
        FULL: lambda: sort(cusink.distance_matrix(A, B, C, **options)),
    }
    entries = {
        OURS: {"kind": "ours", "right": same, "verdict": verdict, "relative": relative},
        FULL: {"kind": "matrix", "right": True, "verdict": "the reference"},
    }
    for each, entry in entries.items():
        entry |= {"name": each, "share": 1.0, "times": [], "others": []}
    for each in schedule(dict.fromkeys(runs), args.repeats):
        seconds, share = quiet_turn(runs[each], until, clock=clock)
        entries[each]["times"].append(seconds)
        entries[each]["others"].append(share)
    shares = {count: getattr(found, count) / (len(A) * len(B)) for count in ("started", "finished")}
    targets = [] if least is None else [Target(FULL, at_least=least)]
    return summarise(title, list(entries.values()), targets) | shares


def print_head():
    head = "work | answer | distances differ by | pairs begun, solved | nearest | full matrix | times faster (pairwise)"
    print(f"\n### Nearest neighbours\n\n| {head} |\n|---|---|---|---|---|---|---|", flush=True)


def print_nearest(outcome):
    ours, full = outcome["entries"]
    line = [
        outcome["title"],
        ours["verdict"],
        f"{ours['relative']:.1e}",
        f"{outcome['started']:.1%}, {outcome['finished']:.1%}",
        shown(ours["median"]),
        shown(full["median"]),
        "{:.3g} ({:.3g} to {:.3g})".format(*full["ratio"]),
    ]
    print("| " + " | ".join(line) + " |", flush=True)


# ---- all digits against each other ---------------------------------------------------------------------------------


def all_digits(count, dtype="float32"):
    """Histograms of `count` digits as queries and as corpus, as a work of ``harness/works.py``."""
    queries, corpus, C = digits(count, dtype)
    whole = queries if count < 1797 else np.concatenate([queries, corpus])
    return works.Retrieval("digits", whole, whole, C, EPS_ALL, TOL_ALL)


def sampled(work, count):
    """Pair each of `count` items with one drawn at random; return a float64 reference of their costs, too."""
    items = np.random.default_rng(0).choice(len(work.corpus), count, replace=False)
    corpus = work.corpus.astype(float)
    corpus /= corpus.sum(axis=1, keepdims=True)  # rounding leaves float32 masses apart: no plan would fit both
    exact = works.Retrieval(work.name, corpus[items], corpus, work.C.astype(float), work.eps, work.tol)
    sample = works.reference_sample(exact, 1, accuracy=1e-9)
    return items[sample.query], sample


def pot_batches(work, pairs, library, method, size, stop):
    """POT's batch solver on `pairs`, `size` of them at a time; ``(run, read)``, `read` gives costs and L1 errors.

    It takes a cost matrix for each pair, and a batch goes on until its slowest pair is done.
    """
    from ot.batch import solve_batch

    a, b = (np.ascontiguousarray(work.corpus[items]) for items in pairs)
    convert = np.asarray
    if library == "torch":
        import torch

        convert = torch.from_numpy
    costs = convert(np.ascontiguousarray(np.broadcast_to(work.C, (size, *work.C.shape))))
    batches = [(convert(a[at : at + size]), convert(b[at : at + size])) for at in range(0, len(a), size)]

    def run():
        with np.errstate(divide="ignore"):  # the logarithms of empty bins
            return [
                solve_batch(costs[: len(x)], work.eps, x, y, max_iter=10_000, tol=stop, method=method, grad="detach")
                for x, y in batches
            ]

    def read(solved):
        plans = np.concatenate([np.asarray(part.plan) for part in solved]).astype(float)
        errors = np.abs(plans.sum(axis=2) - a).sum(axis=1) + np.abs(plans.sum(axis=1) - b).sum(axis=1)
        return np.concatenate([np.asarray(part.value_linear) for part in solved]), errors

    return run, read


def full_row(args, clock, until):
    """Time all digits against each other once, a part of them and POT on a sample in each round; all of the numbers."""
    import cusink

    count, some, queries = SIZES[args.quick]
    work = all_digits(count)
    title = f"all digits: {count} x {count}, symmetric, float32, eps {work.eps:g}, each pair to L1 error {work.tol:g}"
    print(f"{title} ...", file=sys.stderr, flush=True)
    first, sample = sampled(work, some)
    tolerance = STOPPING_SLACK * sample.stopped
    options = {"eps": work.eps, "tol": work.tol, "full_output": True}
    entries, runs, limits, pairs = {}, {}, {}, {}

    def enter(name, kind, run, answer, error, solved, turns=None):
        right, relative, verdict = judge(answer, sample.cost, tolerance)
        entries[name] = {"name": name, "kind": kind, "share": 1.0, "times": [], "others": []}
        entries[name] |= {"right": right, "relative": relative, "verdict": verdict, "error": [float(np.max(error))]}
        runs[name], limits[name], pairs[name] = run, turns, solved

    part = partial(cusink.distance_matrix, work.corpus[:queries], work.corpus, work.C, **options)
    cusink.distance_matrix(work.corpus[:2], None, work.C, **options)
    start = time.process_time(), time.perf_counter()
    whole = cusink.distance_matrix(work.corpus, None, work.C, **options)
    seconds = time.process_time() - start[0], time.perf_counter() - start[1]
    solved = count * (count + 1) // 2
    enter(
        f"cusink, {queries} x {count}", "ours", part, whole.distances[first, sample.item], whole.error, queries * count
    )
    ours = entries[f"cusink, {queries} x {count}"]
    if not whole.converged.all():
        ours |= {"right": False, "verdict": f"WRONG: {np.count_nonzero(~whole.converged)} pairs not converged"}
    for library, method, size, stop in POT:
        name = f"POT `solve_batch`, {library}, {method}, {size} at a time, its own error {stop:g}"
        try:
            run, read = pot_batches(work, (first, sample.item), library, method, size, stop)
            enter(name, "log" if stop < work.tol else "looser", run, *read(run()), some)
        except ImportError as problem:
            print(f"{name}: {problem}", file=sys.stderr)
    for name in schedule(limits, args.repeats):
        taken, share = quiet_turn(runs[name], until, clock=clock)
        entries[name]["times"].append(taken / pairs[name])
        entries[name]["others"].append(share)
    outcome = summarise(title, list(entries.values()), [Target("best library", at_least=20)])
    whole_facts = {
        "cpu": seconds[0],
        "wall": seconds[1],
        "pairs": solved,
        "converged": int(np.count_nonzero(whole.converged)),
        "of": whole.converged.size,
        "iterations": [float(np.median(whole.n_iter)), int(whole.n_iter.max())],
        "relative": ours["relative"],
        "tolerance": tolerance,
        "sample": some,
    }
    peers = [e for e in outcome["entries"] if e["kind"] == "log" and e["right"]]
    if peers:
        best = min(peers, key=lambda e: e["median"])
        taken = seconds[0] if clock is time.process_time else seconds[1]
        ratio, low, high = compare([taken / solved] * len(best["times"]), best["times"])
        outcome["targets"].append(
            {
                "against": f"{best['name']}, the whole matrix once",
                "wanted": ">= 20 x faster",
                "measured": f"{ratio:.3g} ({low:.3g} to {high:.3g})",
                "met": bool(ratio >= 20 and ours["right"]),
            }
        )
    return outcome | {"whole": whole_facts}


def print_full(outcome):
    whole = outcome["whole"]
    print(f"\n### {outcome['title']}\n")
    converged = f"{whole['converged']} of {whole['of']}"
    lines = [
        f"The whole matrix, once: {whole['cpu']:.1f} s of CPU time, {whole['wall']:.1f} s on the clock;",
        f"{whole['pairs']} pairs solved, {whole['pairs'] / whole['cpu']:.0f} a CPU second; {converged}",
        f"entries converged, iterations: median {whole['iterations'][0]:.0f}, at most {whole['iterations'][1]}.",
        f"{whole['sample']} of its pairs are off by {whole['relative']:.1e} at most,",
        f"{whole['tolerance']:.1e} is right.\n",
    ]
    print("\n".join(lines))
    print("| | answer | off by at most | L1 error | time of a pair | time / cusink's (by rounds) |")
    print("|---|---|---|---|---|---|")
    for e in outcome["entries"]:
        line = [e["name"], e["verdict"], f"{e['relative']:.1e}", f"{e['error'][0]:.1e}", f"{1e6 * e['median']:.3g} us"]
        print("| " + " | ".join(line) + " | {:.3g} ({:.3g} to {:.3g}) |".format(*e["ratio"]), flush=True)


# ---- memory --------------------------------------------------------------------------------------------------------


def full_job(folder, out, quick, limit):
    import cusink

    A, C = np.load(folder / "A.npy"), np.load(folder / "C.npy")
    cusink.distance_matrix(A[:quick], None, C, eps=EPS_ALL, tol=TOL_ALL, out=out, memory_limit=limit)


def nearest_job(folder, out, quick, limit, name="reg_cost"):
    import cusink

    value, eps, _, _ = NEAREST[name]
    A, C = np.load(folder / "A64.npy"), np.load(folder / "C64.npy")
    cusink.nearest(A[:100][:quick], A[100:], C, k=K, eps=eps, value=value, tol=TOL, memory_limit=limit)


def documents_job(folder, out, quick, limit):
    from scipy import sparse

    import cusink

    rows = sparse.load_npz(folder / "rows.npz")
    costs = cusink.PointCloud(np.load(folder / "vectors.npy"), metric="euclidean")
    cusink.distance_matrix(rows[:50][:quick], rows, costs, eps=0.019, tol=0.01, max_iter=5000, memory_limit=limit)


def idle_job(folder, out, quick, limit, times=1):
    """No work: an array of `times` the limit, to see that what is measured is what was taken."""
    np.ones(int(times * limit), np.int8)


# name: (title, inputs, function); the inputs are read by the process that is measured.
JOBS = {
    "full": ("1797 x 1797 digits, float32, into a .npy file", ("A.npy", "C.npy"), full_job),
    "nearest": ("nearest 100 x 1697, `reg_cost`", ("A64.npy", "C64.npy"), nearest_job),
    "nearest-cost": (
        "nearest 100 x 1697, `cost`, eps 0.003",
        ("A64.npy", "C64.npy"),
        partial(nearest_job, name="cost"),
    ),
    "documents": ("documents, 50 x 350 texts", ("rows.npz", "vectors.npy"), documents_job),
    "idle": ("an array of the limit", (), idle_job),
    "idle-more": ("an array of twice the limit", (), partial(idle_job, times=2)),
}
ROWS = [*NEAREST, "full", "memory"]


def write_inputs(folder):
    """Write the inputs of the jobs; return the names of the jobs that can run."""
    import warnings

    work, exact = all_digits(1797), all_digits(1797, "float64")
    for name, array in (("A", work.corpus), ("C", work.C), ("A64", exact.corpus), ("C64", exact.C)):
        np.save(folder / f"{name}.npy", array)
    try:
        from scipy import sparse

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of gensim, as it is loaded
            corpus = lee.read_corpus()
    except ImportError as problem:
        print(f"documents: {problem}", file=sys.stderr)
        return ["full", "nearest", "nearest-cost"]
    sparse.save_npz(folder / "rows.npz", sparse.csr_array(lee.shares(corpus)), compressed=False)
    np.save(folder / "vectors.npy", corpus.vectors)
    return ["full", "nearest", "nearest-cost", "documents"]


def measured_process(name, limit, folder):
    """Load what the job needs and do a little of it, wait for a line, do the job, wait for another."""
    small = folder / "small"
    job = JOBS[name][2]
    if not name.startswith("idle"):
        job(small, folder / f"{name}-{limit}-warm.npy", 2, limit)
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.process_time()
    job(folder, folder / f"{name}-{limit}.npy", None, limit)
    print(time.process_time() - start, flush=True)
    sys.stdin.readline()


def resident(process, field):
    """VmRSS (now) or VmHWM (the peak) of a process in bytes; Linux only."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())[1])


def grown(name, limit, folder):
    """Bytes by which the resident set of a process grows at most as it reads its inputs and works; its CPU time."""
    command = [sys.executable, __file__, "job", name, str(int(limit)), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def next_line():
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the process of '{name}' ended early")
            return line

        next_line()
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak starts afresh
        before = resident(process, "VmRSS")
        process.stdin.write("\n")
        process.stdin.flush()
        seconds = float(next_line())
        return resident(process, "VmHWM") - before, seconds


def write_small(folder):
    """Return the inputs again, of a few items each: modules that a first call loads are not the job's memory."""
    from scipy import sparse

    small = folder / "small"
    small.mkdir()
    for path in folder.glob("*.npy"):
        array = np.load(path)
        np.save(small / path.name, array if path.name in ("C.npy", "C64.npy") else array[:120])
    if (folder / "rows.npz").exists():
        rows = sparse.load_npz(folder / "rows.npz")[:3, :120]
        rows = sparse.csr_array(rows.toarray() + np.float32(0.01))
        sparse.save_npz(small / "rows.npz", sparse.csr_array(rows / rows.sum(axis=1)[:, None]), compressed=False)


def memory_row(args, names=None, limits=MEMORY_LIMITS):
    """Measure each job with each limit in a process of its own; all of the numbers."""
    entries, targets = [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if names is None:
            names = write_inputs(folder)
            write_small(folder)
        for name in names:
            title, inputs, _ = JOBS[name]
            given = sum((folder / path).stat().st_size for path in inputs)
            for limit in limits:
                print(f"memory: {title}, {limit / 1e6:g} MB ...", file=sys.stderr, flush=True)
                taken, seconds = grown(name, limit, folder)
                entry = {"title": title, "limit": limit, "inputs": given, "taken": taken, "cpu": seconds}
                entries.append(entry | {"met": taken <= limit + given})
                targets.append(
                    {
                        "against": f"{title}, {limit / 1e6:g} MB",
                        "wanted": f"<= {(limit + given) / 1e6:.1f} MB",
                        "measured": f"{taken / 1e6:.1f} MB",
                        "met": taken <= limit + given,
                    }
                )
    return {"title": "peak memory: read from outside the process", "entries": entries, "targets": targets}


def print_memory(outcome):
    print(f"\n### {outcome['title']}\n\n| work | `memory_limit` | inputs | allowed | peak growth | CPU time | |")
    print("|---|---|---|---|---|---|---|")
    for e in outcome["entries"]:
        sizes = (e["limit"], e["inputs"], e["limit"] + e["inputs"], e["taken"])
        line = [e["title"], *(f"{x / 1e6:.1f} MB" for x in sizes), shown(e["cpu"]), "met" if e["met"] else "MISSED"]
        print("| " + " | ".join(line) + " |", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="which work (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--quick", action="store_true", help="20 queries instead of 100, and 60 digits of all")
    parser.add_argument("--patience", type=float, default=60, help="seconds that a row waits for a quiet CPU")
    parser.add_argument(
        "--one-core", action="store_true", help="CPU time on one core: steady where others use the machine, too"
    )
    parser.add_argument("--json", metavar="FILE", help="also write every number to FILE")
    args = parser.parse_args(argv)
    if args.one_core and len(os.sched_getaffinity(0)) > 1:
        # The threads of BLAS are counted when it is loaded: start again on one core.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.execv(sys.executable, [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv)])
    clock, patience = (time.process_time, 0) if args.one_core else (time.perf_counter, args.patience)
    facts = machine() | {"time": "CPU time on one core" if args.one_core else "wall time on all cores"}
    print("\n".join(f"- {key}: {value}" for key, value in facts.items()), flush=True)
    done = []
    for name in args.rows:
        if name in NEAREST:
            if not any("started" in row for row in done):
                print_head()
            done.append(nearest_row(name, args, clock, time.perf_counter() + patience))
            print_nearest(done[-1])
        elif name == "full":
            done.append(full_row(args, clock, time.perf_counter() + patience))
            print_full(done[-1])
        else:
            done.append(memory_row(args))
            print_memory(done[-1])
    print_targets(done)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": facts, "rounds": args.repeats, "rows": done}, file, indent=1)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        sys.exit(measured_process(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
    sys.exit(main())
