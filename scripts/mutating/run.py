#!/usr/bin/env python3
"""Change the sources a little, one place at a time, and see whether the tests notice.

Each mutant lives in a copy of the sources, never in the checkout. Its tests are those that `areas.py` names for its
file, one after the other: first those that take seconds, and if they pass, thorough ones. `--sample` draws that many
mutants of each area by `--seed`; a larger sample holds the smaller one. With `--state FILE` the same command goes on
where it was stopped; survivors are tried again when tests have changed.

    killed    a test fails          survived   no test fails
    timeout   the tests do not end, which a run of tests would show
    invalid   a CUDA kernel that does not compile; it does not count

The score is the share of killed and timeout among those that count. Survivors that change nothing but speed, or nothing
at all, stand in `explained.toml` with the reason; the score beside leaves them out. The exit status is 1 where that is
less than `--least`, and 130 after Ctrl-C.
"""

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from arguments import Parser  # noqa: E402

from mutating import areas  # noqa: E402
from mutating.mutant import Mutant  # noqa: E402
from mutating.trial import INVALID, KILLED, SURVIVED, TIMEOUT, Workshop  # noqa: E402

EXPLAINED = "scripts/mutating/explained.toml"
# What every run of tests loads is loaded once, before it forks.
PRELOADED = ("numpy", "scipy.optimize", "scipy.sparse.linalg", "scipy.special", "pytest")
Result = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Run, report, and return the exit status."""
    arguments = _arguments(argv)
    chosen = sample(areas.mutants(arguments.root, arguments.only), arguments.sample, arguments.seed, arguments.file)
    results = _read(arguments.state, arguments.root)
    missing = [mutant for mutant in chosen if mutant.name not in results]
    with open(arguments.state or os.devnull, "a", encoding="utf-8") as file:

        def take(result: Result) -> None:
            results[result["name"]] = result
            print(json.dumps(result), file=file, flush=True)
            if sys.stderr.isatty():
                print(f"\r{len(results)} of {len(chosen)} ", end="", file=sys.stderr, flush=True)

        try:
            _run(arguments.root, missing, arguments.jobs, take)
        except KeyboardInterrupt:
            again = "the same command goes on" if arguments.state else "without --state nothing is kept"
            print(f"stopped; {again}", file=sys.stderr)
            return 130
    done = [results[mutant.name] for mutant in chosen]
    known = explained(arguments.root / EXPLAINED)
    for result in done:
        if result["outcome"] == SURVIVED and (result["path"], result["diff"]) not in known:
            print(f"{result['path']}:{result['line']}: {result['kind']}\n{result['diff']}\n")
    print(table(done, known))
    total = score(done, known)[1]
    return int(total is not None and 100 * total < arguments.least)


def sample(mutants: Iterable[Mutant], size: int | None, seed: int, files: list[str] | None = None) -> list[Mutant]:
    """Draw `size` mutants of each area, by order of file and line."""
    by_area: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        if not files or mutant.path in files:
            by_area[mutant.area].append(mutant)
    drawn = [m for every in by_area.values() for m in sorted(every, key=lambda mutant: mutant.draw(seed))[:size]]
    return sorted(drawn, key=lambda mutant: (mutant.path, mutant.line))


def explained(file: Path) -> dict[tuple[str, str], str]:
    """Return the reasons of the survivors that are no fault of the tests, by file and difference."""
    entries = tomllib.loads(file.read_text("utf-8")).get("survivor", []) if file.exists() else []
    return {(entry["file"], entry["diff"].strip()): entry["reason"] for entry in entries}


def score(results: list[Result], known: Iterable[tuple[str, str]] = ()) -> tuple[float | None, float | None]:
    """Return the share of mutants that were found, of all and of all but the explained; None of none."""
    found = [r for r in results if r["outcome"] in (KILLED, TIMEOUT)]
    lost = [r for r in results if r["outcome"] == SURVIVED]
    unknown = [r for r in lost if (r["path"], r["diff"]) not in known]
    shares = [len(found) / count if (count := len(found) + len(left)) else None for left in (lost, unknown)]
    return shares[0], shares[1]


def table(results: list[Result], known: Iterable[tuple[str, str]]) -> str:
    """Return the outcomes by area."""
    heads = ("killed", "timeout", "survived", "explained", "invalid", "score", "but those")
    lines = [" " * 12 + "".join(f"{head:>10}" for head in heads)]
    names = list(dict.fromkeys(r["area"] for r in results))
    for name in [*names, "all"]:
        some = [r for r in results if name in (r["area"], "all")]
        count = Counter(r["outcome"] for r in some)
        reasons = sum(r["outcome"] == SURVIVED and (r["path"], r["diff"]) in known for r in some)
        shares = ["-" if x is None else f"{100 * x:.1f} %" for x in score(some, known)]
        numbers = (count[KILLED], count[TIMEOUT], count[SURVIVED], reasons, count[INVALID], *shares)
        lines.append(f"{name:12}" + "".join(f"{x:>10}" for x in numbers))
    return "\n".join(lines)


# ---- in the processes that try mutants -----------------------------------------------------------------------------

_workshop: Workshop
_seconds: dict[tuple[str, ...], float]
_tests_then: str


def _begin(root: Path, preloaded: Iterable[str]) -> None:
    global _workshop, _seconds, _tests_then
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    for module in preloaded:
        importlib.import_module(module)
    _workshop, _seconds, _tests_then = Workshop(root), {}, _tests(root)
    multiprocessing.util.Finalize(None, _workshop.close, exitpriority=1)


def _end(*_: object) -> None:
    """End at once, as a pool would take an exception for the outcome of a mutant."""
    _workshop.close()
    os._exit(143)


def _try(mutant: Mutant, steps: Iterable[tuple[str, ...]]) -> Result:
    """Try a mutant with the quick tests of its file, and then with the thorough ones."""
    outcome, test = SURVIVED, ""
    for tests in _one_by_one(steps):
        if outcome == SURVIVED:
            if tests not in _seconds:
                _seconds[tests] = _workshop.baseline(tests)
            outcome, test = _workshop.trial(mutant, tests, _seconds[tests])
    said = {"name": mutant.name, "area": mutant.area, "path": mutant.path, "line": mutant.line, "kind": mutant.kind}
    source = _hash([_workshop.folder / mutant.path])
    return {**said, "diff": mutant.diff, "outcome": outcome, "test": test, "source": source, "tests": _tests_then}


def _one_by_one(steps: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return every file once, with the options of its step: what an early one finds no later one need be run for."""
    out: dict[tuple[str, ...], None] = {}
    for step in steps:
        count = step.index("-k") if "-k" in step else len(step)
        out |= dict.fromkeys((file, *step[count:]) for file in step[:count])
    return list(out)


def _run(root: Path, mutants: list[Mutant], jobs: int, take: Callable[[Result], None]) -> None:
    if not mutants:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(mutants)), context, _begin, (root, PRELOADED)) as pool:
        try:
            futures: list[Future[Result]] = [pool.submit(_try, m, areas.tests_of(m.path)) for m in mutants]
            for future in as_completed(futures):
                take(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _tests(root: Path) -> str:
    """Return a hash of what tests the mutants."""
    patterns = ("tests/**/*.py", "tests/**/*.h", "scripts/mutating/*.py")
    return _hash(file for pattern in patterns for file in sorted(root.glob(pattern)))


def _read(state: Path | None, root: Path) -> dict[str, Result]:
    """Return the results that still hold: of sources as they are, and of these tests unless a test failed."""
    if state is None or not state.exists():
        return {}
    tests = _tests(root)
    lines = [json.loads(line) for line in state.read_text("utf-8").splitlines() if line.endswith("}")]
    now = {path: _hash([root / path]) for path in {r["path"] for r in lines} if (root / path).exists()}
    kept = [r for r in lines if r["source"] == now.get(r["path"]) and (r["outcome"] != SURVIVED or r["tests"] == tests)]
    return {r["name"]: r for r in kept}


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="mutate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ",".join(areas.AREAS)
    parser.add_argument("--sample", type=int, help="mutants of each area; all if it is not given")
    parser.add_argument("--seed", type=int, default=0, help="integer that draws the sample")
    parser.add_argument("--only", default=names, help=f"areas, of {names}")
    parser.add_argument("--file", action="append", help="only this source, from the root; may be given again")
    parser.add_argument("--jobs", type=int, default=1, help="processes, with a copy of the sources each")
    parser.add_argument("--state", type=Path, help="file of what is done: the same command goes on with it")
    parser.add_argument("--least", type=float, default=0, help="percent that the score must reach")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.only = arguments.only.split(",")
    if wrong := set(arguments.only) - set(areas.AREAS):
        parser.error(f"no area {', '.join(sorted(wrong))}; there are {names}")
    return arguments


if __name__ == "__main__":
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    sys.exit(main())
