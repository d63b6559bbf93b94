"""Check a release tag such as corsd-v1.2.3 against the package's version and changelog.

    python tools/release_tag.py corsd-v1.2.3 [ROOT]

Prints `folder=`, `distribution=` and `module=` lines for the workflow; 1 with a sentence if they do not agree.
"""

import re
import sys
import tomllib
from pathlib import Path


def release(tag: str, root: Path) -> dict[str, str]:
    """Distribution and import name behind a tag; ValueError says what does not fit."""
    match = re.fullmatch(r"(?P<name>[a-z-]+)-v(?P<version>\d+\.\d+\.\d+)", tag)
    if not match:
        raise ValueError(f"'{tag}' is not of the form NAME-v1.2.3")
    for file in root.glob("packages/*/pyproject.toml"):
        document = tomllib.loads(file.read_text(encoding="utf-8"))
        project = document["project"]
        if project["name"] != match["name"]:
            continue
        if project["version"] != match["version"]:
            raise ValueError(
                f"the tag says {match['version']}, {file.relative_to(root)} {project['version']}"
            )
        # "(unreleased)", and no date at all, are of a section that is still written.
        heading = rf"^## {re.escape(match['version'])} \(\d{{4}}-\d\d-\d\d\)$"
        if not re.search(heading, read_changelog(file), re.MULTILINE):
            raise ValueError(
                f"the changelog of {match['name']} has no released section {match['version']}: "
                f"it begins with '## {match['version']} (YYYY-MM-DD)'"
            )
        backend = document["tool"]["uv"].get("build-backend", {})
        return {
            "folder": file.parent.name,
            "distribution": match["name"],
            "module": backend.get("module-name", match["name"].replace("-", "_")),
        }
    raise ValueError(f"no package is called '{match['name']}'")


def read_changelog(project: Path) -> str:
    """The changelog beside a pyproject.toml."""
    return (project.parent / "CHANGELOG.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    try:
        found = release(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "."))
    except ValueError as error:
        sys.exit(str(error))
    print("\n".join(f"{key}={value}" for key, value in found.items()))
