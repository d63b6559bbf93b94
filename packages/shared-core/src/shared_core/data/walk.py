"""Find the files below a user's folders: links end, and hidden names are left out.

One walk for training, prediction and scans.  Hidden are names with a leading dot (`.ipynb_checkpoints`, `._a.jpg`)
and the folders that archives, file servers and Windows leave behind (`__MACOSX`, `@eaDir`, `$RECYCLE.BIN`).
Links to folders are followed, but every folder is read once.

    >>> found = walk("photos", (".jpg", ".png"))
    >>> found.files, left_out([found])
"""

import os
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

HIDDEN = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")
Identity = tuple[int, int]


class Walk(NamedTuple):
    """What lies below one folder: its files and folders, and what was left out of them; sorted by bytes.

    `hidden` are hidden folders, and hidden files of the suffixes asked for.  `repeated` are folders that were not
    entered, because they had been read or lead back to a folder above.  `dead` are links that lead nowhere.
    """

    files: list[str]
    folders: list[str]
    hidden: list[str]
    repeated: list[str]
    dead: list[str]

    @classmethod
    def empty(cls) -> "Walk":
        """Nothing yet."""
        return cls([], [], [], [], [])


def walk(folder: str | os.PathLike[str], suffixes: tuple[str, ...]) -> Walk:
    """Return the files below `folder` whose lower-case names end in one of `suffixes`.

    Raises FileNotFoundError for no such folder, PermissionError for one that must not be read.
    """
    return walk_all([folder], suffixes)[0]


def walk_all(folders: Sequence[str | os.PathLike[str]], suffixes: tuple[str, ...]) -> list[Walk]:
    """Return a Walk for each of several folders, none of which shares a folder with another.

    A folder that is reached by its own path belongs there; one that only links reach, to the first of them.
    """
    roots = [os.fspath(folder) for folder in folders]
    found = [Walk.empty() for _ in roots]
    seen = {identity(root) for root in roots}
    links: deque[tuple[int, str, frozenset[Identity]]] = deque()
    for place, root in enumerate(roots):
        links += [(place, *link) for link in _enter(root, above(root), found[place], seen, suffixes)]
    while links:
        place, link, chain = links.popleft()
        if identity(link) in seen | chain:
            found[place].repeated.append(link)
            continue
        seen.add(identity(link))
        chain |= above(link)
        links += [(place, *next_) for next_ in _enter(link, chain, found[place], seen, suffixes)]
    for walked in found:
        for names in walked:
            names.sort(key=os.fsencode)
    return found


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out."""
    return name.startswith(".") or name in HIDDEN


def is_dead(path: str | os.PathLike[str]) -> bool:
    """Whether this is a link that leads nowhere, as to a disk that is not mounted."""
    return os.path.islink(path) and not os.path.exists(path)


def identity(folder: str | os.PathLike[str]) -> Identity:
    """The device and number of a folder: two paths to one folder agree in it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def above(folder: str | os.PathLike[str]) -> frozenset[Identity]:
    """The folders above one, by its path as given and by its real path."""
    found: set[Identity] = set()
    for path in (os.path.abspath(folder), os.path.realpath(folder)):
        while (parent := os.path.dirname(path)) != path:
            path = parent
            found.add(identity(path))
    return frozenset(found)


def left_out(walks: Sequence[Walk], beside: int = 0) -> str:
    """What several walks left out, as half a sentence; "" for nothing.

    `beside` counts images that lie beside the class folders.
    """
    hidden = [name for walked in walks for name in walked.hidden]
    repeated = [name for walked in walks for name in walked.repeated]
    dead = [name for walked in walks for name in walked.dead]
    parts = []
    if hidden:
        kinds = sorted({os.path.basename(name) for name in hidden}, key=os.fsencode)
        shown = ", ".join(os.fsencode(name).decode("utf-8", "backslashreplace") for name in kinds[:3])
        parts.append(
            f"{len(hidden)} hidden files or folders ({shown}{', ...' if len(kinds) > 3 else ''})"
            if len(hidden) > 1
            else f"1 hidden file or folder ({shown})"
        )
    if repeated:
        links = (
            "1 link to a folder that is"
            if len(repeated) == 1
            else f"{len(repeated)} links to folders that are"
        )
        parts.append(f"{links} read already or lie above")
    if dead:
        shown = os.fsencode(dead[0]).decode("utf-8", "backslashreplace")
        links = "1 link that leads" if len(dead) == 1 else f"{len(dead)} links that lead"
        parts.append(f"{links} nowhere ({shown}{', ...' if len(dead) > 1 else ''})")
    if beside:
        parts.append(
            "1 image beside the class folders" if beside == 1 else f"{beside} images beside the class folders"
        )
    return ", ".join(parts)


def _enter(
    folder: str, chain: frozenset[Identity], found: Walk, seen: set[Identity], suffixes: tuple[str, ...]
) -> list[tuple[str, frozenset[Identity]]]:
    """Read `folder` and all real folders below it; the links to folders, each with the folders above it."""
    links: list[tuple[str, frozenset[Identity]]] = []
    pending = [(folder, chain | {identity(folder)})]
    while pending:
        at, above_it = pending.pop()
        with os.scandir(at) as entries:
            for entry in entries:
                is_folder = entry.is_dir()
                if is_hidden(entry.name):
                    if is_folder or entry.name.lower().endswith(suffixes):
                        found.hidden.append(entry.path)
                elif not is_folder:
                    if entry.is_symlink() and is_dead(entry.path):
                        # Whatever its name: it may have been a folder.
                        found.dead.append(entry.path)
                    elif entry.name.lower().endswith(suffixes) and entry.is_file():
                        found.files.append(entry.path)
                elif entry.is_symlink():
                    found.folders.append(entry.path)
                    links.append((entry.path, above_it))
                elif (own := identity(entry.path)) in seen or own in above_it:
                    found.repeated.append(entry.path)
                else:
                    seen.add(own)
                    found.folders.append(entry.path)
                    pending.append((entry.path, above_it | {own}))
    return sorted(links, key=lambda link: os.fsencode(link[0]))
