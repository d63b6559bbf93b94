"""The Python code on the pages and in the README runs, page by page; commands take their flags, programs their YAML.

The READMEs of the packages are run by the tests of the packages, where the others may be absent.
"""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from calib.config import AdaptConfig
from corsd.config import TrainConfig
from shared_core.run.config import Config, load_yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
READMES = sorted(ROOT.glob("packages/*/README.md"))
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
# Behind an empty line, or it is a paragraph that goes on.
INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")
INCLUDED = re.compile(r'--8<-- "(.+?)"')
PROGRAMS = ("corsd", "fsd", "calib")
CONFIGS: dict[str, type[Config]] = {"corsd": TrainConfig, "calib": AdaptConfig}
CALL = re.compile(rf"\s*({'|'.join(PROGRAMS)}|torchrun)\s")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def python_blocks(path: Path) -> list[str]:
    """What a page says itself; included files are run by test_examples.py."""
    found = [
        block for language, block in FENCE.findall(path.read_text(encoding="utf-8")) if language == "python"
    ]
    return [block for block in found if not INCLUDED.search(block)]


def yaml_blocks(path: Path) -> list[str]:
    return [
        block for language, block in FENCE.findall(path.read_text(encoding="utf-8")) if language == "yaml"
    ]


def commands(path: Path) -> Iterator[list[str]]:
    """Each call of one of our programs in the plain blocks of a page, as words from the program's name on."""
    text = path.read_text(encoding="utf-8")
    fenced = [block for language, block in FENCE.findall(text) if language in ("", "sh", "bash")]
    for block in [*fenced, *INDENTED.findall(FENCE.sub("", text))]:
        for line in block.replace("\\\n", " ").splitlines():
            # Looked at before the quotes: the prose of a list is indented, too, and has apostrophes.
            if CALL.match(line):
                words = shlex.split(line, comments=True)
                place = next((n for n, word in enumerate(words) if word in PROGRAMS), None)
                if place is not None:
                    yield words[place:]


@pytest.fixture(scope="module")
def helps() -> dict[tuple[str, str], str]:
    """Help of the commands that were asked for."""
    return {}


def help_of(program: str, verb: str, helps: dict[tuple[str, str], str], capsys: pytest.CaptureFixture) -> str:
    if (program, verb) not in helps:
        capsys.readouterr()
        try:
            code = importlib.import_module(f"{program}.cli").main([verb, "--help"])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        assert not code, f"{program} {verb} is no command: {said.err}"
        helps[program, verb] = said.out
    return helps[program, verb]


# Lightning's: it asks for more workers, and calls an old name of torch's.
@pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec)")
@pytest.mark.parametrize("path", [path for path in PAGES if python_blocks(path)], ids=name)
def test_the_code_of_a_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(python_blocks(path), start=1):
        if path == ROOT / "README.md":
            page = {"__name__": "page"}  # its blocks stand each for itself
        exec(compile(block, f"{name(path)}, block {number}", "exec"), page)  # noqa: S102


@pytest.mark.parametrize("path", [path for path in PAGES + READMES if list(commands(path))], ids=name)
def test_a_command_takes_the_flags_it_is_given(
    path: Path,
    helps: dict[tuple[str, str], str],
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for program, verb, *words in commands(path):
        known = help_of(program, verb, helps, capsys)
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        unknown = sorted(flag for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", known))
        assert unknown == [], f"{program} {verb} has no {unknown}"
        if "--preset" in words:
            preset = words[words.index("--preset") + 1]
            choices = re.search(r"--preset \{(.*?)\}", known)
            assert choices, f"{program} {verb} lists no presets"
            assert preset in choices[1].split(","), f"{program} {verb} has no preset {preset}"


@pytest.mark.parametrize("path", [path for path in PAGES + READMES if yaml_blocks(path)], ids=name)
def test_a_program_takes_the_yaml_of_its_page(path: Path, tmp_path: Path) -> None:
    (program,) = {program for program in CONFIGS if program in name(path)}
    for number, block in enumerate(yaml_blocks(path)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block, encoding="utf-8")
        assert load_yaml(CONFIGS[program], file) != CONFIGS[program](), f"block {number} changes nothing"


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_commands_at_full_scale_are_among_them(program: str) -> None:
    found = list(commands(ROOT / f"docs/results/{program}.md"))
    assert [words for words in found if words[0] == program and "--preset" in words]


def test_included_files_are_there() -> None:
    named = [
        (name(path), found) for path in PAGES for found in INCLUDED.findall(path.read_text(encoding="utf-8"))
    ]
    assert named
    assert [pair for pair in named if not (ROOT / pair[1]).is_file()] == []


def test_a_wrong_flag_would_be_noticed(
    helps: dict[tuple[str, str], str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```\ntorchrun --nnodes 2 -m corsd train --preset digits \\\n    --epoch 3  # a comment\nls\n```\n"
        "Text that is\n    calib no code.\n\n- A list's\n\n    text isn't, either.\n\n"
        "    fsd view RUN  # indented\n\n```python\ncalib\n```\n"
    )
    (program, verb, *words), indented = commands(page)
    assert indented == ["fsd", "view", "RUN"]
    assert (program, verb, words) == ("corsd", "train", ["--preset", "digits", "--epoch", "3"])
    known = help_of(program, verb, helps, capsys)
    assert not re.search(r"(?<![\w-])--epoch(?![\w-])", known)
    assert re.search(r"(?<![\w-])--epochs(?![\w-])", known)
