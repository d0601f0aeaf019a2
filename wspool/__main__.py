"""`python -m wspool`."""

import sys

from wspool._cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
