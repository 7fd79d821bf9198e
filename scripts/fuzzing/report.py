"""What a run found: a line for each subject, and a script for each kind of failure."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from fuzzing.case import OUTCOMES, Case, Finding
from fuzzing.shrink import text


def table(counts: dict[str, Counter[str]], seconds: dict[str, float]) -> str:
    """Return one line for each subject."""
    head = f"{'':12}" + "".join(f"{name:>9}" for name in ("cases", *OUTCOMES, "s"))
    lines = [head]
    for name, count in counts.items():
        numbers = [sum(count.values()), *(count[outcome] for outcome in OUTCOMES)]
        lines.append(f"{name:12}" + "".join(f"{number:9}" for number in numbers) + f"{seconds.get(name, 0):9.0f}")
    return "\n".join(lines)


def script(case: Case, findings: Iterable[Finding], show: str) -> str:
    """Return a Python program that makes the call of a case and prints what it says and what holds."""
    lines = [f"# {case.subject}, seed {case.seed}"]
    lines += [f"# {f.claim}: claimed {_short(f.claimed)}; holds {_short(f.holds)}" for f in list(findings)[:3]]
    lines += ["import numpy as np", "import cusink", "from numpy import array, inf, nan", ""]
    if case.dtype == "bfloat16":
        lines += ["import ml_dtypes", ""]
    kind = "ml_dtypes.bfloat16" if case.dtype == "bfloat16" else f'"{case.dtype}"'
    for name, x in case.arrays.items():
        lines.append(f"{name} = array({literal(x, case.dtype)}, {kind})")
    options = dict(case.options)
    eps = options.pop("eps", None)
    lines += [] if eps is None else [f"eps = {eps!r}"]
    init = ', "init": (f0, g0)' if "f0" in case.arrays else ""
    lines.append(f"options = {{{', '.join(f'{k!r}: {v!r}' for k, v in options.items())}{init}}}".replace("{, ", "{"))
    lines += [f"{name} = {value!r}" for name, value in case.extra.items() if name.isidentifier()]
    lines.append(f"batch = {int(any(axes[:1] == 'B' for axes in case.axes.values()))}")
    return "\n".join([*lines, "", show])


def literal(x: np.ndarray, dtype: str) -> str:
    """Return nested lists of the shortest numbers that are `x` in its dtype."""
    if x.ndim == 0:
        return text(float(x), dtype)
    if x.size == 0:
        return f"np.empty({x.shape})"
    return f"[{', '.join(literal(row, dtype) for row in x)}]"


def as_json(counts: dict[str, Counter[str]], seconds: dict[str, float], failures: list[dict[str, Any]]) -> str:
    """Return the whole report in JSON."""
    subjects = {name: {"seconds": round(seconds.get(name, 0), 1), **count} for name, count in counts.items()}
    return json.dumps({"subjects": subjects, "failures": failures}, indent=1)


def _short(words: str, most: int = 160) -> str:
    words = " ".join(words.split())
    return words if len(words) <= most else words[: most - 3] + "..."
