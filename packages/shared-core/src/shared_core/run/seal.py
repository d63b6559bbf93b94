"""What a run left, told by size and sha256: files.json says what each file was when it was written.

    >>> seal("runs/a", ["net.safetensors", "preprocess.json"])
    >>> check_seal("runs/a")                       # RunFolderError names the file that is another by now

A folder without files.json, as earlier versions left them, passes.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shared_core.run.atomic import write_json

SEAL = "files.json"


class RunFolderError(ValueError):
    """The folder cannot be used for this run; the message says why and what to do."""


def seal(folder: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Notes size and sha256 of these files, beside those noted before; absent ones are left out."""
    folder = Path(folder)
    noted = _read(folder)
    for name in names:
        noted.pop(name, None)
        if (folder / name).is_file():
            noted[name] = _described(folder / name)
    write_json(folder / SEAL, noted)


def unseal(folder: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Forgets these files, which are about to be written anew."""
    folder = Path(folder)
    noted = _read(folder)
    kept = {name: entry for name, entry in noted.items() if name not in set(names)}
    if kept != noted:
        write_json(folder / SEAL, kept)


def write_sealed(path: Path, value: Any) -> None:
    """`write_json`, and a note of it: a kill in between leaves a file without a note, never one with a wrong note."""
    unseal(path.parent, [path.name])
    write_json(path, value)
    seal(path.parent, [path.name])


def check_seal(folder: str | os.PathLike[str], names: Iterable[str] | None = None) -> None:
    """Raises RunFolderError if a noted file (of `names`, if given) differs from what was written.

    A file that is gone is the affair of whoever reads it: deleting a result is how a part of a run is done again.
    """
    folder = Path(folder)
    for name, entry in _read(folder).items():
        path = folder / name
        if names is not None and name not in names:
            continue
        if path.is_file() and _described(path) != entry:
            raise RunFolderError(
                f"{path} is not what this run wrote (its sha256 differs): put back a good copy, or start the run "
                f"anew; if you changed it on purpose, delete {folder / SEAL}"
            )


def _read(folder: Path) -> dict[str, Any]:
    path = folder / SEAL
    if not path.is_file():
        return {}
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(entry, dict) and Path(name).name for name, entry in noted.items()):
            raise ValueError("not a record of files")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise RunFolderError(
            f"{path} cannot be read ({error}): the folder was damaged; delete the file to use the rest unchecked"
        ) from error
    return noted


def _described(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
