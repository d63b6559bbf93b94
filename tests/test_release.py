"""What a release goes through: fragments, the public interface, the core's name, bills of materials, the guards."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import alone  # noqa: E402
import api_breaks  # noqa: E402
import check_ranges  # noqa: E402
import rehearse  # noqa: E402
import rename_core  # noqa: E402
import sbom  # noqa: E402
import wheels  # noqa: E402


@pytest.mark.parametrize("package", ["shared-core", "corsd", "calib", "fsd"])
def test_fragments_become_a_section_above_the_earlier_ones(package: str, tmp_path: Path) -> None:
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / "packages" / package / name, tmp_path)
    (tmp_path / "newsfragments").mkdir()
    (tmp_path / "newsfragments" / "12.fixed.md").write_text("A fault is mended.")
    (tmp_path / "newsfragments" / "+word.added.md").write_text("A thing is new.")
    command = [
        Path(sys.executable).parent / "towncrier",
        "build",
        "--yes",
        "--version",
        "9.8.7",
        "--date",
        "2000-01-01",
    ]
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "CHANGELOG.md").read_text()
    section = text.index("## 9.8.7 (2000-01-01)")
    assert text.index("### Added\n\n- A thing is new.") < text.index(
        "### Fixed\n\n- A fault is mended. (issue 12)"
    )
    assert text.index("# Changelog") < section < text.index("## 0.1.0")
    assert not list((tmp_path / "newsfragments").iterdir())


def library(folder: Path, code: str) -> Path:
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "__init__.py").write_text(code)
    return folder


@pytest.mark.parametrize(
    ("after", "broken"),
    [
        ("def f(a, b=1): ...\n", []),
        ("def f(a, b=1, c=2): ...\ndef g(): ...\n", []),
        ("def f(a): ...\n", ["lib.f"]),
        ("def f(a, b=1, *, c): ...\n", ["lib.f"]),
        ("def g(a, b=1): ...\n", ["lib.f"]),
    ],
)
def test_breaks_of_public_names_are_found(after: str, broken: list[str], tmp_path: Path) -> None:
    private = "def _f(): ...\n"
    old = library(tmp_path / "old", "def f(a, b=1): ...\n" + private)
    new = library(tmp_path / "new", after)
    found = api_breaks.breaks(old, new, "lib")
    assert [line.partition("(")[0].partition(":")[0] for line in found] == broken


@pytest.mark.parametrize(
    ("old", "new", "fine"),
    [
        ("0.1.0", "0.1.1", False),
        ("0.1.0", "0.2.0", True),
        ("0.9.0", "1.0.0", True),
        ("1.1.0", "1.2.0", False),
    ],
)
def test_which_versions_may_break(old: str, new: str, fine: bool) -> None:
    assert api_breaks.allowed(Version(old), Version(new)) is fine


def test_a_release_is_compared_with_the_one_before(tmp_path: Path) -> None:
    package = tmp_path / "packages" / "lib"
    library(package / "src", "def f(a): ...\n")
    project = package / "pyproject.toml"
    project.write_text('[project]\nname = "lib"\nversion = "0.1.0"\n[tool.uv]\n')

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert api_breaks.check(tmp_path, "lib") == (True, "lib: no release yet, so nothing can break")
    git("tag", "lib-v0.1.0")
    (package / "src" / "lib" / "__init__.py").write_text("def f(a, b): ...\n")
    project.write_text(project.read_text().replace("0.1.0", "0.1.1"))
    # The workflow runs when the new tag is there.
    git("tag", "lib-v0.1.1")
    fine, sentence = api_breaks.check(tmp_path, "lib")
    assert not fine
    assert "breaks since lib-v0.1.0, and 0.1.1 is no new minor version" in sentence
    project.write_text(project.read_text().replace("0.1.1", "0.2.0"))
    fine, sentence = api_breaks.check(tmp_path, "lib", "lib-v0.1.0")
    assert fine
    assert "which 0.2.0 may have" in sentence


def test_releases_of_the_core_that_would_break_a_method_are_stopped(tmp_path: Path) -> None:
    core = rehearse.versions(ROOT)["shared-core"][0]
    assert f"excludes {core} 0.2.0" in rehearse.a_core_that_no_method_takes(tmp_path)
    assert "cut_back" in rehearse.a_core_that_breaks_in_a_patch(tmp_path)


def test_a_guard_that_lets_a_breaking_core_through_fails_the_rehearsal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_ranges, "bad_ranges", lambda root: [])
    with pytest.raises(SystemExit, match="would have gone out"):
        rehearse.a_core_that_no_method_takes(tmp_path)
    monkeypatch.setattr(api_breaks, "breaks", lambda old, new, module: [])
    with pytest.raises(SystemExit, match="would have gone out"):
        rehearse.a_core_that_breaks_in_a_patch(tmp_path)


def test_every_tag_of_the_next_release_fits(tmp_path: Path) -> None:
    said = rehearse.check_tags(tmp_path)
    assert "calib-uda-v0.1.0 -> calib" in said
    assert len(said.splitlines()) == 4


def test_the_core_gets_another_name_with_one_command(tmp_path: Path) -> None:
    tree = rehearse.copy_of_tree(tmp_path / "tree")
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", tree / "docs")
    changed = {path.relative_to(tree).as_posix() for path in rename_core.rename(tree, "corsd-shared-core")}
    assert {f"packages/{name}/pyproject.toml" for name in ("shared-core", "corsd", "calib", "fsd")} <= changed
    assert check_ranges.bad_ranges(tree) == []
    names = {name for name, _ in rehearse.versions(tree).values()}
    assert names == {"corsd-shared-core", "corsd", "calib-uda", "fsd"}
    assert 'module-name = "shared_core"' in (tree / "packages/shared-core/pyproject.toml").read_text()
    assert "corsd = { workspace = true }\n" in (tree / "pyproject.toml").read_text()
    assert "`corsd-shared-core`" in (tree / "docs/index.md").read_text()

    # What builds and tests the packages follows.  The kept runs of earlier versions stay where they lie.
    assert wheels.pattern("shared-core", ".whl", tree) == "corsd_shared_core-*.whl"
    assert alone.distribution(tree / "packages/shared-core") == "corsd-shared-core"
    assert runpy.run_path(str(tree / "tests/test_workspace.py"))["CORE"] == "corsd-shared-core"
    for kept, folder in runpy.run_path(str(tree / "tests/compat/test_compat.py"))["FOLDERS"].items():
        assert (tree / "tests/compat/0.1.0" / kept).is_dir()
        assert (tree / "packages" / folder).is_dir()

    with pytest.raises(ValueError, match="no name for a distribution"):
        rename_core.rename(tree, "Shared Core")


def test_a_bill_of_materials_names_the_wheel_and_what_it_needs(tmp_path: Path) -> None:
    wheel = tmp_path / "calib_uda-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    sbom.main(wheel, tmp_path / "sbom")
    record = json.loads((tmp_path / "sbom" / "calib_uda-0.1.0-py3-none-any.cdx.json").read_text())
    assert record["bomFormat"] == "CycloneDX"
    assert record["metadata"]["component"]["name"] == "calib-uda"
    assert record["metadata"]["component"]["hashes"][0]["content"].startswith("ba59926159d2")
    names = {component["name"] for component in record["components"]}
    assert {"torch", "safetensors", "accelerate"} <= names
    assert not names & {"pytest", "ruff", "mkdocs", "diffusers"}
