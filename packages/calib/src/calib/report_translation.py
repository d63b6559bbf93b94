"""report.html of a run of `calib translate`: images before and after, and how the CycleGAN was trained."""

from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import UInt8
from markupsafe import Markup
from shared_core.data.augment import to_float
from shared_core.run import metrics
from shared_core.run.atomic import read_json
from shared_core.run.folder import RunFolder
from shared_core.run.report import (
    cards,
    duration,
    figure,
    heading,
    images,
    settings,
    text,
    write_report,
)
from torch import Tensor
from torch.utils.data import Dataset

from calib import figures
from calib.pose import fitting
from calib.report_images import evenly
from calib.translations import Translation, class_names_of, load_translation, prepared, translate

SHOWN = 24


def report_translation(
    run: Path, source: Dataset, target: Dataset, title: str, flips: Mapping[str, float] | None = None
) -> Path:
    """Write ``run/report.html`` of a finished translation; its path.

    `source` and `target` are the training images; `flips` comes from :func:`calib.translations.label_flips`.
    """
    folder, result = RunFolder(run), read_json(run / "result.json")
    translation = load_translation(run)
    numbers = {"steps": result["steps"], "time": duration(result["seconds"])}
    if flips is not None:
        numbers |= {f"named otherwise, {when}": f"{share:.2f} %" for when, share in flips.items()}
    sections = [cards(numbers), *_pictures(translation, source, target), *_training(run), *settings(folder)]
    write_report(folder.report, title, sections, "a CycleGAN trained without labels")
    return folder.report


def _pictures(translation: Translation, source: Dataset, target: Dataset) -> list[Markup]:
    fit, names = fitting(translation.size, translation.channels).fit, class_names_of(source)
    given, posed = cast(Any, prepared(translation, source)), translation.poses is not None
    strips, captions = [], []
    for place in _places(source):
        image, label = given[place]
        before = [fit(cast(Any, source)[place][0])] if posed else []
        made = translate(translation.generator, to_float(image)[None])[0]
        strips.append(_picture(*before, image, (made * 255).round().to(torch.uint8)))
        captions.append(names[label])
    middle = "in the pose of a target image, " if posed else ""
    words = (
        f"From top to bottom: as it came, {middle}translated. Below: its label, which the translation keeps. "
        "Look whether it is still true: nothing in the training makes sure of that."
    )
    others = [_picture(fit(cast(Any, target)[place][0])) for place in _places(target)]
    return [
        heading("Images before and after"),
        text(words),
        images(strips, captions, width=64),
        text("Images of the target, whose style it should be:"),
        images(others, width=64),
    ]


def _training(run: Path) -> list[Markup]:
    lines = metrics.read(run / "metrics.jsonl")
    steps = [line["step"] for line in lines]
    parts = {
        "critics": {"of the source": "critic_source", "of the target": "critic_target"},
        "generators": {
            "to fool the critics": "adversarial",
            "there and back": "cycle",
            "own domain": "identity",
        },
    }
    curves = {
        side: {words: [line[name] for line in lines] for words, name in named.items()}
        for side, named in parts.items()
    }
    caption = (
        "Critics at the dashed line cannot tell what is made from what is real; near 0 they always can, and teach "
        "nothing."
    )
    return [heading("Training"), figure(figures.translation_losses(steps, curves), caption)]


def _places(dataset: Dataset) -> list[int]:
    return evenly(len(cast(Sized, dataset)), SHOWN).tolist()


def _picture(*stages: UInt8[Tensor, "channels height width"]) -> UInt8[np.ndarray, "rows width channels"]:
    return torch.cat(stages, 1).permute(1, 2, 0).numpy()
