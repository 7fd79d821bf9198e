"""Docstrings of everything public pass the validation of numpydoc."""

import dataclasses
import functools
import importlib
import inspect

import pytest

validate = pytest.importorskip("numpydoc.validate").validate

MODULES = ("cusink", "cusink.torch", "cusink.jax", "cusink.distributed", "cusink.plot", "cusink.sklearn")
EXCLUDED = {
    "ES01",  # an extended summary: one line says what most functions do, Notes say how
    "SA01",  # "See Also": the text names other functions where they matter
}
MEMBERS = (property, functools.cached_property, classmethod, staticmethod)


def public():
    """Yield dotted name and object of everything that is exported, and of its public methods and properties."""
    for module in MODULES:
        try:
            room = importlib.import_module(module)
        except ImportError:  # of an optional library
            continue
        for name in room.__all__:
            thing = getattr(room, name)
            yield f"{module}.{name}", thing
            for member, value in vars(thing).items() if inspect.isclass(thing) else ():
                if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, MEMBERS)):
                    yield f"{module}.{name}.{member}", value


def excluded(thing):
    """Return the checks that do not fit an object."""
    codes = set(EXCLUDED)
    made_by_users = inspect.isclass(thing) and not (dataclasses.is_dataclass(thing) or issubclass(thing, Warning))
    if isinstance(thing, MEMBERS) or (inspect.isfunction(thing) and "." in thing.__qualname__):
        codes.add("EX01")  # an example: that of the class shows the members that need one
    elif inspect.isclass(thing) and not made_by_users:
        codes.add("EX01")  # that of the function which returns the result shows it
        codes.add("PR01")  # parameters: users do not make results; Attributes describe the fields, see below
    return codes


@pytest.mark.parametrize(("name", "thing"), [pytest.param(*found, id=found[0]) for found in public()])
def test_docstrings_pass_the_validation_of_numpydoc(name, thing):
    errors = [f"{code}: {said}" for code, said in validate(name)["errors"] if code not in excluded(thing)]
    assert not errors, "\n".join(errors)


@pytest.mark.parametrize(
    "thing", [pytest.param(thing, id=name) for name, thing in public() if dataclasses.is_dataclass(thing)]
)
def test_results_describe_each_field(thing):
    section = inspect.getdoc(thing).split("Attributes\n----------\n")[1].split("\n\n")[0]
    names = {
        name for line in section.splitlines() if line[:1].strip() for name in line.split(" : ")[0].split(", ") if name
    }
    fields = {field.name for field in dataclasses.fields(thing) if field.repr and not field.name.startswith("_")}
    assert fields <= names, fields - names
