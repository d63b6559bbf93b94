"""Name what image files show, with and without the calibrator; of a segmentation net, write its label maps."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from shared_core.data.augment import to_float
from shared_core.data.images import BadImageError, printable, read_image
from torch import Tensor

from calib.trained import Trained


@torch.no_grad()
def predict(
    trained: Trained, paths: Sequence[str], device: torch.device, alpha: float = 1.0, batch_size: int = 64
) -> Iterator[dict[str, Any]]:
    """{"path", "class", "probability", "class_without"} for each file in order, or {"path", "error"}.

    "class_without" is what the classifier alone says; `alpha` from 0 (off) to 1 scales the correction.

    Raises ValueError for a segmentation run, or alpha outside of [0, 1].
    """
    if trained.preprocess is None:
        raise ValueError("this run segments images: write label maps to a folder (--out DIR)")
    _check(alpha)
    model, names = trained.model.to(device), trained.class_names
    for begin in range(0, len(paths), batch_size):
        answers: list[dict[str, Any]] = []
        images = []
        for path in paths[begin : begin + batch_size]:
            image = _image(trained, path)
            if isinstance(image, Tensor):
                images.append(trained.preprocess.fit(image))
                answers.append({"path": printable(path)})
            else:
                answers.append({"path": printable(path), "error": image})
        if images:
            pixels = to_float(torch.stack(images).to(device))
            probability, place = model.logits(pixels, alpha).float().softmax(1).max(1)
            alone = model.ask(pixels).argmax(1)
            found = zip(place.tolist(), probability.tolist(), alone.tolist(), strict=True)
            for answer in answers:
                if "error" not in answer:
                    best, sure, plain = next(found)
                    answer |= {"class": names[best], "probability": sure, "class_without": names[plain]}
        yield from answers


@torch.no_grad()
def segment(
    trained: Trained, paths: Sequence[str], out: Path, device: torch.device, alpha: float = 1.0
) -> Iterator[dict[str, Any]]:
    """Writes OUT/NAME.png, a grey value per pixel that is the number of its class; images keep their size.

    Yields {"path", "map", "shares": {class: percent of the pixels}}, or {"path", "error"}.

    Raises ValueError for a run without label maps, alpha outside of [0, 1], or two files of one name.
    """
    if not trained.segmentation:
        raise ValueError("this run names whole images and has no label maps: leave --out away")
    _check(alpha)
    stems = [Path(path).stem for path in paths]
    doubles = sorted({stem for stem in stems if stems.count(stem) > 1})
    if doubles:
        raise ValueError(f"two images are called {doubles[0]} and would be written to one file: rename one")
    out.mkdir(parents=True, exist_ok=True)
    model = trained.model.to(device)
    for path, stem in zip(paths, stems, strict=True):
        image = _image(trained, path)
        if not isinstance(image, Tensor):
            yield {"path": printable(path), "error": image}
            continue
        labels = model.logits(to_float(image[None].to(device)), alpha).argmax(1)[0].to(torch.uint8).cpu()
        Image.fromarray(labels.numpy()).save(out / f"{stem}.png")
        counts = torch.bincount(labels.flatten().long(), minlength=len(trained.class_names))
        shares = 100 * counts / labels.numel()
        named = zip(trained.class_names, shares.tolist(), strict=False)
        found = {name: share for name, share in named if share}
        yield {"path": printable(path), "map": str(out / f"{stem}.png"), "shares": found}


def _image(trained: Trained, path: str) -> Tensor | str:
    # Grey files stay as they are: through RGB and back they would lose a level.
    try:
        return read_image(path, "L" if trained.channels == 1 else "RGB")
    except BadImageError as error:
        return str(error)


def _check(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be from 0 (off) to 1")
