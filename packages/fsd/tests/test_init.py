"""The package says of itself what is true: its version, and that there is nothing public in it yet."""

import tomllib
from pathlib import Path

import fsd


def test_version_is_the_one_of_the_project_file() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert fsd.__version__ == project["version"]


def test_no_public_names_yet() -> None:
    public = [name for name in vars(fsd) if not name.startswith("_")]
    assert public == []
    assert fsd.__all__ == []
