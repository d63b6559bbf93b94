"""Compare each package's public names with its last release: a break needs a new minor version (0.x) or major one.

    python tools/api_breaks.py [PACKAGE ...] [--against REF]

PACKAGE is a folder of packages/.  The last release is the newest tag DISTRIBUTION-vX.Y.Z; without one there is nothing
to break.  Names with a leading underscore are private.  Nothing is imported.
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

import griffe
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def last_tag(root: Path, distribution: str, version: Version) -> str | None:
    """The newest release tag of a distribution below `version`, which may be tagged already; None before the first."""
    tags = git(root, "tag", "--list", f"{distribution}-v*").decode().split()
    released = {Version(tag.rpartition("-v")[2]): tag for tag in tags}
    return max(((v, tag) for v, tag in released.items() if v < version), default=(None, None))[1]


def breaks(old: Path, new: Path, module: str) -> list[str]:
    """One line per break of the public interface between two source folders."""
    before, after = (
        griffe.load(module, search_paths=[folder], allow_inspection=False, resolve_aliases=False)
        for folder in (old, new)
    )
    return [
        f"{b.obj.path}: {b.kind.value}"
        for b in griffe.find_breaking_changes(before, after)
        if not any(part.startswith("_") for part in b.obj.path.split("."))
    ]


def allowed(old: Version, new: Version) -> bool:
    """Whether a version may break what the older one promised: a new major, or before 1.0 a new minor."""
    return new.major > old.major or (new.major == old.major == 0 and new.minor > old.minor)


def sources(root: Path, ref: str, folder: str, to: Path) -> Path:
    """The package's src/ as it was at `ref`, unpacked below `to`."""
    packed = git(root, "archive", "--format=tar", ref, f"packages/{folder}")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(to, filter="data")
    return to / "packages" / folder


def check(root: Path, folder: str, against: str | None = None) -> tuple[bool, str]:
    """Whether the package may go out as it is, and a sentence."""
    document = tomllib.loads((root / "packages" / folder / "pyproject.toml").read_text(encoding="utf-8"))
    name, version = document["project"]["name"], Version(document["project"]["version"])
    module = document["tool"]["uv"].get("build-backend", {}).get("module-name", name.replace("-", "_"))
    ref = against or last_tag(root, name, version)
    if ref is None:
        return True, f"{name}: no release yet, so nothing can break"
    with tempfile.TemporaryDirectory() as scratch:
        earlier = sources(root, ref, folder, Path(scratch))
        released = Version(
            tomllib.loads((earlier / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
        )
        found = breaks(earlier / "src", root / "packages" / folder / "src", module)
    if not found:
        return True, f"{name}: nothing of {ref} is broken"
    lines = "\n".join(f"  {line}" for line in found[:20])
    if allowed(released, version):
        return True, f"{name}: {len(found)} breaks since {ref}, which {version} may have\n{lines}"
    return False, (
        f"{name}: {len(found)} breaks since {ref}, and {version} is no new minor version (0.x) or major one:\n{lines}"
    )


def git(root: Path, *arguments: str) -> bytes:
    """What git prints."""
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True).stdout


def main() -> int:
    """Check the packages named, or all; 1 if one breaks what it may not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    known = sorted(file.parent.name for file in ROOT.glob("packages/*/pyproject.toml"))
    parser.add_argument("package", nargs="*", metavar="PACKAGE")
    parser.add_argument(
        "--against", metavar="REF", help="compare with this commit instead of the last release"
    )
    given = parser.parse_args()
    answers = [check(ROOT, folder, given.against) for folder in given.package or known]
    print(*(sentence for _, sentence in answers), sep="\n")
    return int(not all(fine for fine, _ in answers))


if __name__ == "__main__":
    sys.exit(main())
