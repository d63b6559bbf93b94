"""What the world's judge says of the pictures of finished objects: the ground for measuring the embedded priors.

>>> judged = judged_views(objects)                        # the objects of one prompt and method, a seed each
>>> labels(judged)[0][:2]
['red mushroom', 'red mushroom']
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from fsd.objects import Finished, squares
from fsd.priors.view_words import VIEWS
from fsd.world.judge import Judge, load_judge
from fsd.world.objects import KINDS
from fsd.world.words import COLOURS


class JudgedViews(NamedTuple):
    """Of each view: numbers in KINDS, COLOURS and VIEWS, the probabilities that they come from, and features."""

    kinds: Int[np.ndarray, "seeds views"]
    colours: Int[np.ndarray, "seeds views"]
    sides: Int[np.ndarray, "seeds views"]
    kind_probabilities: Float[np.ndarray, "seeds views 16"]
    colour_probabilities: Float[np.ndarray, "seeds views 8"]
    side_probabilities: Float[np.ndarray, "seeds views 4"]
    features: Float[np.ndarray, "seeds views 64"]


def judged_views(objects: Sequence[Finished]) -> JudgedViews:
    """Of views.png of each object: 24 views once around it on grey 0.5.

    Raises ValueError for no object, and where one has no such file, a damaged one, or another number of views.
    """
    if not objects:
        raise ValueError("there are no objects to judge; give at least one that is done")
    rows = [squares(one.path / "views.png") for one in objects]
    if len({row.shape for row in rows}) > 1:
        raise ValueError(
            f"views of {sorted({row.shape[:2] for row in rows})} (number, pixels); they must be alike"
        )
    return judge_views(np.stack(rows))


@torch.no_grad()
def judge_views(views: UInt8[np.ndarray, "seeds views h h 3"]) -> JudgedViews:
    """Of pictures on grey 0.5, of any size."""
    seeds, count = views.shape[:2]
    images = torch.from_numpy(views).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    judged = _judge()(images)
    kind, colour, side, features = (
        value.view(seeds, count, -1).double().numpy()
        for value in (judged.kind.exp(), judged.colour.exp(), judged.view.exp(), judged.features)
    )
    return JudgedViews(
        kind.argmax(2), colour.argmax(2), side.argmax(2), kind, colour, side, features
    )  # fmt: skip


def labels(judged: JudgedViews) -> list[list[str]]:
    """Colour and kind of each view of each object, as "red mushroom"."""
    kinds, colours = kind_names(judged), colour_names(judged)
    return [
        [f"{colour} {kind}" for colour, kind in zip(*row, strict=True)]
        for row in zip(colours, kinds, strict=True)
    ]


def kind_names(judged: JudgedViews) -> list[list[str]]:
    """The kind of each view of each object."""
    return np.array(list(KINDS))[judged.kinds].tolist()


def colour_names(judged: JudgedViews) -> list[list[str]]:
    """The colour of each view of each object."""
    return np.array(list(COLOURS))[judged.colours].tolist()


def side_names(judged: JudgedViews) -> list[list[str]]:
    """The side that each view shows, one of VIEWS; of kinds without a front it says nothing."""
    return np.array(VIEWS)[judged.sides].tolist()


def label_probabilities(judged: JudgedViews) -> Float[np.ndarray, "seeds views 128"]:
    """p(kind) p(colour) of each view: the judge decides the two apart."""
    joint = judged.kind_probabilities[..., :, None] * judged.colour_probabilities[..., None, :]
    return joint.reshape(*joint.shape[:2], -1)


def object_features(judged: JudgedViews) -> Float[np.ndarray, "seeds 64"]:
    """One row per object for the Vendi score over seeds: the mean over its views, not centred.

    An object that is something else from every side is thereby near the middle of all objects, and so is every other
    such one: falling apart does not count as diverse.  Of objects drawn from the world, four score 3.1, four of one
    kind 1.9, and three of one kind and colour 1.3.
    """
    return judged.features.mean(1)


@lru_cache(maxsize=1)
def _judge() -> Judge:
    return load_judge()
