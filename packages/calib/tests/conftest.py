"""Fixtures of calib's tests."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """No shape checks, which only tests have: wrong arguments reach the package's own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def quadrants(count: int, target: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """16 by 16 colour images with a bright square in the quadrant that is their class; a target is dim and tinted."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    images = generator.integers(0, 60, (count, 16, 16, 3))
    for image, label in zip(images, labels, strict=True):
        row, column = 8 * (label // 2) + 1, 8 * (label % 2) + 1
        image[row : row + 6, column : column + 6] += 150
    if target:
        images = images // 2 + np.array([90, 30, 60])
    return images.astype(np.uint8), labels


@pytest.fixture(scope="session")
def domains_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of four classes: npz:PATH#day and npz:PATH#dusk."""
    path = tmp_path_factory.mktemp("data") / "domains.npz"
    arrays: dict[str, Any] = {
        "class_names": np.array(["north west", "north east", "south west", "south east"])
    }
    for number, (prefix, split) in enumerate(product(("day", "dusk"), ("train", "test"))):
        images, labels = quadrants(64 if split == "train" else 32, prefix == "dusk", number)
        arrays |= {f"x_{prefix}_{split}": images, f"y_{prefix}_{split}": labels}
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def tiny(domains_npz: Path) -> dict[str, Any]:
    """Settings of a run of seconds on these domains."""
    return {
        "source": f"npz:{domains_npz}#day",
        "target": f"npz:{domains_npz}#dusk",
        "image_size": 32,
        "body": "lowres",
        "width": 2,
        "blocks": 1,
        "steps": 6,
        "batch_size": 16,
        "validate_every": 3,
        "validation_images": 32,
        "log_every": 1,
        "threads": 1,
        "training": {"epochs": 4, "batch_size": 16},
        "device": "cpu",
    }


@pytest.fixture(scope="session")
def adapted(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on these domains, one seed; tests leave it as it is."""
    from calib.config import AdaptConfig
    from calib.run import run

    out = tmp_path_factory.mktemp("runs") / "one"
    baselines = ["moment_matching", "bn_adapt", "shot_im"]
    run(AdaptConfig.model_validate({**tiny, "baselines": baselines}), out)
    return out


@pytest.fixture(scope="session")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished segmentation run of three classes, with a border that does not count."""
    from calib.config import AdaptConfig
    from calib.run import run

    folder = tmp_path_factory.mktemp("segmented")
    arrays: dict[str, Any] = {"class_names": np.array(["ground", "light", "dark"]), "ignore": np.array(9)}
    for number, (prefix, split) in enumerate(product(("day", "dusk"), ("train", "test"))):
        generator = np.random.default_rng(number)
        masks = np.repeat(np.repeat(generator.integers(0, 3, (16, 2, 3)), 8, 1), 8, 2)
        images = np.array([90, 200, 20])[masks] + generator.integers(0, 30, (16, 16, 24))
        if prefix == "dusk":
            images = images // 2
        masks[:, 0] = 9
        arrays[f"x_{prefix}_{split}"] = np.repeat(images[..., None], 3, 3).astype(np.uint8)
        arrays[f"y_{prefix}_{split}"] = masks.astype(np.uint8)
    np.savez(folder / "streets.npz", **arrays)
    settings = {
        "source": f"npz:{folder / 'streets.npz'}#day",
        "target": f"npz:{folder / 'streets.npz'}#dusk",
        "classifier": "small:segmenter",
        "ignore": 9,
        "body": "lowres",
        "width": 2,
        "blocks": 1,
        "steps": 4,
        "batch_size": 8,
        "validate_every": 2,
        "log_every": 1,
        "validation_images": 8,
        "threads": 1,
        "training": {"epochs": 3, "batch_size": 8},
        "device": "cpu",
    }
    run(AdaptConfig.model_validate(settings), folder / "run")
    return folder / "run"
