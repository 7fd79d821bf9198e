"""Arguments of the scripts: what is wrong with them is one line, and exit status 2."""

import argparse


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that does not print how it is used beside an error."""

    def error(self, message):
        """End with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")
