"""The priors that come with the package: small diffusion models of the procedural world, of pictures of 32 by 32.

    >>> prior = EmbeddedPrior()                                          # four views at a time, told their cameras
    >>> prior = EmbeddedPrior("camera-free")                             # single pictures

They know the words of `fsd.world.captions` and refuse others.  `fsd train-prior` makes them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fsd.cameras import Cameras
from fsd.priors.multiview import open_prior
from fsd.priors.prompts import EncodedPrompt
from fsd.priors.view_words import VIEWS, with_view_word
from fsd.world.captions import understand
from fsd.world.judge import load_judge, names
from fsd.world.objects import FRONTED

VARIANTS = ("multi-view", "camera-free")
WEIGHTS = Path(__file__).with_name("weights")


class EmbeddedPrior:
    """A MultiViewPrior or DiffusersPrior (all of whose members it has) that says what it knows and what it sees.

    `settings` are those of `open_prior`.  Raises ValueError for another variant.
    """

    def __init__(
        self, variant: str = "multi-view", device: str | torch.device = "cpu", **settings: Any
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; choose one of {', '.join(VARIANTS)}")
        if variant == "camera-free":
            settings = {"view_words": in_views} | settings
        with _no_bars():
            self.prior = open_prior(WEIGHTS / variant, device=device, **settings)
        # The same numbers, a twelfth sooner on a CPU (benchmarks/fsd/forward.py).
        self.prior.net.to(memory_format=torch.channels_last)
        self.judge = load_judge().to(device)

    def __getattr__(self, name: str) -> Any:
        if name == "prior":  # not there yet, as while a copy is being made
            raise AttributeError(name)
        return getattr(self.prior, name)

    def encode_text(self, prompt: str, negative_prompt: str = "") -> EncodedPrompt:
        """Raises ValueError for words that the world does not know, and lists those that it knows."""
        for text in (prompt, negative_prompt):
            if text:
                understand(text)
        return self.prior.encode_text(prompt, negative_prompt)

    @torch.no_grad()
    def describe(self, images: Float[Tensor, "b 3 h w"], cameras: Cameras) -> tuple[list[str], None]:
        """What the judge calls each picture ("red mug"); how far it is from the world's pictures is not known."""
        return [f"{colour} {kind}" for colour, kind, _ in names(self.judge(images))], None


def in_views(prompt: str) -> Sequence[str]:
    """The prompt in each of VIEWS, as captions say it: sides are named only where every kind asked for has a front."""
    fronted = all(kind in FRONTED for kind in understand(prompt).kinds)
    return [with_view_word(prompt, view) if fronted or view == "overhead" else prompt for view in VIEWS]


@contextmanager
def _no_bars() -> Iterator[None]:
    """For files of megabytes that are already here."""
    import diffusers.utils.logging
    import transformers.utils.logging

    shown = [
        log for log in (diffusers.utils.logging, transformers.utils.logging) if log.is_progress_bar_enabled()
    ]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()
