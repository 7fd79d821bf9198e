"""A call as plain data, what came of it, and the rules that hold for every call of the library."""

import re
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np

RIGHT, FLAGGED, REFUSED, SKIPPED = "right", "flagged", "refused", "skipped"
WRONG, NAN, UNCLEAR = "WRONG", "NaN", "unclear"
OUTCOMES = (RIGHT, FLAGGED, REFUSED, SKIPPED, WRONG, NAN, UNCLEAR)
FAILURES = (WRONG, NAN, UNCLEAR)

# An error that comes out of one of these was found only after work had begun.
WORK = re.compile(r"/cusink/(backends/|.*(loop|iteration|system)\.py$)")


def float_type(name: str) -> Any:
    """Return a dtype by its name, bfloat16 too."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


@dataclass(frozen=True)
class Case:
    """A call as plain data: arrays in float64 with a letter for each axis, options, and what else the subject needs.

    Axes of one letter are cut together when the case is shrunk. `equal` names the arrays whose sums along the last axis
    (of a grid: along all but the batch) must be one mass.
    """

    subject: str
    seed: int
    arrays: dict[str, np.ndarray]
    axes: dict[str, str]
    dtype: str = "float64"
    options: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    equal: tuple[str, ...] = ()

    def given(self) -> dict[str, np.ndarray]:
        """Return new arrays as the library gets them."""
        return {name: x.astype(float_type(self.dtype)) for name, x in self.arrays.items()}

    def exact(self) -> dict[str, np.ndarray]:
        """Return the same numbers in float64."""
        return {name: x.astype(np.float64) for name, x in self.given().items()}

    @property
    def eps(self) -> Any:
        """The regularisation, a number or one for each problem in the digits that the library gets."""
        return self.exact()["eps"] if "eps" in self.arrays else self.options["eps"]

    def but(self, **changes: Any) -> Self:
        """Return the case with other fields."""
        return replace(self, **changes)


class Finding(NamedTuple):
    """A claim that does not hold."""

    verdict: str
    claim: str
    claimed: str
    holds: str


class Seen(NamedTuple):
    """What came of a case: an outcome, and the claims that do not hold."""

    outcome: str
    findings: list[Finding]
    value: Any = None

    def having(self, findings: Iterable[Finding], flagged: bool = False) -> "Seen":
        """Return this with further findings; `flagged` if the result itself says that it is not as asked for."""
        found = [*self.findings, *findings]
        if found:
            verdicts = [finding.verdict for finding in found]
            return Seen(next(v for v in (NAN, WRONG, UNCLEAR) if v in verdicts), found, self.value)
        return Seen(FLAGGED if flagged else self.outcome, found, self.value)


class Warned(NamedTuple):
    """A value, and whether it came with a ConvergenceWarning or another warning that the documentation announces."""

    value: Any
    unconverged: bool
    announced: bool


def observe(
    call: Callable[[], Any],
    inputs: dict[str, Any],
    names: Iterable[str],
    announced: str = r"exceeds the range of b?float16",
) -> Seen:
    """Call, and judge what holds for every call: errors are clear and early, warnings expected, inputs as before.

    `names` are the parameters that a message may name; `announced` is a pattern of the warnings that are documented.
    """
    before = {name: (x, x.copy()) for name, x in inputs.items() if isinstance(x, np.ndarray)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value, error = call(), None
        except Exception as raised:  # whatever it is, it is an outcome
            value, error = None, raised
    found = [
        Finding(WRONG, "inputs unchanged", f"'{name}' as it was", "other bytes")
        for name, (x, copy) in before.items()
        if x.tobytes() != copy.tobytes()
    ]
    if error is not None:
        return Seen(REFUSED, []).having([*found, *_unclear(error, set(names))])
    unconverged = known = False
    for warning in {(w.category.__name__, str(w.message)): w for w in caught}.values():
        message = str(warning.message)
        if warning.category.__name__ == "ConvergenceWarning":
            unconverged = True
        elif re.search(announced, message):
            known = True
        else:
            found.append(Finding(UNCLEAR, "no other warning", "none", f"{warning.category.__name__}: {message}"))
    return Seen(RIGHT, [], Warned(value, unconverged, known)).having(found)


def _unclear(error: Exception, names: set[str]) -> list[Finding]:
    """Say what is wrong with an error, if anything."""
    text = f"{type(error).__name__}: {error}"
    if not isinstance(error, (TypeError, ValueError)):
        return [Finding(UNCLEAR, f"TypeError or ValueError, not {type(error).__name__}", "a clear error", text)]
    files = [frame.filename.replace("\\", "/") for frame in traceback.extract_tb(error.__traceback__)]
    if any(WORK.search(file) for file in files):
        return [Finding(UNCLEAR, "refused before any work", "checked first", f"{text} (from {files[-1]})")]
    named = {re.split(r"[.\[(]", word)[0] for word in re.findall(r"'([^']*)'", str(error))}
    if not named & names:
        return [Finding(UNCLEAR, "the message names a parameter", "a parameter in quotes", text)]
    return []
