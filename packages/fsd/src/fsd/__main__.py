"""``python -m fsd`` and ``torchrun -m fsd``: the command ``fsd``."""

import sys

from fsd.cli import main

if __name__ == "__main__":
    sys.exit(main())
