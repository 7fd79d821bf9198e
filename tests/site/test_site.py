"""The documentation site is built without a warning, is complete, and looks right in a real browser.

Without a Chromium the tests of the browser are skipped; ``CUSINK_REQUIRE_BROWSER=1`` makes that a failure.
"""

import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from blocks import ROOT  # noqa: E402
from browser import Browser, find  # noqa: E402

import cusink  # noqa: E402

pytest.importorskip("pydata_sphinx_theme")
pytest.importorskip("sphinx_gallery")
pytest.importorskip("myst_parser")

PHONE, DESKTOP = (390, 844, "light"), (1280, 900, "dark")
WINDOWS = {
    f"{name}, {theme}": (*size, theme)
    for theme in ("light", "dark")
    for name, size in {"phone": PHONE[:2], "desktop": DESKTOP[:2]}.items()
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site from a copy of the pages, since a build leaves files beside them; return its folder."""
    folder = tmp_path_factory.mktemp("site")
    copy = folder / "checkout"
    copy.mkdir()
    for name in ("cusink", "kernels", "scripts", "docs", "tests", "README.md", "CONTRIBUTING.md"):
        (copy / name).symlink_to(ROOT / name) if name != "docs" else _copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "--fail-on-warning", "--keep-going", "-q", "-j", "1"]
    done = subprocess.run(
        [*command, copy / "docs", folder / "html"],
        env=os.environ | {"MPLBACKEND": "Agg", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


def _copy(source, target):
    import shutil

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("auto_gallery", "generated"))


def html(site):
    """Return the pages of the site; what lies in _static is the theme's."""
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)


class Links(HTMLParser):
    """Collects the links and anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors.update(filter(None, (found.get("id"), found.get("name"))))
        for name in ("href", "src"):
            if found.get(name):
                self.links.add(found[name])


def test_every_link_within_the_site_leads_somewhere(site):
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in html(site)}
    assert len(pages) > 60
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                broken.append((str(path.relative_to(site)), link))
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                broken.append((str(path.relative_to(site)), link))
    assert not broken


ROOMS = ("cusink", "cusink.torch", "cusink.jax", "cusink.sklearn", "cusink.distributed", "cusink.plot")


def public():
    """Yield the dotted name of each public thing, and the thing."""
    for room in map(importlib.import_module, ROOMS):
        for name in room.__all__:
            yield f"{room.__name__}.{name}", getattr(room, name)


def members(thing):
    """Return the public methods and properties of a class that are written in this package."""
    written = {
        name: value
        for base in reversed(thing.__mro__)
        if base.__module__.startswith("cusink.")
        for name, value in vars(base).items()
    }
    kinds = (property, functools.cached_property, classmethod, staticmethod)
    return [
        name
        for name, value in written.items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds))
    ]


def test_the_reference_holds_every_public_name(site):
    said = (site / "reference.html").read_text(encoding="utf-8")
    assert not [name for name, _ in public() if f'title="{name}"' not in said]


def test_the_page_of_a_class_holds_its_methods_and_properties(site):
    missing = []
    for name, thing in public():
        if inspect.isclass(thing):
            said = (site / "generated" / f"{name}.html").read_text(encoding="utf-8")
            missing += [f"{name}.{member}" for member in members(thing) if f'id="{name}.{member}"' not in said]
    assert {"search", "add", "save", "load", "eps"} <= set(members(cusink.Index))
    assert not missing


def test_the_index_of_the_search_knows_the_functions(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert "sinkhorn_adjoint" in index and "glossari" in index


def test_the_gallery_has_a_picture_and_a_notebook_for_each_program(site):
    programs = sorted((ROOT / "docs" / "gallery").glob("plot_*.py"))
    assert len(programs) >= 6
    for program in programs:
        assert list((site / "_downloads").rglob(f"{program.stem}.ipynb")), program.stem
        assert list((site / "_images").glob(f"sphx_glr_{program.stem}_*.png")), f"{program.stem} draws nothing"


def test_the_migration_tables_name_all_of_pot_s_calls():
    said = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    modules = [pytest.importorskip(f"ot.{name}") for name in ("bregman", "unbalanced", "batch", "solvers")]
    calls = {
        name
        for module in modules
        for name in module.__all__
        if not name.startswith("_") and inspect.isroutine(getattr(module, name))
    }
    missing = [name for name in sorted(calls) if not re.search(rf"\b{name}\b", said)]
    assert len(calls) > 50 and not missing


def test_a_page_that_speaks_of_gpus_leads_to_what_has_run_on_one():
    paths = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    pages = {path.name: path.read_text(encoding="utf-8") for path in paths}
    silent = [name for name, said in pages.items() if re.search(r"\bGPUs?\b|\bCuPy\b", said) and "gpu.md" not in said]
    assert silent == ["gpu.md"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find()
    if program is None:
        if os.environ.get("CUSINK_REQUIRE_BROWSER", "0") not in ("", "0"):
            pytest.fail("CUSINK_REQUIRE_BROWSER is set, and there is no Chromium: apt install chromium-headless-shell")
        pytest.skip("no Chromium: apt install chromium-headless-shell")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_the_pages_look_right(site, browser, window):
    """No error on the console, no missing picture, nothing from the network, nothing wider than the window."""
    wrong = {}
    for page in html(site):
        found = browser.open(page.as_uri(), *window)
        if found:
            wrong[str(page.relative_to(site))] = found
    assert not wrong


def test_formulas_are_typeset(site, browser):
    assert browser.open((site / "method.html").as_uri(), *PHONE) == []
    typeset = "[...document.querySelectorAll('mjx-container[display]')].filter(e => e.offsetHeight > 10).length"
    assert browser.evaluate(typeset) == (ROOT / "docs" / "method.md").read_text(encoding="utf-8").count("$$") // 2 > 5


def test_the_search_finds_pages(site, browser):
    assert browser.open((site / "search.html").as_uri() + "?q=barycenter", *DESKTOP) == []
    script = """new Promise(done => {
        const look = () => document.querySelectorAll("#search-results li a").length;
        const wait = n => look() || !n ? done(look()) : setTimeout(() => wait(n - 1), 100);
        wait(100);
    })"""
    assert browser.evaluate(script) > 0


def test_the_browser_finds_what_is_wrong(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<p>"
        + 50 * "words "
        + "</p><img src='none.png'><div style='width: 3000px'>wide</div><script>nothing()</script>"
    )
    said = " ".join(browser.open(page.as_uri(), *DESKTOP))
    assert "none.png" in said and "wider" in said and "exception" in said
