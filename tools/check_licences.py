"""Fail when a package's LICENSE is not a byte-for-byte copy of the one at the root.

Copies rather than links: not every build tool follows a link out of the package's folder.

    python tools/check_licences.py [ROOT]
"""

import sys
from pathlib import Path


def bad_licences(root: Path) -> list[str]:
    """One sentence per package whose LICENSE is missing, a link, or differs."""
    text = (root / "LICENSE").read_bytes()
    bad = []
    for project in sorted(root.glob("packages/*/pyproject.toml")):
        copy = project.parent / "LICENSE"
        if copy.is_symlink() or not copy.is_file():
            bad.append(f"{copy.relative_to(root)} is not a file; copy LICENSE there")
        elif copy.read_bytes() != text:
            bad.append(f"{copy.relative_to(root)} differs from LICENSE; copy it again")
    return bad


if __name__ == "__main__":
    found = bad_licences(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    print("\n".join(found) or "licence copies: equal")
    sys.exit(bool(found))
