"""How long ``import corsd`` and ``corsd --help`` take, beside ``import torch``.

    python benchmarks/corsd_import.py --out FILE [--quick]

Each is a process of its own.  What counts is its processor time: on an idle machine with warm files that is what
a person waits for, and other than the wall clock it means the same on a busy one.  ``import corsd`` reads its
modules when a name is first used, so it is measured both as it is and with the name that everyone uses,
``corsd.Distiller``.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

from _figures import difference, interleaved, options, ratio, write

PYTHON = [sys.executable, "-c"]
COMMANDS = {
    "import torch": [*PYTHON, "import torch"],
    "import corsd": [*PYTHON, "import corsd"],
    "corsd.Distiller": [*PYTHON, "import corsd; corsd.Distiller"],
    "corsd --help": [str(Path(sys.executable).parent / "corsd"), "--help"],
}


def main() -> None:
    given = options(__doc__).parse_args()
    # The first round writes the bytecode that all others, and all users but the first, find.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def run(command: list[str]) -> float:
        begin = children_seconds()
        subprocess.run(command, check=True, capture_output=True, env=environment)
        return children_seconds() - begin

    values = interleaved(
        {name: lambda c=command: run(c) for name, command in COMMANDS.items()},
        rounds=1 if given.quick else 9,
        warmup=0 if given.quick else 1,
    )
    unit, base = "s, processor time", "import torch"
    figures = [
        difference(
            name, f"{name} over {base}", unit, values, name, base, goal=0.3, quick=given.quick
        )
        for name in ("import corsd", "corsd.Distiller")
    ]  # fmt: skip
    figures.append(
        ratio(
            "corsd --help", f"corsd --help against {base}", unit, values, "corsd --help", base,
            goal=1.5, quick=given.quick,
        )
    )  # fmt: skip
    write(given.out, given.quick, figures)


def children_seconds() -> float:
    """Processor time of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
