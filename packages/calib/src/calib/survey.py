"""A survey of the target: what the surest views of every image say, agreed on among neighbours, asked now and then.

>>> survey = Survey(teacher, target, Neighbours(count=5), seed=0, device=device)
>>> survey.ask(turn=0)
>>> taught = survey.teach(images.places)
"""

from collections.abc import Callable, Iterable, Mapping, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from shared_core.ops.gather import once
from shared_core.ops.host import read_back
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from calib.domains import Domain
from calib.neighbours import Neighbours, agree, check_enough, looks_and_answers, nearest, upright
from calib.validation import VALIDATION_BATCH
from calib.views import Teacher, view_draws


def draw(target: Dataset | Iterable[Any], images: int, seed: int) -> Dataset:
    """The target, or that many of its images, drawn once: all of them are asked about and compared with each other.

    Raises ValueError where the target is not a data set: a loader does not say which image is which.
    """
    if not isinstance(target, Dataset) or isinstance(target, IterableDataset):
        raise ValueError(
            "neighbours are sought among all target images, and this target is an iterable of batches: "
            "give a data set, or neighbours.count 0"
        )
    size = len(cast(Sized, target))
    if size <= images:
        return target
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return Subset(target, order[:images].sort().values.tolist())


class Survey:
    """The teacher of :mod:`calib.views` and neighbours in one.

    Of several processes each asks about batches in turn, and the first one finds the neighbours and what they agree on:
    every process must make it, and call `ask`.

    Answers of one survey and the next are averaged, each with half the weight of the rest: views are drawn anew, and
    the calibrator through which they are seen gets better.  `autocast` is accelerate's, for precision.

    Raises:
        ValueError: the target is not larger than the number of neighbours.
    """

    def __init__(
        self,
        teacher: Teacher,
        target: Domain,
        how: Neighbours,
        seed: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.teacher, self.target, self.how, self.seed, self.device = teacher, target, how, seed, device
        self.autocast, self.views = autocast, teacher.views
        check_enough(target.size, how.count)
        looks = target.all_images(VALIDATION_BATCH, lambda pixels, _start: upright(pixels))
        self.looks = torch.cat(list(looks))
        self.neighbours = None if how.answers else once(lambda: nearest(self.looks, how.count))
        self.answers: Tensor | None = None
        self._taught: Tensor | None = None

    @torch.no_grad()
    def ask(self, turn: int) -> None:
        """Ask about every image anew; the views are a function of (seed, turn, image)."""
        # The neighbours decide what is too doubtful, not the single answer.
        teacher = Teacher(self.teacher.answers, replace(self.teacher.views, threshold=0.0))
        teacher.zooms = self.teacher.zooms

        def taught(pixels: Tensor, start: int) -> Tensor:
            draws = view_draws(self.seed, turn, range(start, start + len(pixels)), teacher.views.count)
            with torch.no_grad(), self.autocast():
                said = teacher.teach(pixels.to(self.device), draws)
            return read_back(said, "what do the views say of all images?")

        found = torch.cat(list(self.target.all_images(VALIDATION_BATCH, taught)))
        self._settle(found if self.answers is None else (self.answers + found) / 2)

    def teach(self, places: Int64[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
        """Probabilities of the images at `places`, or zeros where there is too much doubt."""
        if self._taught is None:
            raise RuntimeError("nothing was asked yet: call ask first")
        return self._taught[places.cpu()].to(self.device)

    def _settle(self, answers: Float[Tensor, "images classes"]) -> None:
        self.answers = answers

        def settled() -> Tensor:
            neighbours = self.neighbours
            if neighbours is None:
                together = looks_and_answers(self.looks, answers, self.how.answers)
                neighbours = nearest(together, self.how.count)
            return agree(answers, neighbours, self.how)

        agreed = once(settled)
        self._taught = agreed * (agreed.amax(1, keepdim=True) > self.how.threshold)

    def state_dict(self) -> dict[str, Any]:
        """The answers so far; neighbours are found again."""
        return {"answers": self.answers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts them back."""
        if state["answers"] is not None:
            self._settle(state["answers"])
