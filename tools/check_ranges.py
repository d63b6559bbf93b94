"""Fail when a member's range for a sibling is missing or excludes the sibling's version.

uv resolves members of a workspace from the folder and never compares them with the declared range, so a
wheel can go out that cannot be installed.  Looks at dependencies, extras and dependency groups.

    python tools/check_ranges.py [ROOT]
"""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def requirements(document: dict) -> Iterator[Requirement]:
    """Every requirement of a pyproject.toml: dependencies, extras, dependency groups."""
    project = document.get("project", {})
    lists = [project.get("dependencies", [])]
    lists += project.get("optional-dependencies", {}).values()
    lists += document.get("dependency-groups", {}).values()
    for entries in lists:
        yield from (Requirement(entry) for entry in entries if isinstance(entry, str))


def bad_ranges(root: Path) -> list[str]:
    """One sentence per requirement on a sibling that the sibling in this tree does not meet."""
    files = [root / "pyproject.toml", *sorted(root.glob("packages/*/pyproject.toml"))]
    documents = {file: tomllib.loads(file.read_text(encoding="utf-8")) for file in files}
    projects = [document["project"] for document in documents.values() if "project" in document]
    versions = {canonicalize_name(project["name"]): project["version"] for project in projects}
    extras = {canonicalize_name(p["name"]): set(p.get("optional-dependencies", {})) for p in projects}
    bad = []
    for file, document in documents.items():
        for requirement in requirements(document):
            sibling = canonicalize_name(requirement.name)
            if sibling not in versions:
                continue
            where = f"{file.relative_to(root)}: '{requirement}'"
            if not requirement.specifier:
                bad.append(f"{where} has no range; {sibling} is at {versions[sibling]}")
            elif not requirement.specifier.contains(versions[sibling], prereleases=True):
                bad.append(f"{where} excludes {sibling} {versions[sibling]}")
            bad += [f"{where} asks for the unknown extra '{e}'" for e in requirement.extras - extras[sibling]]
    return bad


if __name__ == "__main__":
    found = bad_ranges(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    print("\n".join(found) or "ranges between members: fine")
    sys.exit(bool(found))
