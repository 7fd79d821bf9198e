"""Every block of code on every page runs as printed: in one namespace a page, top to bottom, in an empty folder.

Python blocks are executed, sessions are doctests, commands of the package are run. Commands that set up environments or
run for long are not: of these the script must exist, and know the options.
"""

import doctest
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from blocks import ROOT, RUN, blocks, pages  # noqa: E402

if not (ROOT / "docs").exists():
    pytest.skip("the pages are not beside the tests", allow_module_level=True)

NEEDS = {"torch": "torch", "jax": "jax", "dask": "distributed", "sklearn": "sklearn", "zarr": "zarr"}


def runnable(page):
    """Return a page's blocks that have something to run."""
    return blocks(page.read_text())


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in pages() if runnable(page)]
)
def test_the_blocks_run_as_printed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in runnable(page):
        if block.language == "bash":
            commands(block.code, tmp_path)
        elif "import cupy" in block.code and not has_gpu():
            compile(block.code, str(page), "exec")  # what can be told without a GPU: that it is Python
        elif block.language == "pycon":
            session(block, page, names)
        else:
            for library in NEEDS:
                if re.search(rf"^(from|import) {library}\b", block.code, re.MULTILINE):
                    pytest.importorskip(NEEDS[library])
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")  # a traceback names the page's line
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", category=ResourceWarning)
                warnings.filterwarnings("ignore", module=r"dask|distributed|zarr|jax|torch")
                exec(code, names)


def has_gpu():
    try:
        import cupy

        return cupy.cuda.runtime.getDeviceCount() > 0
    except Exception:
        return False


def session(block, page, names):
    """Run an interactive session and compare what it prints."""
    test = doctest.DocTestParser().get_doctest(block.code, names, page.name, str(page), block.line)
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=said.append, clear_globs=False)
    names.update(test.globs)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


def commands(code, folder):
    """Run commands of the package; of the repository's own scripts, look at their options."""
    code = code.replace("\\\n", " ")
    for line in filter(None, (line.split("  #")[0].strip() for line in code.splitlines())):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        program = words[0]
        if program == "cusink":
            done = call([sys.executable, "-m", *words], folder)
            assert done.returncode == 0, done.stdout + done.stderr
        elif program.endswith("/python") or program in ("python", "python3"):
            options_exist(words[1:])
        elif program.startswith("./scripts/"):
            script = ROOT / program
            assert os.access(script, os.X_OK), f"{program} is no command"
            done = call(["bash", "-n", str(script)], folder)
            assert done.returncode == 0, done.stderr
        elif program not in ("git", "cd", "pip"):
            pytest.fail(f"no way to check this command: {line}")


def options_exist(words):
    """Assert that a Python script of the repository exists and knows the options that it is given."""
    if words[0] == "-m":
        return
    script = ROOT / words[0]
    assert script.exists(), f"{words[0]} does not exist"
    source = script.read_text()
    for word in words[1:]:
        if word in (">", "|", "2>&1"):
            break
        if word.startswith("--") and word != "--help":
            assert f'"{word.split("=")[0]}"' in source, f"{words[0]} has no option {word}"


def call(command, folder):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)


def test_every_fence_names_a_language_and_ends():
    for page in pages():
        text = page.read_text()
        fences = re.findall(r"^ *```(.*)$", text, re.MULTILINE)
        assert len(fences) % 2 == 0, f"{page.name}: a fence does not end"
        for opened in fences[::2]:
            known = opened in (*RUN, "text", "", "{toctree}", "{eval-rst}")
            assert known, f"{page.name}: a block of {opened!r} is not run"


def test_a_broken_block_is_found(tmp_path, monkeypatch):
    """The runner can fail."""
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        test_the_blocks_run_as_printed(page, tmp_path, monkeypatch)
    page.write_text("```pycon\n>>> 1 + 1\n3\n\n```\n")
    with pytest.raises(AssertionError):
        test_the_blocks_run_as_printed(page, tmp_path, monkeypatch)
    page.write_text("```bash\ncusink nearest none.npy\n```\n")
    with pytest.raises(AssertionError):
        test_the_blocks_run_as_printed(page, tmp_path, monkeypatch)
