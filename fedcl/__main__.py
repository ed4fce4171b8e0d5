"""`python -m fedcl`: the command line without its script."""

import sys

from fedcl.cli import main

if __name__ == "__main__":
    sys.exit(main())
