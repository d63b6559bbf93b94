"""The package says of itself what is true: its version, and that there is nothing public in it yet."""

import inspect
import tomllib
from pathlib import Path

import calib


def test_version_is_the_one_of_the_project_file() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert calib.__version__ == project["version"]


def test_nothing_public_yet() -> None:
    # Modules are left out: the shape checker of the test run puts itself into every package.
    values = {name: value for name, value in vars(calib).items() if not inspect.ismodule(value)}
    assert [name for name in values if not name.startswith("_")] == []
    assert calib.__all__ == []
