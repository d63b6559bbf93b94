"""Captions of pictures, and what a prompt asks for.

"a small red mushroom", "a car, side view", "a blue object", "": words are left out at random, and sides are named
only where a kind has a marked front.

    >>> understand("a red chair, front view").kinds
    ('chair',)
"""

from random import Random
from typing import NamedTuple

from fsd.priors.view_words import VIEWS, with_view_word
from fsd.world.objects import FRONTED, KINDS
from fsd.world.words import COLOURS, FILLERS, read

SIZES = ("small", "big")
# Sizes are shares of the largest that fits; from `small` down and from `big` up they have a word.
SMALL, BIG = 0.84, 0.94


class Asked(NamedTuple):
    """The colours, kinds, sizes and views that fit a prompt; what it leaves open is all of them."""

    colours: tuple[str, ...]
    kinds: tuple[str, ...]
    sizes: tuple[str, ...]
    views: tuple[str, ...]


def vocabulary() -> list[str]:
    """Every word that a caption can hold, and the fillers that a prompt may hold; the comma is not among them."""
    return [*FILLERS, *COLOURS, *KINDS, *SIZES, *VIEWS, "view"]


def understand(prompt: str) -> Asked:
    """What a prompt asks for.  Raises ValueError for an empty prompt and for words that the world does not know."""
    words = read(prompt, vocabulary(), f"{', '.join(COLOURS)}; {', '.join(KINDS)}; {', '.join(SIZES)}; "
                 f"{', '.join(f'{view} view' for view in VIEWS)}; {', '.join(FILLERS)}")  # fmt: skip
    named = (tuple(word for word in group if word in words) for group in (COLOURS, KINDS, SIZES, VIEWS))
    groups = (tuple(COLOURS), tuple(KINDS), SIZES, VIEWS)
    return Asked(*(found or group for found, group in zip(named, groups, strict=True)))


def caption(rng: Random, colour: str, kind: str, size: float, views: list[str]) -> list[str]:
    """One caption per view of an object.  They differ in the words for the view alone, each left out by itself.

    One in ten is empty for all views.  "overhead" stays wherever the caption is not empty: a prompt that says
    nothing of the view means one from the side.
    """
    if rng.random() < 0.1:
        return [""] * len(views)
    words = []
    word = "small" if size < SMALL else "big" if size > BIG else ""
    if rng.random() < 0.3 and word:
        words.append(word)
    if rng.random() < 0.75:
        words.append(colour)
    words.append(kind if rng.random() < 0.85 else "object")
    article = "an" if words[0][0] in "aeiou" else "a"
    phrase = " ".join([article, *words])
    said = [
        view == "overhead" or (keep < 0.6 and kind in FRONTED)
        for view, keep in zip(views, [rng.random() for _ in views], strict=True)
    ]
    return [with_view_word(phrase, view) if say else phrase for view, say in zip(views, said, strict=True)]
