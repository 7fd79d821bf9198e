"""Imports point down, both array backends have one contract, public things are documented."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import cusink
from cusink import _ops

PACKAGE = Path(cusink.__file__).parent
MODULES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.glob("*.py"))}

# From the ground up. A module may import from lower floors and from its own kind (its part of a split), never upwards.
FLOORS = {
    "kernels": 0,
    "_kernels": 1,
    "_ops_*": 2,
    "_point_costs": 1,
    "_grid_costs": 1,
    "_overrelaxation": 1,
    "_grid_reductions": 1,
    "_grid_means": 2,
    "_grid_kernel": 2,
    "_grid_iteration": 2,
    "_ops": 3,
    "_arrays": 3,
    "_checks_geometry": 4,
    "geometry": 5,
    "_checks": 6,
    "public": 7,
    "__init__": 8,
    "bridge": 9,
}


# One small module for each library that is not a dependency, which nothing else may import.
BRIDGES = {"torch", "jax", "distributed", "plot"}


def floor(module):
    if module in BRIDGES:
        return FLOORS["bridge"]
    if module in FLOORS:
        return FLOORS[module]
    if module.endswith(("_numpy", "_cupy")):
        return FLOORS["_ops_*"]
    return FLOORS["public"]


def inside_functions(tree):
    """Ids of the nodes that do not run when the module is imported."""
    return {id(node) for outer in ast.walk(tree) if isinstance(outer, ast.FunctionDef) for node in ast.walk(outer)}


def imports(tree):
    """(module of cusink, whether at import time) for every import of a part of the package."""
    inside = inside_functions(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"relative import of {node.module}", True
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cusink":
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            yield from ((name, id(node) not in inside) for name in names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "cusink":
                    yield (alias.name.split(".") + ["__init__"])[1], id(node) not in inside


def toplevel_imports(tree):
    """Names of all modules that are imported when the module itself is."""
    inside = inside_functions(tree)
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    for imported, _ in imports(MODULES[name]):
        assert imported in MODULES or imported == "kernels", f"{name} imports {imported}"
        here, there = floor(name), floor(imported)
        assert there < here or (there == here and name != imported and here in (FLOORS["_ops_*"], FLOORS["public"])), (
            f"{name} imports {imported} above it"
        )


def test_no_circle_of_imports():
    graph = {name: {imported for imported, now in imports(tree) if now} for name, tree in MODULES.items()}

    def walk(name, path):
        assert name not in path, " -> ".join([*path, name])
        for imported in graph.get(name, ()):
            walk(imported, [*path, name])

    for name in graph:
        walk(name, [])


@pytest.mark.parametrize("name", MODULES)
def test_devices_are_known_to_the_backends_only(name):
    """No cupy in public code, and none at import time outside the CuPy backend: an array proves that CuPy is loaded."""
    if name.endswith("_cupy") or name in {"_kernels", *BRIDGES}:
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
    assert set(users) <= {"_kernels"}


def test_importing_the_package_loads_no_gpu_library_and_nothing_optional():
    code = (
        "import sys, cusink; "
        "print([name for name in sys.modules if name.split('.')[0] in "
        "{'cupy', 'cupyx', 'torch', 'jax', 'tqdm', 'matplotlib', 'sklearn', 'dask', 'ot', 'pandas'}])"
    )
    answer = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]" and answer.stderr == ""


def test_the_package_works_where_cupy_cannot_be_imported():
    code = (
        "import sys; sys.modules['cupy'] = None; import cusink; "
        "print(cusink.sinkhorn([1.0], [1.0], [[2.0]], eps=1.0).cost); "
        "print(cusink.distance_matrix([[1.0]], None, [[2.0]], eps=1.0))"
    )
    answer = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["2.0", "[[2.]]"]


# Both backends offer the same operators


def signature(function):
    """Names, kinds and defaults of the arguments, as written."""
    arguments = function.args
    return ast.unparse(arguments)


def definitions(module):
    """Functions and classes that a module defines or takes from another module of the package, by name."""
    found = {}
    for node in MODULES[module].body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cusink."):
            source = definitions(node.module.split(".")[1])
            found |= {alias.asname or alias.name: source[alias.name] for alias in node.names if alias.name in source}
    return found


def public_methods(node):
    return {
        child.name: signature(child)
        for child in node.body
        if isinstance(child, ast.FunctionDef) and (child.name == "__init__" or not child.name.startswith("_"))
    }


BACKENDS = [name for name in MODULES if name.startswith("_ops_")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operator", _ops.OPERATORS)
def test_each_backend_has_each_operator(operator, backend):
    assert operator in definitions(backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operator", _ops.OPERATORS)
def test_all_backends_have_equal_signatures(operator, backend):
    """Read, not imported: the CuPy half needs no CuPy."""
    ours, theirs = (definitions(name)[operator] for name in ("_ops_numpy", backend))
    assert type(ours) is type(theirs)
    if isinstance(ours, ast.ClassDef):
        contract = {name for name in public_methods(ours) if f"``{name}(" in _ops.__doc__} | {"__init__"}
        assert {"__init__", "advance", "finish", "keep"} <= contract
        inherited = {} if not theirs.bases else public_methods(ours)
        for name in contract:
            assert public_methods(ours)[name] == (inherited | public_methods(theirs))[name], name
    else:
        assert signature(ours) == signature(theirs)


@pytest.mark.parametrize("operator", _ops.OPERATORS)
def test_the_contract_states_each_signature(operator):
    """The list in _ops.py is what the NumPy backend really takes."""
    node = definitions("_ops_numpy")[operator]
    if isinstance(node, ast.ClassDef):
        node = next(child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == "__init__")
    names = [argument.arg for argument in node.args.args if argument.arg != "self"]
    assert f"{operator}({', '.join(names)})" in _ops.__doc__


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


@pytest.mark.parametrize("name", [name for name in PUBLIC if inspect.isclass(getattr(cusink, name))])
def test_classes_are_documented(name):
    assert inspect.getdoc(getattr(cusink, name))


@pytest.mark.parametrize("name", ["sinkhorn", "cost_matrix", "distance_matrix"])
def test_main_functions_show_an_example(name):
    assert ">>>" in getattr(cusink, name).__doc__


@pytest.mark.parametrize("name", MODULES)
def test_modules_say_what_they_are(name):
    assert ast.get_docstring(MODULES[name])


def test_files_are_short_and_named_for_what_they_hold():
    for path in PACKAGE.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 420, path.name
    vague = {"utils", "helpers", "common", "base", "manager", "misc"}
    assert not vague & {part for name in MODULES for part in name.strip("_").split("_")}


def test_every_module_can_be_imported_alone():
    for module in pkgutil.iter_modules(cusink.__path__):
        if not module.name.endswith("_cupy") and not module.ispkg and module.name not in BRIDGES:
            importlib.import_module(f"cusink.{module.name}")
