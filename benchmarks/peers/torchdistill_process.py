"""torchdistill in an environment of its own, as a process that answers a line for a line."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "peers" / "torchdistill"
ENVIRONMENT = FOLDER / ".venv"
REQUIREMENTS = FOLDER / "requirements.txt"


def install(environment: Path) -> None:
    """Make the environment, or bring it to exactly what the requirements say.

    Raises:
        subprocess.CalledProcessError: uv could not; ``stderr`` says why.
    """
    uv = ROOT / "tools/uv.sh"
    commands = [
        [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, environment],
        [uv, "pip", "sync", "--quiet", "--python", environment, REQUIREMENTS],
    ]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)


@contextmanager
def conversation(environment: Path, script: str, *arguments: object) -> Iterator[Callable[[str], str]]:
    """A function that gives a script of torchdistill/ a line and returns the line that it answers.

    Raises:
        subprocess.CalledProcessError: the process ended instead; ``stderr`` is its traceback.
    """
    command = [environment / "bin/python", FOLDER / script, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    asked, answered = cast(TextIO, process.stdin), cast(TextIO, process.stdout)

    def ask(line: str) -> str:
        try:
            print(line, file=asked, flush=True)
            answer = answered.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            errors = process.communicate()[1]
            raise subprocess.CalledProcessError(process.returncode, command, stderr=errors)
        return answer

    try:
        yield ask
    finally:
        process.kill()
        process.wait()


def versions() -> list[str]:
    """torchdistill and the torch that it runs with."""
    return [line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch")]


def what_failed(error: subprocess.CalledProcessError) -> dict[str, Any]:
    """For the JSON: the command and what it said, without this machine's path; prints it too."""
    tried = [Path(str(part)).name for part in error.cmd]
    said = error.stderr.replace(f"{ROOT}/", "")
    print(f"torchdistill was not measured: {' '.join(tried)} failed:\n{said}")
    return {"tried": tried, "error": said[-2000:]}
