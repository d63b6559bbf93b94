"""Rehearse the release of all packages on this machine; nothing is published (`make release`).

    python tools/rehearse.py [PACKAGE] [--install-lowest]

1. the tag, the changelog, the ranges and the public interface of each package, as the release would check them;
2. wheels and sdists, inspected, with a bill of materials each;
3. a folder as an index (--find-links): a project outside of the workspace for each package, which depends on that one
   alone, with the newest dependencies that uv.lock holds, and runs the examples of its README where the other methods
   are absent; the lowest dependencies resolved, or with --install-lowest installed and used too (a download);
4. two releases of the core that would break a method, which must be stopped.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import api_breaks
import check_ranges
import release_tag
import sbom
import wheels

ROOT = Path(__file__).parents[1]


def step(words: str, action: Callable[[], str | None]) -> None:
    """Do it, and say what it was and how long it took; a failure ends the program."""
    begin = time.perf_counter()
    said = action()
    seconds = time.perf_counter() - begin
    print(f"{seconds:6.1f} s  {words}" + (f"\n{said}" if said else ""), flush=True)


def copy_of_tree(to: Path) -> Path:
    """The project files and sources, to plant a fault in or to date a changelog."""
    to.mkdir()
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, to)
    skip = shutil.ignore_patterns("__pycache__", "tests")
    shutil.copytree(ROOT / "packages", to / "packages", ignore=skip)
    return to


def versions(root: Path) -> dict[str, tuple[str, str]]:
    """Folder: distribution and version."""
    found = {}
    for file in sorted(root.glob("packages/*/pyproject.toml")):
        text = file.read_text(encoding="utf-8")
        name, version = (re.search(rf'^{key} = "(.+)"$', text, re.MULTILINE) for key in ("name", "version"))
        if name and version:
            found[file.parent.name] = (name[1], version[1])
    return found


def check_tags(scratch: Path) -> str:
    """Every package's tag fits its version, once its changelog is dated as the release dates it."""
    tree = copy_of_tree(scratch / "dated")
    said = []
    for folder, (name, version) in versions(tree).items():
        changelog = tree / "packages" / folder / "CHANGELOG.md"
        text = changelog.read_text(encoding="utf-8")
        changelog.write_text(
            text.replace(f"## {version} (unreleased)", f"## {version} (2000-01-01)"), encoding="utf-8"
        )
        said.append(
            f"          {name}-v{version} -> {release_tag.release(f'{name}-v{version}', tree)['module']}"
        )
    return "\n".join(said)


def check_interfaces() -> str:
    """No package breaks what it promised."""
    answers = [api_breaks.check(ROOT, folder) for folder in versions(ROOT)]
    if not all(fine for fine, _ in answers):
        raise SystemExit("\n".join(sentence for _, sentence in answers))
    return "\n".join(f"          {sentence}" for _, sentence in answers)


def a_core_that_no_method_takes(scratch: Path) -> str:
    """A core of the next minor version, which breaks: the ranges of the methods exclude it."""
    tree = copy_of_tree(scratch / "minor")
    project = tree / "packages/shared-core/pyproject.toml"
    version = versions(tree)["shared-core"][1]
    major, minor, _ = map(int, version.split("."))
    text = project.read_text(encoding="utf-8")
    project.write_text(
        text.replace(f'version = "{version}"', f'version = "{major}.{minor + 1}.0"'), encoding="utf-8"
    )
    bad = check_ranges.bad_ranges(tree)
    if not all(any(f"packages/{method}/" in line for line in bad) for method in ("corsd", "fsd", "calib")):
        raise SystemExit(f"a core that no method declares would have gone out; check_ranges says {bad}")
    return f"          stopped: {bad[0]}"


def a_core_that_breaks_in_a_patch(scratch: Path) -> str:
    """A core of the next patch version without a function that the methods call: the interface check stops it."""
    tree = copy_of_tree(scratch / "patch")
    file = tree / "packages/shared-core/src/shared_core/run/metrics.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("def cut_back(", "def _cut_back("), encoding="utf-8")
    found = api_breaks.breaks(
        ROOT / "packages/shared-core/src", tree / "packages/shared-core/src", "shared_core"
    )
    old, new = (api_breaks.Version(version) for version in ("0.1.0", "0.1.1"))
    if api_breaks.allowed(old, new) or not any("cut_back" in line for line in found):
        raise SystemExit(f"a core without a function that methods call would have gone out: {found}")
    return f"          stopped: {found[0]}"


def build() -> str:
    """Wheels and sdists in dist/, looked into."""
    wheels.build()
    return "\n".join(f"          {line}" for line in wheels.sizes())


def bills() -> str:
    """A bill of materials per wheel in dist/sbom/."""
    said = []
    for wheel in sorted((ROOT / "dist").glob("*.whl")):
        sbom.main(wheel, ROOT / "dist/sbom")
        said.append(wheel.name)
    return f"          {len(said)} bills"


def project_of_its_own(folder: str, scratch: Path) -> str:
    """A project that names one of our packages and nothing else: `uv sync`, then the examples of the README."""
    name, version = versions(ROOT)[folder]
    pins, project = scratch / "pins.txt", scratch / f"{folder}-project"
    # The lock's pins are the newest that were tested, and the cache has them.
    flags = ["--quiet", "--frozen", "--no-emit-workspace", "--no-hashes", "--no-annotate", "--no-header"]
    wheels.run(wheels.UV, "export", *flags, "-o", pins)
    project.mkdir()
    text = f"""\
[project]
name = "outside"
version = "0"
requires-python = "=={sys.version_info.major}.{sys.version_info.minor}.*"
dependencies = ["{name}=={version}"]

[tool.uv]
find-links = [{json.dumps(str(ROOT / "dist"))}]
constraint-dependencies = {json.dumps(pins.read_text(encoding="utf-8").splitlines())}
"""
    (project / "pyproject.toml").write_text(text, encoding="utf-8")
    wheels.run(wheels.UV, "sync", "--quiet", "--directory", project, "--python", sys.executable)
    use(folder, project / ".venv/bin/python", "--readme")
    return ""


def use(folder: str, python: Path, *flags: str) -> None:
    """What is installed fits together, and the package works."""
    wheels.run(wheels.UV, "pip", "check", "--quiet", "--python", python)
    wheels.run(python, "-I", ROOT / "tools/smoke_wheel.py", wheels.PACKAGES[folder][0], *flags)


def install_lowest(folder: str, scratch: Path) -> str:
    """A package by name with the lowest dependencies that it allows, into an empty environment, and used."""
    name, version = versions(ROOT)[folder]
    python = scratch / f"{folder}-lowest" / "bin" / "python"
    wheels.run(wheels.UV, "venv", "--quiet", "--python", sys.executable, python.parents[1])
    flags = ["--find-links", ROOT / "dist", "--quiet", "--python", python, "--resolution", "lowest-direct"]
    wheels.run(wheels.UV, "pip", "install", *flags, f"{name}=={version}")
    use(folder, python)
    return ""


def resolve_lowest(folder: str, scratch: Path) -> str:
    """Which versions the lowest are; nothing is installed."""
    name, version = versions(ROOT)[folder]
    wanted = scratch / f"{folder}.in"
    wanted.write_text(f"{name}=={version}\n", encoding="utf-8")
    command = [
        *(
            wheels.UV,
            "pip",
            "compile",
            "--quiet",
            "--no-header",
            "--no-annotate",
            "--find-links",
            ROOT / "dist",
        ),
        *("--resolution", "lowest-direct", "--python-version", "3.11", wanted),
    ]
    done = subprocess.run([str(part) for part in command], cwd=scratch, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"the lowest versions of {name} do not resolve:\n{done.stderr}")
    pins = done.stdout.split()
    shown = [pin for pin in pins if pin.split("==")[0] in ("torch", "numpy", "pydantic", "safetensors")]
    return f"          {len(pins)} packages, among them {', '.join(shown)}"


def main() -> int:
    """The whole rehearsal; the first fault ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("package", nargs="?", choices=sorted(wheels.PACKAGES), help="install this one only")
    parser.add_argument(
        "--install-lowest", action="store_true", help="download and use the lowest versions too"
    )
    given = parser.parse_args()
    chosen = [given.package] if given.package else list(wheels.PACKAGES)
    begin = time.perf_counter()
    bad = check_ranges.bad_ranges(ROOT)
    if bad:
        raise SystemExit("\n".join(bad))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        step("tags and changelogs fit", lambda: check_tags(scratch))
        step("public interfaces", check_interfaces)
        step("a core that no method declares is stopped", lambda: a_core_that_no_method_takes(scratch))
        step("a core that breaks in a patch is stopped", lambda: a_core_that_breaks_in_a_patch(scratch))
        step("wheels and sdists built and inspected", build)
        step("bills of materials", bills)
        for one in chosen:
            step(
                f"{one}: a project outside depends on it alone and runs its README",
                lambda one=one: project_of_its_own(one, scratch),
            )
            if given.install_lowest:
                step(
                    f"{one}: lowest dependencies, installed and used",
                    lambda one=one: install_lowest(one, scratch),
                )
            else:
                step(f"{one}: lowest dependencies, resolved", lambda one=one: resolve_lowest(one, scratch))
    print(f"the rehearsal took {time.perf_counter() - begin:.0f} s; docs/releasing.md says what comes next")
    return 0


if __name__ == "__main__":
    sys.exit(main())
