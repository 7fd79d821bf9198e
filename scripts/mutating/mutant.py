"""A mutant: one small change of one source file, and what is shown of it."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """The text of `path` from `start` to `end` becomes `new`; further edits are (start, end, new) in order."""

    area: str
    path: str  # from the root of the repository
    line: int
    kind: str  # what was done, in a word
    diff: str  # the lines that differ, with - and + before them
    edits: tuple[tuple[int, int, str], ...]

    @property
    def name(self) -> str:
        """What tells the mutant from all others of these sources."""
        places = ";".join(f"{start}-{end}" for start, end, _ in self.edits)
        return f"{self.path}:{self.line}:{self.kind}:{places}"

    def of(self, text: str) -> str:
        """Return the mutated source."""
        return edited(text, self.edits)

    def draw(self, seed: int) -> bytes:
        """Return a key to the order in which `seed` draws; a sample is the beginning of a larger one."""
        return hashlib.sha256(f"{seed}:{self.name}".encode()).digest()


def edited(text: str, edits: tuple[tuple[int, int, str], ...]) -> str:
    """Return a text with some of its stretches replaced."""
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def made(area: str, path: str, text: str, kind: str, *edits: tuple[int, int, str]) -> Mutant:
    """Return a mutant of the source `text`."""
    first, last = min(start for start, _, _ in edits), max(end for _, end, _ in edits)
    first, last = text.rfind("\n", 0, first) + 1, text.find("\n", last) % (len(text) + 1)
    moved = tuple((start - first, end - first, new) for start, end, new in edits)
    before, after = text[first:last].splitlines(), edited(text[first:last], moved).splitlines()
    if len(before) == len(after):  # a statement that was left out may have had several lines
        before, after = ([x[k] for x in zip(before, after, strict=True) if x[0] != x[1]] for k in (0, 1))
    diff = "\n".join(f"{sign} {x.strip()}" for sign, lines in (("-", before), ("+", after)) for x in lines)
    line = text.count("\n", 0, min(start for start, _, _ in edits)) + 1
    return Mutant(area, path, line, kind, diff, edits)
