"""The blocks of code of a Markdown page, as a reader would run them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
RUN = ("python", "pycon", "bash")


class Block(NamedTuple):
    """A fenced block."""

    line: int  # of its first line of code, from 1
    language: str
    code: str


def pages():
    """Return the pages that are read by users, in order."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text):
    """Return the blocks of a page that are meant to be run."""
    found = []
    for match in FENCE.finditer(text):
        indent, language = match["indent"], match["language"]
        if language in RUN:
            code = "\n".join(line.removeprefix(indent) for line in match["code"].splitlines()) + "\n"
            found.append(Block(text.count("\n", 0, match.start("code")) + 1, language, code))
    return found
