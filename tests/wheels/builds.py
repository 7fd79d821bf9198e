"""Binaries of the kernels as CuPy and its compiler make them, kept by a hash of all that makes them."""

import base64
import hashlib
import json
from typing import NamedTuple

from kernels import resources

import wheels
from cusink.backends.cupy import loader

# NVRTC 13 takes minutes for all: float32 where speed is counted, and for each file one of the others, in turn. NVRTC
# 12.9 builds them all.
OTHERS = (*((dtype, capability) for capability in (120, 75, 100) for dtype in ("float64", "float32")), ("float64", 90))
FILES = loader.kernel_files()
CUDA13 = tuple((file, *job) for k, file in enumerate(FILES) for job in (("float32", 90), OTHERS[k % len(OTHERS)]))
CUDA12 = (("c_transform.cu", "float32", 75), ("scaling.cu", "float64", 80), ("plan.cu", "float32", 120))


class Build(NamedTuple):
    """A kernel file as a real CuPy compiles it."""

    error: str
    log: str
    binary: bytes


def builds(name, jobs):
    """Return {(file, dtype, capability): Build} by the CuPy and the compiler of a folder of wheels."""
    compiler = wheels.compiler(name)
    questions, kept = {}, {}
    for file, dtype, capability in jobs:
        question = [loader.source(file), list(loader.options(dtype)), capability]
        key = hashlib.sha256(json.dumps([question, compiler.stat().st_size, name]).encode()).hexdigest()
        kept[file, dtype, capability] = resources.CACHE / f"{key}.build.json"
        if not kept[file, dtype, capability].exists():
            questions[file, dtype, capability] = question
    if questions:
        answers = wheels.ask(name, "compile.py", json.dumps(list(questions.values())))["compiled"]
        resources.CACHE.mkdir(parents=True, exist_ok=True)
        for job, answer in zip(questions, answers, strict=True):
            kept[job].write_text(json.dumps(answer))
    found = {job: json.loads(path.read_text()) for job, path in kept.items()}
    return {job: Build(error, log, base64.b64decode(binary)) for job, (error, log, binary) in found.items()}
