"""The words of the world: colours, kinds, and what a prompt asks for.

>>> asked = understand("a red object")
>>> asked.colours, asked.kinds
(('red',), ('cube', 'ball', 'cylinder', 'cone', 'donut', 'mug', 'table', 'house'))
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from fsd.world.solids import KINDS

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.15, 0.12),
    "green": (0.15, 0.65, 0.2),
    "blue": (0.15, 0.3, 0.85),
    "yellow": (0.92, 0.8, 0.15),
    "orange": (0.95, 0.5, 0.1),
    "purple": (0.55, 0.2, 0.7),
    "white": (0.95, 0.95, 0.95),
    "black": (0.1, 0.1, 0.1),
}
FILLERS = ("a", "an", "any", "the", "object", "of")


class Asked(NamedTuple):
    """The colours and kinds that fit a prompt; what it leaves open is all of them."""

    colours: tuple[str, ...]
    kinds: tuple[str, ...]


def understand(prompt: str) -> Asked:
    """What a prompt asks for.  Raises ValueError for an empty prompt and for words that the world does not know."""
    words = read(
        prompt,
        [*COLOURS, *KINDS, *FILLERS],
        f"{', '.join(COLOURS)}; {', '.join(KINDS)}; {', '.join(FILLERS)}",
    )
    colours = tuple(word for word in COLOURS if word in words)
    kinds = tuple(word for word in KINDS if word in words)
    return Asked(colours or tuple(COLOURS), kinds or tuple(KINDS))


def read(prompt: str, vocabulary: Sequence[str], listed: str) -> list[str]:
    """The words of a prompt in lower case; `listed` is the vocabulary as the messages show it.

    Raises ValueError for an empty prompt and for words outside the vocabulary.
    """
    words = re.findall(r"[^\W\d_]+", prompt.lower())
    if not words:
        raise ValueError(
            f"the prompt is empty; say for example 'a red mug' or 'an object' (it knows {listed})"
        )
    unknown = [word for word in words if word not in vocabulary]
    if unknown:
        raise ValueError(
            f"this prior does not know {', '.join(map(repr, unknown))}; it knows {listed}; for other prompts name "
            "a diffusion model with --prior"
        )
    return words
