"""Give the distribution `shared-core` another name, should it be taken on the index: `import shared_core` stays.

    python tools/rename_core.py corsd-shared-core && tools/uv.sh lock

Changes the word in project files, READMEs, changelogs, pages of docs/, sources and core's own tests.  Folders keep
their names, also those of kept runs (tests/compat).  Tools and the workspace's tests read it from core's project file.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = (
    *(
        "pyproject.toml",
        "README.md",
        "docs/*.md",
        "packages/*/pyproject.toml",
        "packages/*/README.md",
        "packages/*/CHANGELOG.md",
    ),
    *("packages/*/src/**/*.py", "packages/shared-core/tests/*.py"),
)


def rename(root: Path, new: str) -> list[Path]:
    """Put `new` in the place of the distribution's name; the files that changed.

    Raises ValueError for a name that no index takes.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", new):
        raise ValueError(f"{new!r} is no name for a distribution: small letters, digits and single hyphens")
    project = root / "packages/shared-core/pyproject.toml"
    document = tomllib.loads(project.read_text(encoding="utf-8"))
    if "module-name" not in document["tool"]["uv"]["build-backend"]:
        raise ValueError(f"{project} must say module-name, or the import would change with the distribution")
    old = document["project"]["name"]
    # The word alone: not a folder of packages/, not shared-core as a part of a longer name.
    word = re.compile(rf"(?<![\w/.-]){re.escape(old)}(?![\w/-])")
    changed = []
    for pattern in PLACES:
        for path in root.glob(pattern):
            text = path.read_text(encoding="utf-8")
            if word.search(text):
                path.write_text(word.sub(new, text), encoding="utf-8")
                changed.append(path)
    return changed


if __name__ == "__main__":
    try:
        files = rename(ROOT, sys.argv[1])
    except ValueError as error:
        sys.exit(str(error))
    print(f"{len(files)} files say {sys.argv[1]} now; next: tools/uv.sh lock")
