"""Build the documentation into site/ (`make docs`); any warning, a dead link for one, is an error.

python tools/docs.py [FOLDER]
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build(folder: Path) -> int:
    """mkdocs' exit code; the pages lie in `folder`."""
    # The theme would else print what its authors think of the next version of mkdocs.
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | quiet).returncode


def main(folder: Path) -> int:
    """Build, and say where and how long."""
    begin = time.perf_counter()
    if code := build(folder.absolute()):
        return code
    pages = len(list(folder.rglob("*.html")))
    print(f"{pages} pages in {time.perf_counter() - begin:.0f} s: open {folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "site")))
