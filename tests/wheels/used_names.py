"""Collect from the source of the package, by ast, what it takes from CuPy: names, keywords, attributes, enums."""

import ast
from pathlib import Path
from typing import NamedTuple

import cusink

PACKAGE = Path(cusink.__file__).parent
# Rooms that never see an array of CuPy: their arrays are NumPy's, or those of another library.
HOST_ONLY = ("backends/numpy", "cli", "plot", "sklearn", "retrieval/storage")


class Used(NamedTuple):
    """What is used, each with the places ``file:line`` where it is."""

    chains: dict  # "cuda.runtime.getDevice" -> places: names inside the module cupy
    keywords: dict  # ("max", "axis") -> places: keywords of its functions
    methods: dict  # ("sum", "dtype") -> places: names, and keywords or "", of what may be an array's method
    attributes: dict  # "MultiProcessorCount" -> places: keys of Device.attributes


def chain(node):
    """Return the names of ``a.b.c`` from the left, or None for anything else."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [*([node.id] if isinstance(node, ast.Name) else [None]), *reversed(names)]


def inside_cupy(node, aliases):
    """Return the names inside cupy that an expression goes through, or None.

    An array module is a name that an import bound to CuPy, or one that is called ``xp``, as variable or attribute.
    """
    first, *names = chain(node)
    if first in aliases and names:
        return [*aliases[first], *names]
    if "xp" in names[:-1]:
        return names[names.index("xp") + 1 :]
    return None


def imported(tree):
    """Return the names that imports bind to CuPy or to something in it, with where in it they point."""
    aliases = {"xp": []}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                parts = name.name.split(".")
                if parts[0] == "cupy":
                    aliases[name.asname or parts[0]] = parts[1:] if name.asname else []
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cupy":
            for name in node.names:
                aliases[name.asname or name.name] = [*node.module.split(".")[1:], name.name]
    return aliases


def used(files=None):
    """Return what the package, or the files given as (name, text), use of CuPy."""
    if files is None:
        paths = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
        files = [(name, path.read_text(encoding="utf-8")) for name, path in paths.items()]
    found = Used({}, {}, {}, {})
    for name, text in files:
        tree = ast.parse(text)
        aliases, host_only = imported(tree), name.startswith(HOST_ONLY)
        for whole in (aliases[alias] for alias in aliases):
            if whole:
                found.chains.setdefault(".".join(whole), []).append(f"{name}:1")
        for node in ast.walk(tree):
            place = f"{name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute):
                names = inside_cupy(node, aliases)
                if names is not None and not (host_only and len(aliases) == 1):
                    found.chains.setdefault(".".join(names), []).append(place)
                elif not host_only and chain(node)[0] != "np":
                    found.methods.setdefault((node.attr, ""), []).append(place)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not host_only:
                names = inside_cupy(node.func, aliases)
                for keyword in (keyword.arg for keyword in node.keywords if keyword.arg):
                    if names is not None:
                        found.keywords.setdefault((".".join(names), keyword), []).append(place)
                    elif chain(node.func)[0] != "np":
                        found.methods.setdefault((node.func.attr, keyword), []).append(place)
            if isinstance(node, ast.Subscript) and "attributes" in ast.unparse(node.value).split("."):
                assert isinstance(node.slice, ast.Constant), f"{place}: an attribute of a device is named in full"
                found.attributes.setdefault(node.slice.value, []).append(place)
    return found
