"""Arguments of the scripts: what is wrong with them is one line, and exit status 2."""

import argparse
from pathlib import Path


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that does not print how it is used beside an error."""

    def error(self, message):
        """End with status 2, in a line that begins with the name of the script, as all messages of it do."""
        self.exit(2, f"{Path(self.prog).stem}: {message}\n")
