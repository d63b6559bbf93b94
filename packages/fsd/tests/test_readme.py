"""The README runs as it stands and names everything that there is."""

import re
from pathlib import Path

import pytest
from fsd.config import PRESETS
from fsd.guidance import METHODS

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(text: str) -> list[str]:
    return [
        block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "import fsd" in block
    ]


@pytest.mark.parametrize("block", blocks(README))
def test_the_readme_runs_as_it_stands(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102
    assert (tmp_path / "object.glb").stat().st_size > 1000


@pytest.mark.parametrize("name", [*METHODS, *PRESETS])
def test_it_names_all_methods_and_presets(name: str) -> None:
    assert f"`{name}`" in README
