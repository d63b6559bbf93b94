"""A separate environment for a benchmark against another project, from its pinned requirements."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def install(environment: Path, requirements: Path) -> None:
    """Make the environment, or bring it to exactly what the requirements say.

    Raises:
        subprocess.CalledProcessError: uv could not; ``stderr`` says why.
    """
    uv = ROOT / "tools/uv.sh"
    for command in (
        [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, environment],
        [uv, "pip", "sync", "--quiet", "--python", environment, requirements],
    ):
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)


def failure(error: subprocess.CalledProcessError) -> str:
    """What was tried and how it failed, in one line without paths of this machine."""
    tried = " ".join(Path(str(part)).name for part in error.cmd)
    said = " ".join((error.stderr or "").replace(f"{ROOT}/", "").split())
    return f"{tried} failed: {said[-600:]}"
