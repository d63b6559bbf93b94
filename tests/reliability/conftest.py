"""Fixtures of the reliability suite.

RELIABILITY_FULL=1 kills a hundred times per method instead of five; RELIABILITY_FIGURES=FILE writes what happened once
all tests have passed.  page.py puts figures.json into docs/reliability.md.
"""

import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
# Tests are imported one by one, so what they share has to be found.
sys.path.insert(0, str(HERE))

from cases import FIGURES, FULL, METHODS, Runner, Straight, outcome, start  # noqa: E402


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """The process that runs the methods' commands."""
    made = Runner(tmp_path_factory.mktemp("logs"))
    yield made
    # Closes its input, whereupon it ends, and waits for it.
    with made.process:
        pass
    assert made.process.returncode == 0


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of all commands: the data and one configuration per method."""
    folder = tmp_path_factory.mktemp("place")
    runpy.run_path(str(HERE.parent / "compat" / "make.py"))["squares"](folder / "squares.npz")
    for method in METHODS.values():
        (folder / f"{method.name}.yaml").write_text(yaml.safe_dump(method.config))
    return folder


@pytest.fixture(scope="session")
def straight(runner: Runner, place: Path) -> dict[str, Straight]:
    """One undisturbed run per method; tests leave them as they are."""
    found = {}
    for name in METHODS:
        ended = start(runner, place, name, f"{name}-straight")
        assert ended.code == 0, ended.said
        assert ended.events is not None
        folder = place / f"{name}-straight"
        found[name] = Straight(folder, ended.events, outcome(name, folder))
    return found


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    wanted = os.environ.get("RELIABILITY_FIGURES")
    if wanted and FIGURES and exitstatus == 0:
        record = {"full": FULL, "figures": {what: dict(how) for what, how in sorted(FIGURES.items())}}
        Path(wanted).write_text(json.dumps(record, indent=2) + "\n")
