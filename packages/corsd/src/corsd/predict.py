"""Name what image files show, with a trained net."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from shared_core.data.images import BadImageError, list_images, printable, read_image

from corsd.trained import Trained


def find_images(places: Sequence[Path]) -> list[str]:
    """Files as they are named, folders as all the images below them.

    Raises:
        ValueError: a folder without an image.
    """
    found: list[str] = []
    for place in places:
        inside = list_images(place) if place.is_dir() else [str(place)]
        if not inside:
            raise ValueError(f"there is no image in {printable(place)}")
        found += inside
    return found


def predict(
    trained: Trained, paths: Sequence[str], device: torch.device, batch_size: int = 64
) -> Iterator[dict[str, Any]]:
    """{"path", "class", "probability"} for each file in order, or {"path", "error"} for a broken one."""
    net = trained.net.to(device).eval()
    # Grey files stay as they are: through RGB and back they would lose a level.
    mode = "L" if trained.preprocess.channels == 1 else "RGB"
    for begin in range(0, len(paths), batch_size):
        answers: list[dict[str, Any]] = []
        images = []
        for path in paths[begin : begin + batch_size]:
            try:
                images.append(trained.preprocess.fit(read_image(path, mode)))
                answers.append({"path": printable(path)})
            except BadImageError as error:
                answers.append({"path": printable(path), "error": str(error)})
        if images:
            with torch.no_grad():
                probabilities = net(trained.preprocess(torch.stack(images).to(device))).float().softmax(1)
            best = iter(zip(*(v.tolist() for v in probabilities.max(1)), strict=True))
            for answer in answers:
                if "error" not in answer:
                    probability, place = next(best)
                    answer |= {"class": trained.class_names[place], "probability": probability}
        yield from answers
