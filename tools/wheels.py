"""Build every wheel and sdist, look inside, and try each method installed alone with core (`make wheels`).

    python tools/wheels.py [PACKAGE]

PACKAGE (a folder of packages/) limits the trial installs to one; everything is built all the same.
"""

import re
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
UV = str(ROOT / "tools/uv.sh")
BIN = Path(sys.executable).parent
# folder: (import, kilobytes that a wheel may have)
PACKAGES = {
    "shared-core": ("shared_core", 200),
    "corsd": ("corsd", 200),
    "fsd": ("fsd", 20_000),  # two embedded priors
    "calib": ("calib", 200),
}


def run(*command: str | Path) -> None:
    """Run a command in the root; its output is shown only if it fails."""
    done = subprocess.run([str(part) for part in command], cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"$ {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def pattern(folder: str, suffix: str, root: Path = ROOT) -> str:
    """What the files of this package in dist/ are called: the distribution, as file names spell it."""
    text = (root / "packages" / folder / "pyproject.toml").read_text(encoding="utf-8")
    return f"{tomllib.loads(text)['project']['name'].replace('-', '_')}-*{suffix}"


def built(folder: str, suffix: str) -> Path:
    """The one file of this package in dist/."""
    wanted = pattern(folder, suffix)
    files = list(DIST.glob(wanted))
    if len(files) != 1:
        sys.exit(f"dist/ holds {len(files)} files {wanted}, expected one")
    return files[0]


def faults_of_wheel(wheel: Path, module: str, kilobytes: int) -> list[str]:
    """What is wrong with the contents of a wheel: missing or foreign files, size."""
    names = zipfile.ZipFile(wheel).namelist()
    faults = []
    if f"{module}/py.typed" not in names:
        faults.append(f"{module}/py.typed is missing")
    if not any(re.fullmatch(r"[^/]+\.dist-info/licenses/LICENSE", name) for name in names):
        faults.append("the licence is missing")
    foreign = [name for name in names if not re.match(rf"{module}/|[^/]+\.dist-info/", name)]
    faults += [f"{name} does not belong into the wheel" for name in foreign]
    faults += [f"{name} is a test" for name in names if re.search(r"(^|/)(tests/|test_|conftest)", name)]
    if wheel.stat().st_size > kilobytes * 1000:
        faults.append(f"{wheel.stat().st_size / 1000:.0f} kB, allowed are {kilobytes}")
    return [f"{wheel.name}: {fault}" for fault in faults]


def faults_of_sdist(sdist: Path) -> list[str]:
    """An sdist carries what a packager needs: tests, licence, changelog."""
    with tarfile.open(sdist) as archive:
        names = ["/".join(name.split("/")[1:]) for name in archive.getnames()]
    wanted = {"LICENSE", "CHANGELOG.md", "README.md", "pyproject.toml"} - set(names)
    faults = [f"{sdist.name}: {name} is missing" for name in sorted(wanted)]
    if not any(name.startswith("tests/test_") for name in names):
        faults.append(f"{sdist.name}: the tests are missing")
    return faults


def try_alone(folder: str, pins: Path, scratch: Path) -> None:
    """Install a package with core, and nothing else of ours, into an empty environment and use it."""
    python = scratch / folder / "bin" / "python"
    run(UV, "venv", "--quiet", "--python", sys.executable, scratch / folder)
    wheels = {built("shared-core", ".whl"), built(folder, ".whl")}
    # Both wheels by file: the resolver compares their declared ranges, and no index is asked for our names.
    # The lock's pins only make the cache serve everything else.
    run(UV, "pip", "install", "--quiet", "--python", python, "--constraint", pins, *wheels)
    run(UV, "pip", "check", "--quiet", "--python", python)
    # -I: neither the working directory nor PYTHONPATH may lend it this checkout.
    run(python, "-I", ROOT / "tools/smoke_wheel.py", PACKAGES[folder][0])


def build() -> None:
    """Build every wheel and sdist into dist/ and look inside; a fault ends the program."""
    run(UV, "build", "--all-packages", "--no-sources", "--clear", "--out-dir", DIST)
    files = [built(folder, suffix) for folder in PACKAGES for suffix in (".whl", ".tar.gz")]
    run(BIN / "twine", "check", "--strict", *files)
    # W002: each prior is a whole folder of diffusers, and the two have the same words and settings.
    run(BIN / "check-wheel-contents", "--ignore", "W002", *(file for file in files if file.suffix == ".whl"))
    faults = []
    for folder, (module, kilobytes) in PACKAGES.items():
        faults += faults_of_wheel(built(folder, ".whl"), module, kilobytes)
        faults += faults_of_sdist(built(folder, ".tar.gz"))
    if faults:
        raise SystemExit("\n".join(faults))


def sizes() -> list[str]:
    """Kilobytes of every file in dist/, and what a wheel may have."""
    said = []
    for folder, (_, kilobytes) in PACKAGES.items():
        for suffix, limit in ((".whl", f"  (limit {kilobytes})"), (".tar.gz", "")):
            file = built(folder, suffix)
            said.append(f"{file.stat().st_size / 1000:8.1f} kB  {file.name}{limit}")
    return said


def main(chosen: list[str]) -> int:
    """Build, inspect, install; the first fault ends the program with its output."""
    begin = time.perf_counter()
    build()
    print(*sizes(), sep="\n")
    with tempfile.TemporaryDirectory() as scratch:
        pins = Path(scratch, "pins.txt")
        run(UV, "export", "--quiet", "--frozen", "--no-emit-workspace", "--no-hashes", "-o", pins)
        for folder in chosen or PACKAGES:
            start = time.perf_counter()
            try_alone(folder, pins, Path(scratch))
            print(f"{folder}: installed alone and used in {time.perf_counter() - start:.0f} s", flush=True)
    print(f"wheels are in dist/ ({time.perf_counter() - begin:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
