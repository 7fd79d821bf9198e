"""The command ``cusink``, and what the example scripts share with it."""

from cusink.cli.commands import Parser, choose_device, main, positive
from cusink.cli.files import InputError

__all__ = ["InputError", "Parser", "choose_device", "main", "positive"]
