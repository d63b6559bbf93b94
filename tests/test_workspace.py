"""The guards of the workspace catch what they are for: each is run on a copy with one planted fault."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
CORE = tomllib.loads((ROOT / "packages/shared-core/pyproject.toml").read_text())["project"]["name"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the guards read: project files, licences and the packages' sources."""
    for file in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    skip = shutil.ignore_patterns("tests", "__pycache__")
    shutil.copytree(ROOT / "packages", tmp_path / "packages", ignore=skip)
    return tmp_path


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=os.environ | environment, text=True, capture_output=True
    )


def guard(name: str, tree: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, ROOT / "tools" / name, tree)


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text, f"the planted fault has no place in {file}"
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("name", ["check_ranges.py", "check_licences.py"])
def test_guards_accept_the_tree_as_it_is(name: str, tree: Path) -> None:
    assert guard(name, tree).returncode == 0


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("packages/fsd/pyproject.toml", f"{CORE}>=0.1,<0.2", f"{CORE}>=9", f"excludes {CORE}"),
        ("packages/fsd/pyproject.toml", f"{CORE}>=0.1,<0.2", CORE, "has no range"),
        ("packages/corsd/pyproject.toml", f"{CORE}[hf]>=0.1,<0.2", f"{CORE}[hf]<0.1", "excludes"),
        ("packages/corsd/pyproject.toml", f"{CORE}[hf]", f"{CORE}[none]", "unknown extra 'none'"),
        (
            "pyproject.toml",
            "fsd[tensorboard,viewer,vsd]>=0.1",
            "fsd[tensorboard,viewer,vsd]>=7",
            "excludes fsd",
        ),
        (
            "packages/shared-core/pyproject.toml",
            'version = "0.1',
            'version = "0.7',
            f"excludes {CORE} 0.7",
        ),
    ],
)
def test_a_range_that_does_not_fit_is_caught(file: str, old: str, new: str, message: str, tree: Path) -> None:
    replace(tree / file, old, new)
    done = guard("check_ranges.py", tree)
    assert done.returncode == 1
    assert message in done.stdout


def test_a_changed_licence_is_caught(tree: Path) -> None:
    with (tree / "packages/corsd/LICENSE").open("a") as file:
        file.write("\n")
    done = guard("check_licences.py", tree)
    assert (done.returncode, done.stdout) == (
        1,
        "packages/corsd/LICENSE differs from LICENSE; copy it again\n",
    )


def test_a_linked_licence_is_caught(tree: Path) -> None:
    copy = tree / "packages/fsd/LICENSE"
    copy.unlink()
    copy.symlink_to("../../LICENSE")
    done = guard("check_licences.py", tree)
    assert done.returncode == 1
    assert "packages/fsd/LICENSE is not a file" in done.stdout


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    sources = os.pathsep.join(str(folder) for folder in sorted(tree.glob("packages/*/src")))
    return run(BIN / "lint-imports", "--no-cache", cwd=tree, PYTHONPATH=sources)


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("corsd/src/corsd/losses.py", "import fsd", "methods never import each other"),
        ("shared-core/src/shared_core/__init__.py", "import corsd", "shared_core imports no method"),
        ("shared-core/src/shared_core/ops/divergence.py", "import numpy", "shared_core.ops imports torch"),
        ("corsd/src/corsd/losses.py", "import accelerate", "corsd: losses, layers and models"),
        ("corsd/src/corsd/relation.py", "import corsd.config", "corsd: losses, layers and models"),
        ("corsd/src/corsd/stages.py", "import shared_core.run.config", "corsd: losses, layers and models"),
    ],
)
def test_a_forbidden_import_is_caught(file: str, line: str, contract: str, tree: Path) -> None:
    with (tree / "packages" / file).open("a") as source:
        source.write(f"\n{line}\n")
    done = lint_imports(tree)
    assert done.returncode == 1
    broken = [text for text in done.stdout.splitlines() if text.endswith("BROKEN")]
    assert any(text.startswith(contract) for text in broken), done.stdout


def test_an_undeclared_dependency_is_caught(tree: Path) -> None:
    with (tree / "packages/fsd/src/fsd/__init__.py").open("a") as source:
        source.write("\nimport onnx\n")
    done = run(BIN / "deptry", "src", "--no-ansi", cwd=tree / "packages/fsd")
    assert done.returncode == 1
    assert "DEP001 'onnx'" in done.stderr or "DEP003 'onnx'" in done.stderr


@pytest.mark.parametrize(
    ("name", "fault"),
    [("fsd/py.typed", None), ("fsd/tests/test_x.py", "is a test"), ("corsd/x.py", "does not belong")],
)
def test_wheel_contents_are_inspected(name: str, fault: str | None, tmp_path: Path) -> None:
    wheels = load_tool("wheels")
    wheel = tmp_path / "fsd-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for entry in {"fsd/py.typed", "fsd-0.1.0.dist-info/licenses/LICENSE", name}:
            archive.writestr(entry, "")
    faults = wheels.faults_of_wheel(wheel, "fsd", kilobytes=1)
    assert len(faults) == (fault is not None)
    assert all(fault in text for text in faults)


def test_an_empty_wheel_has_three_faults(tmp_path: Path) -> None:
    wheels = load_tool("wheels")
    wheel = tmp_path / "fsd-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fsd/__init__.py", "# " + "x" * 2000)
    text = " ".join(wheels.faults_of_wheel(wheel, "fsd", kilobytes=1))
    assert "py.typed is missing" in text
    assert "the licence is missing" in text
    assert "2 kB, allowed are 1" in text


def test_the_wheel_trial_refuses_a_checkout() -> None:
    done = run(sys.executable, "-I", ROOT / "tools/smoke_wheel.py", "fsd")
    assert done.returncode == 1
    assert "not from site-packages" in done.stderr


def test_a_workflow_fault_is_caught(tmp_path: Path) -> None:
    workflow = tmp_path / "bad.yml"
    workflow.write_text(
        "on: pull_request_target\n"
        "jobs:\n"
        "  build:\n"
        "    runs-on: ubuntu-latest\n"
        "    steps:\n"
        "      - uses: actions/checkout@v7\n"
        "      - run: echo ${{ github.event.pull_request.title }}\n"
    )
    done = run(BIN / "zizmor", "--offline", "--no-progress", workflow)
    assert done.returncode != 0
    assert "template-injection" in done.stdout
    replace(workflow, "runs-on", "run-on")
    done = run(BIN / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", workflow)
    assert done.returncode == 1


def workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github/workflows" / name).read_text())


@pytest.mark.parametrize("job", ["alone", "lowest"])
def test_ci_tries_every_package_by_itself(job: str) -> None:
    packages = {file.parent.name for file in ROOT.glob("packages/*/pyproject.toml")}
    assert set(workflow("ci.yml")["jobs"][job]["strategy"]["matrix"]["package"]) == packages


def test_ci_builds_the_site() -> None:
    assert {"run": "make docs"} in workflow("ci.yml")["jobs"]["lint"]["steps"]


def test_every_night_measures_every_peer() -> None:
    """Each by the test that skips where its environment is not there."""
    *_, make, measure = workflow("nightly.yml")["jobs"]["peers"]["steps"]
    peers = {file.parent.name for file in ROOT.glob("benchmarks/peers/*/requirements.txt")}
    assert set(make["run"].partition(" in ")[2].partition(";")[0].split()) == peers
    tests = "".join((ROOT / word).read_text() for word in measure["run"].split() if word.startswith("tests/"))
    for name in measure["env"]["MEASURED"].split(" or "):
        assert f"def test_{name}(" in tests


def test_a_release_keeps_its_bill_of_materials() -> None:
    """What `build` uploads is what `record` puts on the release's page, once the wheel is published."""
    jobs = workflow("release.yml")["jobs"]
    uploaded = {
        step["with"]["name"]: step["with"]["path"] for step in jobs["build"]["steps"] if "upload" in str(step)
    }
    fetch, create = jobs["record"]["steps"]
    assert jobs["record"]["needs"] == "publish"
    assert uploaded[fetch["with"]["name"]] == fetch["with"]["path"] == "sbom/"
    assert create["run"].startswith('gh release create "$GITHUB_REF_NAME" sbom/*')


@pytest.mark.parametrize("text", ["https://", "http://"])
def test_no_address_of_an_index_in_project_files(text: str) -> None:
    files = [
        ROOT / "pyproject.toml",
        ROOT / "Makefile",
        *ROOT.glob("packages/*/pyproject.toml"),
        *(ROOT / "tools").glob("*.*"),
    ]
    assert [file.name for file in files if text in file.read_text()] == []


def test_make_help_lists_at_most_ten_targets() -> None:
    lines = run("make", "--no-print-directory", "help", MAKEFLAGS="").stdout.splitlines()
    assert {line.split()[1] for line in lines} >= {"demo", "test", "check", "bench", "wheels"}
    assert len(lines) <= 10


def test_an_unknown_package_is_refused() -> None:
    done = run("make", "test", "P=corsf", MAKEFLAGS="")
    assert done.returncode == 2
    assert "P=corsf is not a package; choose one of: shared-core corsd fsd calib" in done.stderr


def test_a_missing_gpu_is_an_error_when_demanded() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "packages/fsd/tests"]
    done = run(*command, REQUIRE_GPU="1", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 4
    assert "GPU=1 demands a CUDA device" in done.stderr


def test_a_missing_browser_is_an_error_when_demanded(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "packages/fsd/tests"]
    done = run(*command, REQUIRE_BROWSER="1", PATH=str(tmp_path))
    assert done.returncode == 4
    assert "none of these is on PATH: chromium" in done.stderr


def fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that holds tools/ alone, so that no uv of this checkout is found in .uv/."""
    shutil.copytree(ROOT / "tools", tmp_path / "checkout/tools")
    return tmp_path / "checkout"


def test_an_old_python_gets_one_clear_sentence(checkout: Path, tmp_path: Path) -> None:
    fake(tmp_path / "bin", "python3", 'case "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac')
    done = run(
        checkout / "tools/uv.sh", "--version", PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin", PYTHON="python3"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Python 3.11 or newer is needed and python3 is Python 3.9.2;")
    assert done.stderr.count("\n") == 1


def test_a_uv_on_path_is_used_if_it_is_new_enough(checkout: Path, tmp_path: Path) -> None:
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    for version in ("0.13.0", "0.14.2", "1.0.0"):
        fake(tmp_path / "bin", "uv", f'echo "uv {version}"')
        done = run(checkout / "tools/uv.sh", "--version", PATH=path)
        assert done.stdout == f"uv {version}\n"


def test_an_old_uv_on_path_is_passed_over_for_our_own(checkout: Path, tmp_path: Path) -> None:
    fake(tmp_path / "bin", "uv", 'echo "uv 0.12.10"')
    (checkout / ".uv").mkdir()
    fake(checkout / ".uv/bin", "uv", 'echo "uv 0.13.9 (own)"')
    done = run(checkout / "tools/uv.sh", "sync", PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert done.stdout == "uv 0.13.9 (own)\n"


def load_tool(name: str):
    """A script of tools/ as a module; they are not a package, since nobody imports them."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def released(tree: Path) -> Path:
    for name in ("fsd", "calib"):
        replace(tree / f"packages/{name}/CHANGELOG.md", "(unreleased)", "(2000-01-01)")
    return tree


def version(tree: Path, folder: str) -> str:
    return tomllib.loads((tree / f"packages/{folder}/pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize(("name", "module"), [("fsd", "fsd"), ("calib-uda", "calib")])
def test_a_fitting_tag_names_the_module(name: str, module: str, tree: Path) -> None:
    done = run(
        sys.executable, ROOT / "tools/release_tag.py", f"{name}-v{version(tree, module)}", released(tree)
    )
    assert done.returncode == 0, done.stderr
    assert f"module={module}\n" in done.stdout


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("fsd-v99.0.0", "the tag says 99.0.0"),
        ("calib-v0.1.0", "no package is called 'calib'"),
        ("fsd-1.0.0", "not of the form NAME-v1.2.3"),
    ],
)
def test_a_wrong_tag_is_refused(tag: str, message: str, tree: Path) -> None:
    done = run(sys.executable, ROOT / "tools/release_tag.py", tag, released(tree))
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize("heading", ["{} (unreleased)", "{}", "{} (soon)", "9.{} (2000-01-01)"])
def test_a_tag_without_a_released_changelog_section_is_refused(heading: str, tree: Path) -> None:
    now = version(tree, "fsd")
    (tree / "packages/fsd/CHANGELOG.md").write_text(f"# Changelog\n\n## {heading.format(now)}\n")
    done = run(sys.executable, ROOT / "tools/release_tag.py", f"fsd-v{now}", tree)
    assert done.returncode == 1
    assert f"begins with '## {now} (YYYY-MM-DD)'" in done.stderr
