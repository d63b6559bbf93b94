"""The object folders of a run of `fsd generate`: runs/NAME/objects/<prompt>-<guidance>-seed<k>/.

>>> for item in finished("runs/mushroom"):
...     print(item.prompt, item.guidance, item.seed, item.about["seconds"])
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from shared_core.run.atomic import read_json
from shared_core.run.config import load_yaml
from shared_core.run.seal import check_seal

from fsd.config import GenerateConfig


class Finished(NamedTuple):
    """An object that is done; `about` is its object.json."""

    path: Path
    prompt: str
    guidance: str
    seed: int
    about: dict[str, Any]


class Failed(NamedTuple):
    """An object that was given up, and why."""

    path: Path
    error: str


def finished(run: str | os.PathLike[str]) -> list[Finished]:
    """All objects of a run that are done: prompts and guidance methods in the order of its config.yaml, then seeds.

    Raises ValueError where the folder holds no run of `fsd generate`, or a file that is not what the run wrote.
    """
    found = []
    run = Path(os.path.expanduser(run))
    check_seal(run)
    for path in _folders(run):
        if (path / "object.json").is_file():
            check_seal(path)
            about = _read(path / "object.json")
            found.append(Finished(path, about["prompt"], about["guidance"], about["seed"], about))
    order = _order(Path(run))
    return sorted(found, key=lambda one: (order(one.prompt), order(one.guidance), one.seed))


def failed(run: str | os.PathLike[str]) -> list[Failed]:
    """All objects that were given up.  Raises ValueError as `finished`."""
    paths = [p for p in _folders(run) if (p / "failed.json").is_file() and not (p / "object.json").is_file()]
    return [Failed(path, str(_read(path / "failed.json")["error"])) for path in paths]


def groups(objects: list[Finished]) -> dict[tuple[str, str], list[Finished]]:
    """Objects by prompt and guidance method, one per seed, in the order given."""
    found: dict[tuple[str, str], list[Finished]] = {}
    for one in objects:
        found.setdefault((one.prompt, one.guidance), []).append(one)
    return found


def squares(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "n h h 3"]:
    """The squares that stand side by side in one row of a PNG.

    Raises ValueError where the width is no multiple of the height, or the file is damaged.
    """
    from PIL import Image

    try:
        with Image.open(os.path.expanduser(path)) as opened:
            picture = np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    height, width = picture.shape[:2]
    if width % height:
        raise ValueError(
            f"{path} is {width} by {height} pixels; a row of squares is a multiple of its height wide"
        )
    return np.stack(np.split(picture, width // height, axis=1))


def _folders(run: str | os.PathLike[str]) -> list[Path]:
    folder = Path(os.path.expanduser(run)) / "objects"
    if not folder.is_dir():
        raise ValueError(f"{run} holds no folder objects/: give the folder of a run of `fsd generate`")
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}); delete it and generate the object again") from error


def _order(run: Path) -> Callable[[str], tuple[int, str]]:
    """A key that sorts words as the run's configuration lists them, what it does not list behind, by name."""
    listed: list[str] = []
    if (run / "config.yaml").is_file():
        config = load_yaml(GenerateConfig, run / "config.yaml")
        listed = [*config.prompts, *config.guidance]
    places = {word: number for number, word in enumerate(listed)}
    return lambda word: (places.get(word, len(places)), word)
