"""Rooms import only rooms before them, kinds of cost stay in theirs, files are short, pages name files that exist."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cusink
from cusink.backends.cupy import loader
from cusink.costs.operators import Operators

ROOT = Path(__file__).parents[1]
PACKAGE = Path(cusink.__file__).parent
SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = {name: ast.parse(text) for name, text in SOURCES.items()}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# A room may import only from those before it, and from itself.
ORDER = """
    types version connection placement errors checks calls deferred summary workers convergence costs backends operand
    solver norms exact gradients retrieval barycenters plot divergence flows distributed cli bridges torch jax sklearn
    public __init__ __main__
""".split()
# One room for each library that is not a dependency; nothing else may import it.
OPTIONAL = {"torch", "jax", "sklearn", "distributed", "plot"}
# They know operands and never ask in which library or for which kind of cost they work.
ABOVE_OPERANDS = {"solver", "gradients", "divergence", "barycenters"}
LONGEST_CHAIN = 14  # files that import each other in a row
LONGEST_FILE = 350
KINDS = {
    "PointCloud",
    "Grid",
    "PointCosts",
    "BlockCosts",
    "GridCosts",
    "EuclideanCosts",
    "Cost",
    "DenseCost",
    "PointCost",
    "GridCost",
    "EuclideanCost",
}
DOORS = [
    f"backends.{library}.{kind}"
    for library in ("numpy", "cupy")
    for kind in ("dense", "points", "blocks", "grid", "cells")
]


def room(module):
    return module.split(".")[0]


def inside_functions(tree):
    """Return ids of the nodes that do not run when the module is imported."""
    return {id(node) for outer in ast.walk(tree) if isinstance(outer, ast.FunctionDef) for node in ast.walk(outer)}


def imports(tree):
    """Yield every module of the package that a module imports, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            if (node.module or "").split(".")[0] == "cusink":
                base = node.module.removeprefix("cusink").lstrip(".")
                for alias in node.names:
                    path = f"{base}.{alias.name}".lstrip(".")
                    found = path if path in MODULES or f"{path}.__init__" in MODULES else base
                    yield found if found in MODULES else f"{found}.__init__".lstrip(".")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "cusink":
                    yield alias.name.removeprefix("cusink").lstrip(".") or "__init__"


def toplevel_imports(tree):
    """Yield the names of all modules that are imported when the module itself is."""
    inside = inside_functions(tree)
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def asked_kinds(tree):
    """Yield the line and the kind wherever a module asks whether something is of a kind of cost."""
    for node in ast.walk(tree):
        asked = []
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"isinstance", "issubclass"}:
            asked = node.args[1:]
        elif isinstance(node, ast.MatchClass):
            asked = [node.cls]
        elif isinstance(node, ast.Compare) and ast.unparse(node.left).startswith("type("):
            asked = node.comparators
        for name in KINDS & {word for part in asked for word in re.findall(r"\w+", ast.unparse(part))}:
            yield f"line {node.lineno}: {name}"


@pytest.mark.parametrize("name", MODULES)
def test_a_room_imports_only_rooms_before_it(name):
    for imported in imports(MODULES[name]):
        assert ORDER.index(room(imported)) <= ORDER.index(room(name)), f"{name} imports {imported}"
        assert room(imported) not in OPTIONAL - {room(name)}, f"{name} imports {imported}"
        assert not (room(name) in ABOVE_OPERANDS and room(imported) == "backends"), f"{name} imports {imported}"
        for one, other in (("numpy", "cupy"), ("cupy", "numpy")):
            crosses = name.startswith(f"backends.{one}") and imported.startswith(f"backends.{other}")
            assert not crosses, f"{name} imports {imported}"


def test_no_circle_and_no_long_chain_of_imports():
    """Imports inside functions count too, and none goes by a name that only exists at run time."""
    graph = {name: sorted(set(imports(tree))) for name, tree in MODULES.items()}
    chains = {}

    def chain(name, path=()):
        assert name not in path, " -> ".join([*path, name])
        if name not in chains:
            below = [chain(imported, (*path, name)) for imported in graph[name]]
            chains[name] = [name, *max(below, key=len, default=[])]
        return chains[name]

    longest = max(map(chain, graph), key=len)
    assert len(longest) <= LONGEST_CHAIN, f"{len(longest)} files: {' -> '.join(longest)}"
    assert not [name for name, text in SOURCES.items() if "import_module" in text or "__import__" in text]


def test_only_the_costs_ask_for_the_kind_of_a_cost():
    asked = [f"{name}, {ask}" for name, tree in MODULES.items() if room(name) != "costs" for ask in asked_kinds(tree)]
    assert not asked, "\n".join(asked)


@pytest.mark.parametrize("door", DOORS)
def test_each_kind_of_cost_has_its_operators_in_each_library(door):
    """CuPy's doors are read, not imported; mypy compares all signatures with the contract."""
    made = [node for node in MODULES[door].body if isinstance(node, ast.AnnAssign)]
    (annotation,) = [ast.unparse(node.annotation) for node in made if ast.unparse(node.target) == "OPERATORS"]
    assert annotation.startswith("Operators[")
    if ".numpy." in door:
        assert isinstance(importlib.import_module(f"cusink.{door}").OPERATORS, Operators)


@pytest.mark.parametrize("name", MODULES)
def test_devices_are_known_to_the_backends_only(name):
    """No cupy in public code, and none at import time outside the CuPy backend: an array proves that CuPy is loaded."""
    if name.startswith("backends.cupy.") or room(name) in OPTIONAL:
        return
    found = [
        module
        for module in toplevel_imports(MODULES[name])
        if module.split(".")[0] in {"cupy", "cupyx", "torch", "jax"}
    ]
    assert not found


def test_raw_kernels_are_made_in_one_place():
    users = [
        name
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in {"RawModule", "RawKernel", "ElementwiseKernel", "ReductionKernel"}
    ]
    assert set(users) <= {"backends.cupy.loader"}


def test_importing_the_package_loads_no_gpu_library_and_nothing_optional():
    code = (
        "import sys, cusink; cusink.sinkhorn; "
        "print([name for name in sys.modules if name.split('.')[0] in "
        "{'cupy', 'cupyx', 'torch', 'jax', 'tqdm', 'matplotlib', 'sklearn', 'dask', 'ot', 'pandas'}])"
    )
    answer = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]" and answer.stderr == ""


def test_importing_the_package_loads_no_numpy_before_a_name_is_used():
    code = (
        "import sys, cusink; print('numpy' in sys.modules, 'sinkhorn' in dir(cusink)); "
        "from cusink import sinkhorn; print('numpy' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "True", "True"]


def test_importing_the_package_loads_what_every_call_needs_and_no_more():
    """Each of these takes milliseconds, and SciPy a fifth of a second: they are imported where they are used."""
    code = (
        "import sys, numpy; before = set(sys.modules); import cusink; cusink.sinkhorn; "
        "print(sorted({'scipy', 'concurrent', 'logging', 'hashlib', 'json', 'shutil'} & set(sys.modules) - before))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_package_works_where_cupy_cannot_be_imported():
    code = (
        "import sys; sys.modules['cupy'] = None; import cusink; "
        "print(cusink.sinkhorn([1.0], [1.0], [[2.0]], eps=1.0).cost); "
        "print(cusink.distance_matrix([[1.0]], None, [[2.0]], eps=1.0))"
    )
    answer = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["2.0", "[[2.]]"]


# What a stranger reads


PUBLIC = [name for name in dir(cusink) if not name.startswith("_") and not inspect.ismodule(getattr(cusink, name))]


def test_public_names_are_listed():
    assert sorted(cusink.__all__) == sorted(set(PUBLIC) | ({"__version__"} & set(cusink.__all__)))
    expected = {"sinkhorn", "SinkhornResult", "ConvergenceWarning", "cost_matrix", "distance_matrix", "DistanceMatrix"}
    assert expected <= set(PUBLIC)


def documented_functions():
    for name in PUBLIC:
        thing = getattr(cusink, name)
        if inspect.isfunction(thing):
            yield pytest.param(thing, id=name)
        elif inspect.isclass(thing):
            for method, function in inspect.getmembers(thing, inspect.isfunction):
                if not method.startswith("_"):
                    yield pytest.param(function, id=f"{name}.{method}")


@pytest.mark.parametrize("function", list(documented_functions()))
def test_docstrings_are_numpydoc(function):
    doc = inspect.getdoc(function)
    assert doc, "no docstring"
    summary = doc.splitlines()[0]
    assert summary.endswith(".") and len(summary) <= 100
    parameters = [name for name in inspect.signature(function).parameters if name != "self"]
    assert "Returns\n-------" in doc
    if parameters:
        assert "Parameters\n----------" in doc
        section = doc.split("Parameters\n----------")[1].split("\n---")[0]
        for name in parameters:
            assert any(
                name in [part.strip(" *") for part in line.split(":")[0].split(",")]
                for line in section.splitlines()
                if not line.startswith(" ")
            ), f"{name} is not documented"


@pytest.mark.parametrize("name", ["sinkhorn", "cost_matrix", "distance_matrix"])
def test_main_functions_show_an_example(name):
    assert ">>>" in getattr(cusink, name).__doc__


def test_files_are_short_and_named_for_what_they_hold():
    lengths = {name: len(text.splitlines()) for name, text in SOURCES.items()}
    assert not {name: length for name, length in lengths.items() if length > LONGEST_FILE}
    vague = {"utils", "helpers", "common", "base", "manager", "misc"}
    assert not vague & {part for name in MODULES for part in name.split(".")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_files_that_exist(page):
    places = {"cusink": PACKAGE, "kernels": loader.folder(), "tests": ROOT / "tests", "scripts": ROOT / "scripts"}
    named = re.findall(r"`(?:\./)?(cusink|kernels|tests|scripts)/([\w./-]*)`", page.read_text(encoding="utf-8"))
    assert not [f"{folder}/{file}" for folder, file in named if not (places[folder] / file).exists()]


def test_every_module_can_be_imported_alone():
    for name in MODULES:
        if not name.startswith("backends.cupy.") and room(name) not in OPTIONAL and name != "__main__":
            importlib.import_module(f"cusink.{name}".removesuffix(".__init__"))
