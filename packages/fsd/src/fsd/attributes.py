"""Whether an object is what was asked for, and has one front: from the names that its views were given.

All are of one object; `labels` are as "red mushroom", one per view.

    >>> prompt_accuracy("a red mushroom", ["red mushroom", "red tree"])
    0.5
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fsd.cameras import Cameras
from fsd.priors.view_words import VIEWS, from_front, view_index
from fsd.world.captions import understand
from fsd.world.objects import FRONTED, KINDS
from fsd.world.words import COLOURS


def prompt_accuracy(prompt: str, labels: Sequence[str]) -> float | None:
    """Share of the views whose kind and colour are both among those that the prompt asks for, in [0, 1].

    What the prompt leaves open is always right; None for one that names neither a kind nor a colour, as then nothing
    can be wrong.  Raises ValueError for a prompt that the world does not know, and for no views.
    """
    _refuse_none(labels)
    asked = understand(prompt)
    if len(asked.kinds) == len(KINDS) and len(asked.colours) == len(COLOURS):
        return None
    split = [label.split() for label in labels]
    return float(np.mean([colour in asked.colours and kind in asked.kinds for colour, kind in split]))


def main_name(names: Sequence[str]) -> str:
    """What most views are called; of several as frequent, the one that comes first."""
    _refuse_none(names)
    return Counter(names).most_common(1)[0][0]


def view_accuracy(kinds: Sequence[str], sides: Sequence[str], cameras: Cameras) -> float | None:
    """Share of the views that show the side that their camera stands at (`fsd.priors.view_words.view_index`).

    `kinds` and `sides` name what each view shows.  None for an object whose main kind has no front.
    """
    if main_name(kinds) not in FRONTED:
        return None
    right = [VIEWS[index] for index in view_index(cameras).tolist()]
    return float(np.mean([side == truth for side, truth in zip(sides, right, strict=True)]))


def janus_rate(kinds: Sequence[str], sides: Sequence[str], cameras: Cameras) -> float | None:
    """Share of the views from behind that show a front: 0 for an object with one front where it belongs.

        #(away > 90 deg and side = front) / #(away > 90 deg),    away: azimuth between the camera and the front

    A second face as wide as the first, which gave the Janus problem its name, makes it 5 / 11 of 24 views, and so does
    an object that was turned around: `view_accuracy` tells them apart, being far lower for the latter.  Views from
    exactly the side are not counted.  None for an object whose main kind has no front, and where no camera stands
    behind it.
    """
    behind = (from_front(cameras) > 90.01).tolist()
    if main_name(kinds) not in FRONTED or not any(behind):
        return None
    seen = [side for side, far in zip(sides, behind, strict=True) if far]
    return seen.count("front") / len(seen)


def _refuse_none(names: Sequence[str]) -> None:
    if not names:
        raise ValueError("there are no views; give the name of at least one")
