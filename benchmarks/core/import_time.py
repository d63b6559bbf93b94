"""How long importing a package and asking its command for help take, beside ``import torch``."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.core.figures import difference, interleaved, ratio


def measure(package: str, name: str, quick: bool) -> list[dict[str, Any]]:
    """The figures ``import package`` and ``package.name`` (at most 0.3 s) and ``package --help`` (at most 1.5 times).

    Each is a process of its own.  What counts is its processor time: on an idle machine with warm files that is what
    a person waits for, and other than the wall clock it means the same on a busy one.
    """
    python = [sys.executable, "-c"]
    base, bare, used, help_ = "import torch", f"import {package}", f"{package}.{name}", f"{package} --help"
    commands = {
        base: [*python, "import torch"],
        bare: [*python, bare],
        used: [*python, f"{bare}; {used}"],
        help_: [str(Path(sys.executable).parent / package), "--help"],
    }
    # The first round writes the bytecode that all others, and all users but the first, find.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def run(command: list[str]) -> float:
        begin = _children_seconds()
        subprocess.run(command, check=True, capture_output=True, env=environment)
        return _children_seconds() - begin

    values = interleaved(
        {what: lambda c=command: run(c) for what, command in commands.items()},
        rounds=1 if quick else 9,
        warmup=0 if quick else 1,
    )
    unit = "s, processor time"
    figures = [
        difference(what, f"{what} over {base}", unit, values, what, base, goal=0.3, quick=quick)
        for what in (bare, used)
    ]
    figures.append(
        ratio(help_, f"{help_} against {base}", unit, values, help_, base, goal=1.5, quick=quick)
    )  # fmt: skip
    return figures


def imported(code: str, modules: tuple[str, ...]) -> list[str]:
    """Which of the modules a new interpreter has read after running the code."""
    asked = f"import sys; print(); print(*(m for m in {modules!r} if m in sys.modules))"
    command = [sys.executable, "-c", f"{code}\n{asked}"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # What the code itself printed stands above.
    return said.splitlines()[-1].split()


def _children_seconds() -> float:
    """Processor time of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
