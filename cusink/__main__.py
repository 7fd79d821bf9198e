"""``python -m cusink``: the command line."""

import sys

from cusink.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
