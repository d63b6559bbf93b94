"""``python -m corsd`` and ``torchrun -m corsd``: the command ``corsd``."""

import sys

from corsd.cli import main

if __name__ == "__main__":
    sys.exit(main())
