"""Run every static check of the workspace and say at the end which failed (`make check`).

The checks do not depend on each other, so two run at a time and all of them run even if one fails.
"""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def checks() -> dict[str, list[str]]:
    """Name of each check and its command, the slow ones first."""
    packages = sorted(file.parent.name for file in ROOT.glob("packages/*/pyproject.toml"))
    workflows = [str(file.relative_to(ROOT)) for file in sorted(ROOT.glob(".github/workflows/*.yml"))]
    schema = ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows]
    return {
        "types": ["basedpyright", "--pythonpath", sys.executable],
        "imports": ["lint-imports"],
        **{f"dependencies of {p}": ["deptry", f"packages/{p}/src", *deptry_config(p)] for p in packages},
        "workflow schema": schema,
        "workflow security": ["zizmor", "--offline", "--no-progress", "--quiet", ".github/workflows"],
        "lint": ["ruff", "check"],
        "format": ["ruff", "format", "--check"],
        "lock file": ["tools/uv.sh", "lock", "--check"],
        "ranges": ["python", "tools/check_ranges.py"],
        "licences": ["python", "tools/check_licences.py"],
    }


def deptry_config(package: str) -> list[str]:
    """Without this deptry would read the root's pyproject.toml, which declares no dependencies."""
    return ["--config", f"packages/{package}/pyproject.toml"]


def run(command: list[str]) -> tuple[int, str, float]:
    """Exit code, combined output and seconds of a command of this environment or of tools/."""
    begin = time.perf_counter()
    tool = BIN / command[0]
    program = str(tool) if tool.exists() else command[0]
    done = subprocess.run([program, *command[1:]], cwd=ROOT, text=True, capture_output=True)
    return done.returncode, done.stdout + done.stderr, time.perf_counter() - begin


def main() -> int:
    """Run all checks; 1 if any failed."""
    commands = checks()
    failed = []
    with ThreadPoolExecutor(2) as pool:
        for (name, command), (code, output, seconds) in zip(
            commands.items(), pool.map(run, commands.values()), strict=True
        ):
            print(f"{'failed' if code else 'ok':6} {seconds:5.1f} s  {name}", flush=True)
            if code:
                failed.append(name)
                print(f"$ {' '.join(command)}\n{output}", flush=True)
    print(f"failed: {', '.join(failed)}" if failed else f"all {len(commands)} checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
