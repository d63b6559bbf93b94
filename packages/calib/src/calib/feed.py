"""What the steps of an adaptation are fed: images of both domains, and what the classifier says of them as they are.

>>> feed = Feed([source, target], features, model.ask, weights, seed=0, device=device)
>>> feed.fill_tables(images=steps * batch_size)
>>> batch = feed.next_batch(turn=0)
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from shared_core.ops.host import read_back
from torch import Tensor

from calib.domains import Domain
from calib.features import Features
from calib.step import Batch, Weights
from calib.survey import Survey
from calib.validation import VALIDATION_BATCH
from calib.views import STUDENT, Teacher, shaken, view_draws

TABLE_LIMIT = 2**27
"""Clean features are kept in a table up to this many numbers (512 MB)."""


class Feed:
    """Source and target, one :class:`calib.step.Batch` after the other.

    The features of clean images are constants under a frozen classifier: :meth:`fill_tables` computes them once where
    that pays.  Where no feature critic compares them (`judged`), only the source is asked, and only to be held.
    A teacher's `views.shake` moves the target images; what is taught of them is of the images as they are.
    `autocast` is accelerate's, for precision.
    """

    def __init__(
        self,
        domains: list[Domain],
        features: Features | None,
        classifier: Callable[[Tensor], Tensor],
        weights: Weights,
        seed: int,
        device: torch.device,
        teacher: Teacher | Survey | None = None,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
        judged: bool = True,
    ) -> None:
        self.domains, self.features, self.classifier, self.weights = domains, features, classifier, weights
        self.asked = (judged or weights.hold > 0, judged)
        self.seed, self.device, self.teacher, self.autocast = seed, device, teacher, autocast
        self.shake = teacher.views.shake if teacher else 0.0
        self.tables: list[Tensor | None] = [None, None]

    def seek(self, turn: int) -> None:
        """Go on with batch number `turn`."""
        for domain in self.domains:
            domain.seek(turn)

    @torch.no_grad()
    def fill_tables(self, images: int) -> None:
        """Compute the clean features of every domain of which `images` images show each at least once."""
        # Shaken images are new ones at every turn.
        wanted = (self.asked[0], self.asked[1] and not self.shake)
        for number, (domain, asked) in enumerate(zip(self.domains, wanted, strict=True)):
            if self.features is None or domain.dataset is None or images < domain.size or not asked:
                continue
            table, filled = None, 0
            for found in domain.all_images(VALIDATION_BATCH, self._features):
                if domain.size * found[0].numel() > TABLE_LIMIT:
                    break
                if table is None:
                    table = found.new_empty(domain.size, *found.shape[1:])
                table[filled : filled + len(found)] = found
                filled += len(found)
            self.tables[number] = table

    @torch.no_grad()
    def _features(self, pixels: Tensor, _start: int) -> Tensor:
        assert self.features is not None
        with self.autocast():
            found = self.features(pixels.to(self.device))
        return read_back(found, "features of clean images, once")

    @torch.no_grad()
    def next_batch(self, turn: int) -> Batch:
        """The next images of both domains; the views of a target image are a function of (seed, turn, image)."""
        source, target = (domain.next_batch(self.device) for domain in self.domains)
        peaks = None
        if source.peak is not None and target.peak is not None:
            peaks = torch.stack([source.peak, target.peak])
        # A loader does not say which image is which: there its place in the batch has to do.
        places = range(len(target.pixels)) if target.places is None else target.places.tolist()
        seen = target
        if self.shake:
            draws = view_draws(self.seed, turn, places, 1, STUDENT)
            seen = target._replace(pixels=shaken(target.pixels, self.shake, draws))
        with self.autocast():
            clean = [
                None
                if self.features is None or not asked
                else self.features(images.pixels)
                if table is None
                else table[images.places].to(self.device)
                for asked, table, images in zip(self.asked, self.tables, (source, seen), strict=True)
            ]
            held = self._classes(source.pixels, clean[0]) if self.weights.hold else None
            taught = None
            if isinstance(self.teacher, Survey):
                assert target.places is not None
                taught = self.teacher.teach(target.places)
            elif self.teacher is not None:
                draws = view_draws(self.seed, turn, places, self.teacher.views.count)
                taught = self.teacher.teach(target.pixels, draws)
        return Batch(source.pixels, seen.pixels, clean[0], clean[1], held, taught, peaks)

    def _classes(self, images: Float[Tensor, "batch channels height width"], clean: Tensor | None) -> Tensor:
        """What the classifier calls the images; softmax and logits say so already."""
        if clean is not None and self.features is not None and self.features.kind in ("softmax", "logits"):
            return clean.argmax(1)
        return self.classifier(images).argmax(1)
