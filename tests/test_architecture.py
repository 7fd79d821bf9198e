"""Imports point down, both array backends have one contract, public things are documented."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import cusink
from cusink.backends import operators

PACKAGE = Path(cusink.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}

# From the ground up: a room may import only from those before it, and from itself.
ORDER = [
    "types",
    "version",
    "checks",
    "errors",
    "convergence",
    "costs",
    "backends",
    "operand",
    "solver",
    "norms",
    "gradients",
    "retrieval",
] + [
    "barycenters",
    "plot",
    "divergence",
    "distributed",
    "cli",
    "torch",
    "jax",
    "__init__",
    "__main__",
]
# One room for each library that is not a dependency; nothing else may import it.
BRIDGES = {"torch", "jax", "distributed", "plot"}


def room(module):
    return module.split(".")[0]


def inside_functions(tree):
    """Ids of the nodes that do not run when the module is imported."""
    return {id(node) for outer in ast.walk(tree) if isinstance(outer, ast.FunctionDef) for node in ast.walk(outer)}


def imports(tree):
    """(module of cusink, whether at import time) for every import of a part of the package."""
    inside = inside_functions(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            if (node.module or "").split(".")[0] == "cusink":
                base = node.module.removeprefix("cusink").lstrip(".")
                for alias in node.names:
                    path = f"{base}.{alias.name}".lstrip(".")
                    found = path if path in MODULES or f"{path}.__init__" in MODULES else base
                    yield (found if found in MODULES else f"{found}.__init__".lstrip(".")), id(node) not in inside
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "cusink":
                    yield alias.name.removeprefix("cusink").lstrip(".") or "__init__", id(node) not in inside


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
def test_a_room_imports_only_rooms_before_it(name):
    for imported, _ in imports(MODULES[name]):
        assert ORDER.index(room(imported)) <= ORDER.index(room(name)), f"{name} imports {imported}"
        assert not (name.startswith("backends.numpy") and imported.startswith("backends.cupy")), name
        assert not (name.startswith("backends.cupy") and imported.startswith("backends.numpy")), name
        assert room(imported) not in BRIDGES - {room(name)}, f"{name} imports {imported}"


def test_no_circle_and_no_long_chain_of_imports():
    """Imports inside functions count too."""
    graph = {name: {imported for imported, _ in imports(tree)} for name, tree in MODULES.items()}
    depth = {}

    def chain(name, path=()):
        assert name not in path, " -> ".join([*path, name])
        if name not in depth:
            depth[name] = 1 + max((chain(imported, (*path, name)) for imported in graph[name]), default=0)
        return depth[name]

    assert max(map(chain, graph)) <= LONGEST_CHAIN


LONGEST_CHAIN = 16


@pytest.mark.parametrize("name", MODULES)
def test_devices_are_known_to_the_backends_only(name):
    """No cupy in public code, and none at import time outside the CuPy backend: an array proves that CuPy is loaded."""
    if name.startswith("backends.cupy.") or room(name) in BRIDGES:
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
    """Names, kinds and defaults of the arguments, as written; mypy compares their types."""
    arguments = function.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    return ast.unparse(arguments)


def definitions(module):
    """Functions and classes that a module defines or takes from another module of the package, by name."""
    found = {}
    for node in MODULES[module].body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cusink."):
            module_name = node.module.split(".", 1)[1]
            if module_name not in MODULES:
                continue
            source = definitions(module_name)
            found |= {alias.asname or alias.name: source[alias.name] for alias in node.names if alias.name in source}
    return found


def public_methods(node):
    return {
        child.name: signature(child)
        for child in node.body
        if isinstance(child, ast.FunctionDef) and (child.name == "__init__" or not child.name.startswith("_"))
    }


BACKENDS = [f"backends.{library}.{kind}" for library in ("numpy", "cupy") for kind in ("dense", "points", "grid")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operator", operators.OPERATORS)
def test_each_backend_has_each_operator(operator, backend):
    assert operator in definitions(backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operator", operators.OPERATORS)
def test_all_backends_have_equal_signatures(operator, backend):
    """Read, not imported: the CuPy half needs no CuPy."""
    ours, theirs = (definitions(name)[operator] for name in ("backends.numpy.dense", backend))
    assert type(ours) is type(theirs)
    if isinstance(ours, ast.ClassDef):
        contract = {name for name in public_methods(ours) if f"``{name}(" in operators.__doc__} | {"__init__"}
        assert {"__init__", "advance", "finish", "keep"} <= contract
        inherited = {} if not theirs.bases else public_methods(ours)
        for name in contract:
            assert public_methods(ours)[name] == (inherited | public_methods(theirs))[name], name
    else:
        assert signature(ours) == signature(theirs)


@pytest.mark.parametrize("operator", operators.OPERATORS)
def test_the_contract_states_each_signature(operator):
    """The list in operators.py is what the NumPy backend really takes."""
    node = definitions("backends.numpy.dense")[operator]
    if isinstance(node, ast.ClassDef):
        node = next(child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == "__init__")
    names = [argument.arg for argument in node.args.args if argument.arg != "self"]
    assert f"{operator}({', '.join(names)})" in operators.__doc__


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
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 420, path.name
    vague = {"utils", "helpers", "common", "base", "manager", "misc"}
    assert not vague & {part for name in MODULES for part in name.split(".")}


def test_every_module_can_be_imported_alone():
    for name in MODULES:
        if not name.startswith("backends.cupy.") and room(name) not in BRIDGES and name != "__main__":
            importlib.import_module(f"cusink.{name}".removesuffix(".__init__"))
