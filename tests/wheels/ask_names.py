"""Say which names, keywords, methods and attributes a real CuPy lacks. Runs by itself, with that CuPy on the path."""

import inspect
import json
import re
import sys

import numpy

ARRAY_PARTS = {name for name in dir(numpy.ndarray) if not name.startswith("__")}


def found(path):
    """Return what a dotted name inside CuPy is, as far as modules and classes go; AttributeError if there is none."""
    import cupy

    at = cupy
    for name in path.split("."):
        if not (inspect.ismodule(at) or inspect.isclass(at)):
            return None  # an attribute of a value
        at = getattr(at, name)
    return at


def keywords(function):
    """Return the names of the parameters of a function of Python or Cython; None where they cannot be told."""
    if inspect.isclass(function):
        own = function.__init__.__doc__ or ""
        text = own if ".__init__(" in own else function.__doc__ or ""
    else:
        text = function.__doc__ or ""
    try:
        parameters = inspect.signature(function).parameters.values()
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            return {parameter.name for parameter in parameters}
    except (TypeError, ValueError):
        pass
    # Cython and ufuncs write the signature into the first line of the description.
    head = re.search(r"\w+\((.*)\)", text.strip().partition("\n\n")[0].replace("\n", " "))
    return None if head is None else set(re.findall(r"(\w+)(?:\s*:[^,=]*)?\s*(?==|,|$)", head[1]))


def lacks(question):
    """Return the parts of a question that this CuPy lacks, by kind."""
    import cupy

    missing = {"chains": [], "keywords": [], "methods": [], "attributes": [], "unknown": []}
    for path in question["chains"]:
        try:
            found(path)
        except AttributeError:
            missing["chains"].append(path)
    for path, keyword in question["keywords"]:
        known = keywords(found(path)) if path not in missing["chains"] else {keyword}
        if known is None:
            missing["unknown"].append(path)
        elif keyword not in known:
            missing["keywords"].append([path, keyword])
    for name, keyword in question["methods"]:
        if name not in ARRAY_PARTS:
            continue  # not of an array
        if not hasattr(cupy.ndarray, name):
            missing["methods"].append([name, keyword])
        elif keyword:
            known = keywords(getattr(cupy.ndarray, name))
            if known is None:
                missing["unknown"].append(name)
            elif keyword not in known:
                missing["methods"].append([name, keyword])
    for name in question["attributes"]:
        if not hasattr(cupy.cuda.runtime, f"cudaDevAttr{name}"):
            missing["attributes"].append(name)
    return {"version": cupy.__version__, "missing": missing}


if __name__ == "__main__":
    print(json.dumps(lacks(json.load(sys.stdin))))
