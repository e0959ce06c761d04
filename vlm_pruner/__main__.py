"""`python -m vlm_pruner` is the `vlm-pruner` command."""

import sys

from vlm_pruner.cli import main

if __name__ == "__main__":
    sys.exit(main())
