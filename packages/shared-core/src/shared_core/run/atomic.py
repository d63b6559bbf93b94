"""Files that are either the old ones or the new ones, never half of each."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replaces `path` as a whole: written beside it, flushed to the disk, renamed over it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        make_readable(temporary)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """`write_bytes` of text in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """`write_bytes` of indented JSON.  Raises ValueError for NaN and infinities, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A record that `write_json` wrote.  Raises ValueError naming a file that is missing or damaged."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError(f"it holds a {type(record).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return record


def write_yaml(path: str | os.PathLike[str], values: Any) -> None:
    """Plain values as YAML, in their order; `yaml.safe_load` gives them back."""
    import yaml

    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if set(text) & set("\x85\u2028\u2029"):
        # YAML takes these for ends of lines: written as they are they would come back as others.
        text = yaml.safe_dump(values, sort_keys=False)
    write_text(path, text)


def make_readable(path: str | os.PathLike[str]) -> None:
    """Gives a file that only its owner may read the rights of any new file: mkstemp and safetensors make such."""
    os.chmod(path, 0o666 & ~_umask())


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Makes renames inside `folder` survive a loss of power, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
