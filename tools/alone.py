"""Test one package in an environment of its own, where an import it does not declare fails.

    python tools/alone.py corsd [--lowest] [--python 3.14] [--resolve-only]

Installs the package (with the extras that its tests use) and core from their folders, plus the test tools,
and runs the package's tests.  --lowest takes the oldest versions that the packages' dependencies allow.
"""

import argparse
import subprocess
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
UV = str(ROOT / "tools/uv.sh")


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a command, echoed; a failure ends the program with the command's own output."""
    print("$", *command, flush=True)
    code = subprocess.run([str(part) for part in command], cwd=cwd).returncode
    if code:
        raise SystemExit(code)


def distribution(folder: Path) -> str:
    """The name that a package's folder is installed by."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]


def tested_extras(name: str) -> str:
    """The extras of a distribution that the development environment has, as '[a,b]' or ''."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    for requirement in map(Requirement, groups["all"]):
        if canonicalize_name(requirement.name) == name and requirement.extras:
            return f"[{','.join(sorted(requirement.extras))}]"
    return ""


def main() -> None:
    """Make the environment in a temporary folder, install, test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "package", choices=sorted(f.parent.name for f in ROOT.glob("packages/*/pyproject.toml"))
    )
    parser.add_argument("--lowest", action="store_true", help="oldest allowed versions of the dependencies")
    parser.add_argument("--resolve-only", action="store_true", help="stop once the versions are known")
    parser.add_argument("--python", default="3.11", help="interpreter of the environment")
    options = parser.parse_args()

    folder = ROOT / "packages" / options.package
    name, core = distribution(folder), distribution(ROOT / "packages/shared-core")
    extras = tested_extras(canonicalize_name(name))
    sources = [f"{ROOT}/packages/shared-core", f"{folder}{extras}"]
    with tempfile.TemporaryDirectory() as scratch:
        pins = Path(scratch, "pins.txt")
        if options.lowest:
            wanted = Path(scratch, "wanted.in")
            wanted.write_text("\n".join(sources), encoding="utf-8")
            run(
                *(UV, "pip", "compile", "--quiet", "--no-sources", "--resolution", "lowest-direct"),
                *("--python-version", options.python, "--no-emit-package", core),
                *("--no-emit-package", name, "-o", pins, wanted),
            )
        else:
            run(UV, "export", "--quiet", "--frozen", "--no-emit-workspace", "--no-hashes", "-o", pins)
        if options.resolve_only:
            print(pins.read_text(encoding="utf-8"))
            return
        python = Path(scratch, "env", "bin", "python")
        run(UV, "venv", "--quiet", "--python", options.python, Path(scratch, "env"))
        run(
            UV,
            "pip",
            "install",
            "--quiet",
            "--no-sources",
            "--python",
            python,
            "-c",
            pins,
            "--group",
            "test",
            *sources,
        )
        # Old libraries warn about the newest of what they need themselves: not ours to mend.
        warnings = ["-W", "default"] if options.lowest else []
        run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *warnings, folder / "tests")


if __name__ == "__main__":
    main()
