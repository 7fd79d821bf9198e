"""A short repr for results: shapes instead of values."""

from dataclasses import fields
from typing import Any


class Summary:
    """Mixin for dataclasses whose fields are arrays of any size."""

    def __repr__(self) -> str:
        shown = [part.name for part in fields(self) if part.repr]  # type: ignore[arg-type]  # subclasses are dataclasses
        parts = (f"{name}={_short(getattr(self, name))}" for name in shown)
        return f"{type(self).__name__}({', '.join(parts)})"


def _short(value: Any) -> str:
    """Return a scalar as it is, and an array as its dtype and shape."""
    shape = getattr(value, "shape", None)
    if shape is None:
        return repr(value)
    if shape != ():
        return f"{value.dtype}{list(shape)}"
    number = value.item()
    return f"{number:.6g}" if isinstance(number, float) else repr(number)
