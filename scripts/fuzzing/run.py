#!/usr/bin/env python3
"""Draw problems at random and hold every answer to its own claims, computed again in float64.

Each case is drawn from its subject and one integer, `--seed` for the first; `--only SUBJECT --seed N --cases 1` draws
it again. A run ends after `--minutes`, or after `--cases` of each subject; with `--state FILE` the same command goes
on where it was stopped, by Ctrl-C or else. The first failures of each kind are shrunk and printed as programs.

    right     converged, and all that it claims holds        WRONG     a claim that does not hold
    flagged   not converged, with a warning; claims hold     NaN       where a finite number was promised
    refused   a clear TypeError or ValueError before work    unclear   another error, or a warning nobody announced

The exit status is 1 if anything is WRONG, NaN or unclear, and 130 after Ctrl-C.
"""

import argparse
import itertools
import multiprocessing
import os
import signal
import sys
import time
import traceback
import zlib
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts/

from arguments import Parser

from fuzzing import report
from fuzzing.case import FAILURES, UNCLEAR, Case, Finding, Seen
from fuzzing.shrink import shrunk
from fuzzing.state import State
from fuzzing.subjects import NAMES, subject

LIMIT = 120  # seconds of processor time that a case may take; all are small
LONGEST = 1200  # seconds on the clock, which other programs share
END = "an end"
NO_END = Finding(UNCLEAR, END, f"in {LIMIT} s of processor time", "none")
Kind = tuple[str, str, str]


class TooLongError(BaseException):
    """A case took longer than `LIMIT`; no handler of exceptions of the library takes it for one of its own."""


def main(argv: list[str] | None = None) -> int:
    """Run, report, and return the exit status."""
    arguments = _arguments(argv)
    with State(arguments.state) as state:
        stopped = _run(arguments, state)
        for name in arguments.only:
            state.counts.setdefault(name, Counter())
        failures = [] if stopped else _explained(state, arguments)
        if arguments.json:
            print(report.as_json(state.counts, state.seconds, failures))
        else:
            for failure in failures:
                print(failure["script"])
                print(f"# {failure['count']} of this kind; seeds {failure['seeds']}\n")
            print(report.table(state.counts, state.seconds))
        if stopped:
            again = "the same command goes on" if arguments.state else "without --state nothing is kept"
            print(f"stopped; {again}", file=sys.stderr)
            return 130
        return int(any(count[outcome] for count in state.counts.values() for outcome in FAILURES))


def drawn(name: str, seed: int) -> Case:
    """Return a case from its subject and one integer."""
    return subject(name).draw(np.random.default_rng([zlib.crc32(name.encode()), seed]), seed)


def checked(case: Case) -> Seen:
    """Check a case; whatever goes wrong in the check itself is a failure as well."""
    try:
        with _limit(LIMIT, LONGEST):
            return subject(case.subject).check(case)
    except TooLongError:
        return Seen(UNCLEAR, [NO_END])
    except Exception:
        return Seen(UNCLEAR, [Finding(UNCLEAR, "the check itself runs", "a check", traceback.format_exc(limit=-3))])


def one(name: str, seed: int) -> dict[str, Any]:
    """Draw and check a case; return its line of the state."""
    start = time.perf_counter()
    seen = checked(drawn(name, seed))
    seconds = round(time.perf_counter() - start, 3)
    findings = [list(finding) for finding in seen.findings]
    return {"subject": name, "seed": seed, "outcome": seen.outcome, "seconds": seconds, "findings": findings}


def explained(name: str, seed: int, kind: Kind, seconds: float) -> tuple[str, list[list[str]]]:
    """Shrink the failure of a kind of a case; return a program that shows it, and what it finds."""

    def findings(case: Case) -> list[Finding]:
        return [f for f in checked(case).findings if (name, f.verdict, f.claim) == kind]

    if kind[2] == END:  # each attempt would take as long
        return report.script(drawn(name, seed), [NO_END], subject(name).SHOW), [list(NO_END)]
    small = shrunk(drawn(name, seed), lambda case: bool(findings(case)), seconds)
    found = findings(small)
    return report.script(small, found, subject(name).SHOW), [list(f) for f in found]


def _run(arguments: argparse.Namespace, state: State) -> bool:
    """Check cases until the time or their number is up; return whether the user stopped it."""
    until = time.monotonic() + 60 * arguments.minutes if arguments.minutes else float("inf")
    seeds = {name: itertools.count(arguments.seed) for name in arguments.only}
    spent = {name: state.seconds[name] for name in arguments.only}
    ends = arguments.seed + arguments.cases if arguments.cases else None

    def chosen() -> tuple[str, int] | None:
        """Return the next case: of the subject on which the least time was spent."""
        for name in sorted(seeds, key=lambda name: spent[name]):
            seed = next(s for s in seeds[name] if (name, s) not in state.done)
            if ends is None or seed < ends:
                spent[name] += 1e-3
                return name, seed
            del seeds[name]
        return None

    def take(entry: dict[str, Any]) -> None:
        spent[entry["subject"]] += entry["seconds"]
        state.add(entry)
        if sys.stderr.isatty():
            bad = sum(count[outcome] for count in state.counts.values() for outcome in FAILURES)
            print(f"\r{len(state.done)} cases, {bad} failures ", end="", file=sys.stderr, flush=True)

    try:
        if arguments.jobs == 1:
            while time.monotonic() < until and (case := chosen()):
                take(one(*case))
            return False
        with _pool(arguments.jobs) as pool:
            try:
                running: set[Future[dict[str, Any]]] = set()
                while time.monotonic() < until:
                    while len(running) < 2 * arguments.jobs and (case := chosen()):
                        running.add(pool.submit(one, *case))
                    if not running:
                        break
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        take(future.result())
                for future in running:
                    if not future.cancel():
                        take(future.result())
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except KeyboardInterrupt:
        return True
    return False


def _explained(state: State, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the first failures of each kind, shrunk, as programs."""
    kinds: dict[Kind, list[int]] = {}
    for entry in state.failures:
        if entry["subject"] in arguments.only:
            for kind in {(entry["subject"], verdict, claim) for verdict, claim, *_ in entry["findings"]}:
                kinds.setdefault(kind, []).append(entry["seed"])
    kept = sorted(kinds.items(), key=lambda item: (item[0][0], -len(item[1])))
    jobs = [(kind, seed) for kind, seeds in kept for seed in seeds[: arguments.show]]
    programs = _each(arguments.jobs, [(kind[0], seed, kind, arguments.shrink) for kind, seed in jobs])
    return [
        {
            "subject": kind[0],
            "verdict": kind[1],
            "claim": kind[2],
            "count": len(kinds[kind]),
            "seeds": kinds[kind][:20],
            "findings": found,
            "script": program,
        }
        for (kind, _), (program, found) in zip(jobs, programs, strict=True)
    ]


def _each(jobs: int, calls: list[tuple[Any, ...]]) -> list[Any]:
    if jobs == 1 or len(calls) < 2:
        return [explained(*call) for call in calls]
    with _pool(jobs) as pool:
        return list(pool.map(explained, *zip(*calls, strict=True)))


def _pool(jobs: int) -> ProcessPoolExecutor:
    """Return processes that leave Ctrl-C to this one."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))


class _limit:  # noqa: N801
    """Raise `TooLongError` where a block takes longer than `seconds` of processor time, or `longest` on the clock.

    By signals, so in the main thread of Linux.
    """

    def __init__(self, seconds: float, longest: float) -> None:
        self.timers = (signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, longest)

    def __enter__(self) -> None:
        self.before = [signal.signal(number, self._raise) for number, _, _ in self.timers]
        for _, timer, seconds in self.timers:
            signal.setitimer(timer, seconds)

    def __exit__(self, *_: object) -> None:
        for (number, timer, _), before in zip(self.timers, self.before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, before)

    @staticmethod
    def _raise(number: int, frame: FrameType | None) -> None:
        raise TooLongError


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="time to draw cases for; 10 if --cases is not given")
    parser.add_argument("--cases", type=int, help="cases of each subject")
    parser.add_argument("--seed", type=int, default=0, help="integer of the first case")
    parser.add_argument("--only", default=",".join(NAMES), help=f"subjects, of {','.join(NAMES)}")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--state", type=Path, help="file of the cases done: the same command goes on with it")
    parser.add_argument("--show", type=int, default=1, help="failures of each kind to shrink and print")
    parser.add_argument("--shrink", type=float, default=20, help="seconds to shrink one failure for")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args(argv)
    arguments.only = arguments.only.split(",")
    if wrong := set(arguments.only) - set(NAMES):
        parser.error(f"no subject {', '.join(sorted(wrong))}; there are {', '.join(NAMES)}")
    if arguments.minutes is None and arguments.cases is None:
        arguments.minutes = 10.0
    return arguments


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, or the other processes would stay
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
