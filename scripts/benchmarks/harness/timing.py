"""Check, time and print one row of ``benchmarks/sinkhorn.py``: no library is called here."""

import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.harness import works

# An answer may be this many times further from the converged one than a plain iteration that stops by the same rule.
STOPPING_SLACK = 4


@dataclass(frozen=True)
class Target:
    """What issue and documentation promise: ours / other at most, or other / ours at least, or an error at most.

    ``against`` is a competitor's name, "best log" (the fastest right log-domain library), "best library" (the fastest
    right one of all), "reference" (our largest relative error) or "all to tol" (our largest marginal error).
    """

    against: str
    at_most: float | None = None
    at_least: float | None = None


@dataclass(frozen=True)
class Row:
    """One table: `work` as the competitors get it, `exact` (float64) for the reference, `per_query` for its sample.

    `tolerance` is the relative error of a right answer; where it is None it follows from the reference and
    `STOPPING_SLACK`.
    """

    title: str
    work: works.Pairs | works.Retrieval
    exact: works.Pairs | works.Retrieval
    competitors: list
    targets: list
    tolerance: float | None
    per_query: int = 10


def judge(cost, reference, tolerance, error=None, tol=None):
    """Compare an answer with the reference: ``(right, relative error, text)``.

    Parameters
    ----------
    cost, reference : array, equal shapes
    tolerance : float
        Largest relative error of a right answer; any NaN or inf makes it wrong.
    error : array, optional
        Marginal errors of the answer, none of which may be above `tol`.
    tol : float, optional
    """
    cost, reference = np.asarray(cost, dtype=float), np.asarray(reference, dtype=float)
    if cost.shape != reference.shape:
        return False, float("inf"), f"WRONG: shape {cost.shape} for {reference.shape}"
    bad = int(np.count_nonzero(~np.isfinite(cost)))
    if bad:
        return False, float("inf"), f"WRONG: {bad} of {cost.size} not finite"
    relative = float(np.max(np.abs(cost - reference) / np.abs(reference)))
    if relative > tolerance:
        return False, relative, f"WRONG: off by {relative:.1e}"
    if error is not None and tol is not None and not np.max(error) <= tol:
        return False, relative, f"WRONG: marginal error {np.max(error):.1e}"
    return True, relative, "right"


def schedule(limits, rounds):
    """Yield turns in order: everyone once per round, those with a limit only in the first rounds.

    >>> schedule({"a": None, "b": 1, "c": None}, 2)
    ['a', 'b', 'c', 'a', 'c']
    """
    return [name for turn in range(rounds) for name, limit in limits.items() if limit is None or turn < limit]


def compare(ours, other):
    """``other / ours`` in the rounds that both took part in: ratio of medians, least and largest ratio of a round."""
    both = min(len(ours), len(other))
    pairwise = [y / x for x, y in zip(ours[:both], other[:both], strict=True)]
    return statistics.median(other[:both]) / statistics.median(ours[:both]), min(pairwise), max(pairwise)


class Others:
    """CPU time that other processes take: threaded matrix products slow down many times when a core is shared."""

    def __init__(self):
        self.at = self.read()

    @staticmethod
    def read():
        """Seconds of wall time, and of CPU time used by everyone else; (wall, 0) where /proc is missing."""
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            return time.perf_counter(), 0.0
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields)
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy - time.process_time()

    def share(self):
        """Cores that others used since the last call."""
        before, self.at = self.at, self.read()
        return max(0.0, (self.at[1] - before[1]) / max(self.at[0] - before[0], 1e-9))


def one_turn(run, seconds=0.3, calls=5, clock=None):
    """Median time of a few calls, as many as fit: a short call right after another's long one meets cold caches."""
    clock = clock or time.perf_counter
    times = []
    while not times or (sum(times) < seconds and len(times) < calls):
        start = clock()
        run()
        times.append(clock() - start)
    return statistics.median(times)


def quiet_turn(run, until, tries=3, allowed=0.15, others=None, clock=None):
    """One turn while other processes use less than `allowed` of a core: ``(time, share of others)``.

    Waits for that before the turn, and repeats a disturbed turn, but neither after the time `until`; then the quietest
    turn is returned.
    """
    others = others or Others()
    best = None
    for _ in range(tries):
        others.share()
        while time.perf_counter() < until:
            time.sleep(0.1)
            if others.share() <= allowed:
                break
        seconds = one_turn(run, clock=clock)
        share = others.share()
        if best is None or share < best[1]:
            best = seconds, share
        if share <= allowed or time.perf_counter() > until:
            break
    return best


def references(row, keep):
    """Return a function of a competitor and its answer: the arguments of `judge`, None for what has no reference.

    `keep` wraps the functions that compute references, such as by a cache on disk.
    """
    if isinstance(row.exact, works.Pairs):
        reference = keep(works.reference_pairs)
        return lambda competitor, answer: (answer.cost, reference(row.exact, competitor.start), row.tolerance)
    sample = keep(works.reference_sample)(row.exact, per_query=row.per_query)

    def arguments(competitor, answer):
        if competitor.kind == "exact":
            return None
        asked = works.some_queries(len(row.work.queries), competitor.share)
        place = np.full(len(row.work.queries), -1)
        place[asked] = np.arange(len(asked))
        at = place[sample.query] >= 0
        cost = answer.cost[place[sample.query[at]], sample.item[at]]
        if not np.isfinite(answer.cost).all():
            # A NaN outside the sample counts as one inside.
            cost = np.full_like(cost, np.nan)
        return cost, sample.cost[at], STOPPING_SLACK * sample.stopped, answer.error, row.work.tol

    return arguments


def first_call(competitor, work, arguments):
    """Make, call once and judge a competitor: ``(run or None, entry of the table)``."""
    entry = {"name": competitor.name, "kind": competitor.kind, "share": competitor.share}
    entry |= {"right": False, "times": [], "others": []}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run, read = competitor.make(work)
            answer = read(run())
    except Exception as problem:  # a peer that is not installed or fails must not end the others' run
        message = " ".join(str(problem).split())[:80]
        return None, entry | {"verdict": f"FAILED: {type(problem).__name__}: {message}"}
    entry["warnings"] = len(caught)
    for key in ("error", "n_iter"):
        values = getattr(answer, key)
        if values is not None:
            entry[key] = [float(np.median(values)), float(np.max(values))]
    given = arguments(competitor, answer)
    if given is None:
        return run, entry | {"right": True, "verdict": "another distance"}
    right, relative, text = judge(*given)
    return run, entry | {"right": right, "relative": relative, "verdict": text}


def run_row(row, rounds, patience=0.0, keep=lambda function: function, clock=None):
    """Check everyone, then time everyone in turns; return all numbers of the row.

    For `patience` seconds from the first turn the row waits for a quiet machine; from then on it takes it as it is.
    `clock` is ``time.perf_counter`` unless given.
    """
    print(f"{row.title} ...", file=sys.stderr, flush=True)
    arguments = references(row, keep)
    runs, entries = {}, {}
    for competitor in row.competitors:
        runs[competitor.name], entries[competitor.name] = first_call(competitor, row.work, arguments)
    limits = {c.name: c.rounds for c in row.competitors if runs[c.name] is not None}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        until = time.perf_counter() + patience
        for name in schedule(limits, rounds):
            seconds, share = quiet_turn(runs[name], until, clock=clock)
            entries[name]["times"].append(seconds / entries[name]["share"])
            entries[name]["others"].append(share)
    return summarise(row.title, list(entries.values()), row.targets)


def summarise(title, entries, targets):
    """Add medians, ratios to ours and the outcome of each target."""
    ours = next(e for e in entries if e["kind"] == "ours")
    for entry in entries:
        if entry["times"]:
            entry["median"] = statistics.median(entry["times"])
            if ours["times"]:
                entry["ratio"] = compare(ours["times"], entry["times"])
    return {"title": title, "entries": entries, "targets": [meet(t, ours, entries) for t in targets]}


def meet(target, ours, entries):
    """Outcome of one target: what it was compared with, what was measured, whether it is met."""
    wanted = f"<= {target.at_most:g}" if target.at_most is not None else f">= {target.at_least:g} x faster"
    outcome = {"against": target.against, "wanted": wanted, "measured": None, "met": False}
    if target.against in ("reference", "all to tol"):
        key = {"reference": ours.get("relative"), "all to tol": ours.get("error", (None, None))[1]}[target.against]
        if key is not None:
            outcome |= {"measured": f"{key:.1e}", "met": bool(ours["right"] and key <= target.at_most)}
        return outcome
    kinds = {"best log": ("log",), "best library": ("log", "kernel")}.get(target.against)
    able = [e for e in entries if e["right"] and e["times"]]
    if kinds:
        able = [e for e in able if e["kind"] in kinds]
    else:
        # A plain loop is a yardstick of time even where its answer is wrong.
        able = [e for e in entries if e["name"] == target.against and e["times"]]
    if not able or not ours["times"]:
        return outcome
    other = min(able, key=lambda e: statistics.median(e["times"]))
    ratio, low, high = compare(ours["times"], other["times"])
    if target.at_most is not None:
        ratio, low, high = 1 / ratio, 1 / high, 1 / low
        wanted = f"<= {target.at_most:g} x the time"
        met = ratio <= target.at_most
    else:
        met = ratio >= target.at_least
    return outcome | {
        "against": other["name"],
        "wanted": wanted,
        "measured": f"{ratio:.3g} ({low:.3g} to {high:.3g})",
        "met": bool(met and ours["right"]),
    }


def reached(against, wanted, measured, met):
    """Return the outcome of a target that is no ratio of competitors' times, as `print_targets` takes it."""
    return {"against": against, "wanted": wanted, "measured": measured, "met": bool(met)}


def machine():
    """Return the conditions that the numbers depend on."""
    names = ("cusink", "numpy", "scipy", "POT", "ott-jax", "jax", "scikit-learn", "faiss-cpu")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((x.partition(":")[2].strip() for x in cpuinfo if x.startswith("model name")), platform.processor())
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    here = Path(__file__).resolve().parent
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    return {
        "machine": f"{cpu}, {len(os.sched_getaffinity(0))} cores, {platform.system()}",
        "versions": f"Python {platform.python_version()}, "
        + ", ".join(versions)
        + f", {blas['name']} {blas['version']}",
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def shown(seconds):
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def print_row(outcome):
    print(f"\n### {outcome['title']}\n")
    if "note" in outcome:
        print(outcome["note"])
        return
    head = "answer | relative error | warnings | median time | time / cusink's (pairwise) | iterations | others' cores"
    print(f"| | {head} |")
    print("|---|---|---|---|---|---|---|---|")
    for e in outcome["entries"]:
        relative = f"{e['relative']:.1e}" if "relative" in e else ""
        median = shown(e["median"]) if "median" in e else ""
        if e["share"] < 1 and median:
            median += f", scaled from {e['share']:.0%} of the queries"
        ratio = "{:.3g} ({:.3g} to {:.3g})".format(*e["ratio"]) if "ratio" in e else ""
        count = "median {:.0f}, most {:.0f}".format(*e["n_iter"]) if "n_iter" in e else ""
        others = f"{statistics.median(e['others']):.2f}" if e.get("others") else ""
        row = (e["name"], e["verdict"], relative, e.get("warnings", ""), median, ratio, count, others)
        print("| " + " | ".join(str(x) for x in row) + " |", flush=True)


def print_targets(outcomes):
    print("\n### What was to be reached\n\n| work | against | wanted | measured | |\n|---|---|---|---|---|")
    for outcome in outcomes:
        for t in outcome["targets"]:
            met = "met" if t["met"] else "MISSED" if t["measured"] else "not measured"
            work = outcome["title"].partition(":")[0]
            print(f"| {work} | {t['against']} | {t['wanted']} | {t['measured'] or ''} | {met} |")
