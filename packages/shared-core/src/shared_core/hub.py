"""A model as a folder for the Hugging Face Hub: where it is read from, its config.json, its card.

    config.json  {"class": "corsd.DistilledNet", "format": 1, "corsd": "0.1.0", ...constructor arguments}
    *.safetensors  README.md  result.json

The classes stand in the methods (`corsd.hub`, `calib.hub`, `fsd.hub`), on huggingface_hub's ModelHubMixin.  Nothing
that is read here can hold code.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_core.run.atomic import read_json

CONFIG = "config.json"
RESULT = "result.json"
CARD = "README.md"
_PICKLES = {".pt", ".pth", ".bin", ".pkl", ".ckpt"}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def fetch(source: str | os.PathLike[str], files: Sequence[str], **download: Any) -> Path:
    """The local folder that `source` names, or the downloaded files of the repository "owner/name" on the hub.

    `download` goes to `huggingface_hub.snapshot_download`: revision, token, cache_dir, force_download,
    local_files_only.

    Raises:
        ValueError: neither a folder nor the form of a repository's name, or a repository that cannot be read.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{source} is a file: give the folder that save_pretrained wrote")
    if not _REPOSITORY.fullmatch(str(source)):
        raise ValueError(f"there is no folder {source}, and a repository on the hub is named owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(files), **download))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"there is no folder {source} here, and the repository of this name on the hub cannot be read: {reason}"
        ) from error


def read_config(
    folder: Path, kind: str, version_key: str, known: Sequence[str], format: int = 1
) -> dict[str, Any]:
    """The constructor arguments in `folder`, which must hold a `kind` such as "corsd.DistilledNet".

    Raises:
        ValueError: no config.json, one that is broken, of another class, of a newer format, or with unknown keys.
    """
    file = folder / CONFIG
    if not file.is_file():
        others = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLES)
        hint = f"; {', '.join(others)} may hold code and is not read" if others else ""
        raise ValueError(f"{folder} holds no {CONFIG}: it is not a folder that save_pretrained wrote{hint}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}, not a record")
    found = config.pop("class", "another library's model")
    if found != kind:
        raise ValueError(f"{folder} holds {found}, not {kind}: load it with that class")
    written, by = config.pop("format", None), config.pop(version_key, None)
    if written != format:
        raise ValueError(
            f"{folder} has format {written!r}, written by {version_key} {by}; this version reads format {format}: "
            f"install the {version_key} that wrote it"
        )
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ValueError(f"{file} has keys that {kind} does not know: {', '.join(unknown[:5])}")
    return config


def read_result(folder: Path) -> dict[str, Any]:
    """result.json of the folder, or nothing.  Raises ValueError for one that is broken."""
    file = folder / RESULT
    return read_json(file) if file.is_file() else {}


def card(
    title: str,
    sentences: Sequence[str],
    code: str,
    figures: Mapping[str, Any],
    metadata: Mapping[str, Any],
    caution: Sequence[str] = (),
) -> str:
    """A model card: YAML that the hub reads, then words, an example, and a table of figures as text.

    `metadata` is what `huggingface_hub.ModelCardData` takes; figures that are None are left out.
    """
    from huggingface_hub import ModelCardData

    rows = [f"| {name} | {_shown(value)} |" for name, value in figures.items() if value is not None]
    table = ["## Measured", "", "| what | value |", "|---|---|", *rows, ""] if rows else []
    warned = [line for words in caution for line in (f"> **{words}**", "")]
    lines = [
        "---", ModelCardData(**metadata).to_yaml(), "---", "",
        f"# {title}", "", *(line for words in sentences for line in (words, "")), *warned,
        "```python", code.strip(), "```", "", *table,
    ]  # fmt: skip
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    # A bar or a line break would end the cell.
    return " ".join(str(value).split()).replace("|", "\\|")
