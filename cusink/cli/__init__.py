"""The command ``cusink``, and the parts of it that the example scripts share."""

from cusink.cli.arguments import Parser, positive
from cusink.cli.commands import choose_device, main
from cusink.cli.files import InputError

__all__ = ["InputError", "Parser", "choose_device", "main", "positive"]
