"""Matrices on disk: written, interrupted, damaged; the same call then gives the right bytes or a clear error."""

import inspect
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

import cusink
from fuzzing import draw as drawing
from fuzzing.case import REFUSED, RIGHT, UNCLEAR, WRONG, Case, Finding, Seen, Warned, observe

PARAMETERS = (*inspect.signature(cusink.distance_matrix).parameters,)
DAMAGE = {
    ".npy": (
        "nothing",
        "stopped",
        "torn",
        "fortran",
        "short",
        "other dtype",
        "other shape",
        "zeros",
        "flipped",
        "no values",
        "empty record",
        "wrong record",
        "list record",
        "foreign record",
        "foreign line",
        "link",
    ),
    ".zarr": (
        "nothing",
        "stopped",
        "torn",
        "no chunk",
        "other shape",
        "other dtype",
        "flipped",
        "list record",
        "foreign record",
        "foreign line",
    ),
}
FRESH = ("foreign record", "foreign line", "link")  # before anything was written
SHOW = """\
import sys, tempfile
from pathlib import Path
sys.path.insert(0, "scripts")
from fuzzing.subjects.stores import hurt
out = Path(tempfile.mkdtemp()) / f"matrix{ending}"
call = lambda out: cusink.distance_matrix(A, globals().get("B"), C, eps=eps, out=out, **options)
wanted = call(None)
if damage not in ("foreign record", "foreign line", "link"):
    call(out)
hurt(out, damage)
print(np.asarray(call(out)[:]) - wanted)
"""


def draw(rng: Generator, seed: int) -> Case:
    """Draw a job of several tiles, and what happens to its files."""
    dtype = drawing.dtype(rng, half=False)
    n, Q, D = int(rng.integers(1, 6)), int(rng.integers(1, 6)), int(rng.integers(2, 30))
    arrays = {"A": drawing.weights(rng, Q, n, dtype), "C": rng.random((n, n))}
    axes = {"A": "Qn", "C": "nn"}
    if rng.random() < 0.7:
        arrays["B"], axes["B"] = drawing.weights(rng, D, n, dtype), "Dn"
    else:
        arrays["C"] = arrays["C"] + arrays["C"].T
    options = {"eps": 0.2, "max_iter": 300, "memory_limit": int(rng.choice([1, 3000, 20_000]))}
    ending = str(rng.choice([*DAMAGE]))
    extra = {"ending": ending, "damage": str(rng.choice(DAMAGE[ending]))}
    return Case("stores", seed, arrays, axes, dtype, options, extra, tuple(k for k in "AB" if k in arrays))


def hurt(path: Path, damage: str) -> None:
    """Damage what lies at `path`, or go back to before it was finished."""
    part, record = path.with_name(path.name + ".part"), path.with_name(path.name + ".tiles")
    if damage in ("stopped", "torn", "fortran", "short", "no values", "empty record", "wrong record", "list record"):
        path.rename(part)
        lines = record.read_bytes().splitlines(keepends=True)
        kept = lines[: 1 + (len(lines) - 1) // 2]
        record.write_bytes(b"".join(kept) + (b'{"at": [0' if damage == "torn" else b""))
        path = part
    if damage == "fortran":
        np.save(part.with_suffix(".npy"), np.asfortranarray(np.load(part)))
        part.with_suffix(".npy").replace(part)
    elif damage in ("short", "no values"):
        os.truncate(part, part.stat().st_size - 8 if damage == "short" else 0)
    elif damage == "empty record":
        record.write_bytes(b"")
    elif damage == "wrong record":
        record.write_bytes(record.read_bytes() + b"not JSON\n{}\n")
    elif damage == "list record":
        record.write_bytes(b"[]\n")
    elif damage == "foreign record":
        record.write_text("notes of somebody\nnot of this program\n")
    elif damage == "foreign line":
        record.write_text("a line of somebody")
    elif damage == "link":
        path.symlink_to(path.with_name("elsewhere.npy"))
    elif path.suffix == ".npy":
        _hurt_file(path, damage)
    else:
        _hurt_store(path, damage)


def _hurt_file(path: Path, damage: str) -> None:
    matrix = np.load(path)
    if damage == "other dtype":
        np.save(path, matrix.astype(np.float32 if matrix.dtype == np.float64 else np.float64))
    elif damage == "other shape":
        np.save(path, np.zeros((matrix.shape[0] + 1, matrix.shape[1]), matrix.dtype))
    elif damage == "zeros":
        np.save(path, np.zeros_like(matrix))
    elif damage == "flipped":
        _flip(path)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x41
    path.write_bytes(content)


def _hurt_store(path: Path, damage: str) -> None:
    chunks = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "zarr.json")
    if damage == "no chunk":
        chunks[-1].unlink()
    elif damage == "flipped":
        _flip(chunks[-1])
    elif damage in ("other shape", "other dtype"):
        import zarr

        array = zarr.open_array(path, mode="r")
        shape, dtype = array.shape, array.dtype
        shutil.rmtree(path)
        if damage == "other shape":
            shape = (shape[0] + 1, shape[1])
        else:
            dtype = np.dtype(np.float32 if dtype == np.float64 else np.float64)
        zarr.create_array(path, shape=shape, dtype=dtype, chunks=shape, zarr_format=3)[:] = 0


def check(case: Case) -> Seen:
    """Write, damage, and call again."""
    ending, damage = case.extra.get("ending", ".npy"), case.extra.get("damage", "nothing")
    arrays = case.given()
    args = (arrays["A"], arrays.get("B"), arrays["C"])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"matrix{ending}"
        wanted = observe(lambda: cusink.distance_matrix(*args, **case.options), arrays, PARAMETERS)
        if wanted.value is None or wanted.value.value is None:
            return wanted
        if damage not in FRESH:
            first = observe(
                lambda: np.asarray(cusink.distance_matrix(*args, out=out, **case.options)[:]), arrays, PARAMETERS
            )
            if first.findings or not _same(first.value, wanted.value):
                return first.having(
                    [Finding(WRONG, "a store has the bytes of an array", "the same", str(first.findings))]
                )
        hurt(out, damage)
        before = _files(Path(folder))
        # What is wrong with a file is said of the file.
        again = observe(
            lambda: np.asarray(cusink.distance_matrix(*args, out=out, **case.options)[:]),
            arrays,
            (*PARAMETERS, str(out).partition(".")[0]),
        )
        after = _files(Path(folder))
    if again.outcome == REFUSED or (
        again.outcome == UNCLEAR
        and again.findings[0].holds.split(":")[0] in ("OSError", "FileExistsError", "FileNotFoundError")
    ):
        return Seen(REFUSED, [])
    if again.findings:
        return again.having([])._replace(
            findings=[f._replace(claim=f"{ending} with {damage}: {f.claim}") for f in again.findings]
        )
    found = []
    if not _same(again.value, wanted.value):
        found.append(Finding(WRONG, f"{ending} with {damage}: right bytes or refused", "returned", "other bytes"))
    if damage in FRESH and any(after.get(k) != v for k, v in before.items()):
        found.append(Finding(WRONG, f"{damage}: what is not ours is left alone", "left", json.dumps(sorted(before))))
    return Seen(RIGHT, []).having(found)


def _same(one: Warned | None, other: Warned) -> bool:
    return one is not None and one.value.dtype == other.value.dtype and one.value.tobytes() == other.value.tobytes()


def _files(folder: Path) -> dict[str, Any]:
    return {p.name: os.readlink(p) if p.is_symlink() else p.read_bytes() for p in folder.iterdir() if not p.is_dir()}
