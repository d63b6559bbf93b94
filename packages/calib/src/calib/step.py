"""One step of the game, for a loop of your own: the critics learn, then the calibrator.

>>> game = Game(calibrator, features, critics, calibrator_optimizer, critics_optimizer, Weights())
>>> parts = game.play([(Batch(source, target, clean_source, clean_target), patch)])

The released code computes everything twice: the critics' step keeps (and throws away) the gradients of calibrator
and classifier, the calibrator's step calibrates again, and the features of clean images, constants under a frozen
classifier, are computed at every step.  Here one forward pass serves both and the clean features come from a table:
the same gradients (a test compares them) for less than half the cost.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from shared_core.ops.gradients import average_gradients, norm_of
from shared_core.ops.inputs import check_images
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from calib.critics import FeatureCritic, Patch, PixelCritic, PixelwiseFeatureCritic
from calib.features import Answer, Features
from calib.losses import agreement_loss, calibrator_loss, critic_loss


@dataclass(frozen=True)
class Weights:
    """Weights of equation 7: of its pixel terms, its feature terms, and of the source group in both.

    Two further terms are ours and off unless they are weighed: `views`, that calibrated target images are named as
    their surest views are (:mod:`calib.views`), and `hold`, that calibrated source images are named as without the
    calibrator.
    """

    pixel: float = 1.0
    feature: float = 1.0
    source: float = 0.1
    views: float = 0.0
    hold: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"weights.{name} is {value!r}; it must be a finite number from 0 up")

    def name_classes(self) -> bool:
        """Whether a term asks which class an image is given."""
        return self.views > 0 or self.hold > 0


class Critics(nn.Module):
    """The critics of a game; leave one out by None.  Without a feature critic no classifier is needed.

    Without both nobody plays, and the terms of :class:`Weights` that name classes are all that teaches.
    """

    def __init__(
        self, pixel: PixelCritic | None, feature: FeatureCritic | PixelwiseFeatureCritic | None
    ) -> None:
        super().__init__()
        self.pixel, self.feature = pixel, feature

    @property
    def playing(self) -> bool:
        """Whether there is any."""
        return self.pixel is not None or self.feature is not None


def default_critics(channels: int, patch: int, example: Tensor | None, weights: Weights) -> Critics:
    """A pixel critic, and a feature critic for features like `example`; a weight of 0 leaves its critic out."""
    pixel = PixelCritic(channels, patch) if weights.pixel > 0 else None
    if example is None or weights.feature == 0:
        return Critics(pixel, None)
    if example.dim() == 4:
        return Critics(pixel, PixelwiseFeatureCritic(example.shape[1]))
    return Critics(pixel, FeatureCritic(example[0].numel()))


class Batch(NamedTuple):
    """Images of both domains and the classifier's features of them (None without a feature critic).

    `held`: classes of the source images without the calibrator.  `taught`: what the views of the target images say.
    `peaks`: the largest absolute value of the source and of the target images as they came.  It is not finite where
    they held a value that is not, which was filled in: the step runs as usual, and its judge refuses it.
    """

    source: Float[Tensor, "source channels height width"]
    target: Float[Tensor, "target channels height width"]
    clean_source: Tensor | None
    clean_target: Tensor | None
    held: Int64[Tensor, " source"] | None = None
    taught: Float[Tensor, "target classes"] | None = None
    peaks: Float[Tensor, " 2"] | None = None


class CalibratedBatch(NamedTuple):
    """Calibrated images of both domains, their features and logits (None where not asked for), with gradient."""

    source: Tensor
    target: Tensor
    source_features: Tensor | None
    target_features: Tensor | None
    source_logits: Tensor | None = None
    target_logits: Tensor | None = None


Ask = Features | Callable[[Tensor], Tensor]
"""The classifier's features of images; :class:`calib.features.Features` gives its logits, too."""


def calibrate(calibrator: nn.Module, features: Ask | None, batch: Batch) -> CalibratedBatch:
    """Both domains through the calibrator and, where a feature critic plays, through the classifier."""
    check_images("batch.source", batch.source)
    check_images("batch.target", batch.target)
    if batch.source.shape[1:] != batch.target.shape[1:]:
        source, target = calibrator(batch.source), calibrator(batch.target)
        if features is None:
            return CalibratedBatch(source, target, None, None)
        s, t = _answer(features, source), _answer(features, target)
        return CalibratedBatch(source, target, s.features, t.features, s.logits, t.logits)
    # In one pass: nothing in either net looks across images.
    parts = [len(batch.source), len(batch.target)]
    together = calibrator(torch.cat([batch.source, batch.target]))
    source, target = together.split(parts)
    if features is None:
        return CalibratedBatch(source, target, None, None)
    answer = _answer(features, together)
    logits = (None, None) if answer.logits is None else answer.logits.split(parts)
    return CalibratedBatch(source, target, *answer.features.split(parts), *logits)


def _answer(features: Ask, images: Tensor) -> Answer:
    return features.answer(images) if isinstance(features, Features) else Answer(features(images), None)


def critics_loss(
    critics: Critics, batch: Batch, calibrated: CalibratedBatch, patch: Patch | None
) -> dict[str, Float[Tensor, ""]]:
    """Equations 5 and 6 by name; no gradient reaches the calibrator."""
    _check_patch(critics, patch)
    if critics.feature is not None and (batch.clean_source is None or batch.clean_target is None):
        raise ValueError(
            "there is a feature critic: give batch.clean_source and batch.clean_target, or leave it out"
        )
    parts = {}
    if critics.pixel is not None and patch is not None:
        groups = (batch.source, batch.target, calibrated.source, calibrated.target)
        parts["critic_pixel"] = critic_loss([critics.pixel(images.detach(), patch) for images in groups])
    if critics.feature is not None:
        found = (
            batch.clean_source,
            batch.clean_target,
            calibrated.source_features,
            calibrated.target_features,
        )
        parts["critic_feature"] = critic_loss([critics.feature(f.detach()) for f in found if f is not None])
    return parts


def deception_loss(
    critics: Critics, calibrated: CalibratedBatch, patch: Patch | None, weights: Weights
) -> dict[str, Float[Tensor, ""]]:
    """Equation 7 by name, weighted: how far both calibrated groups are from passing for source."""
    _check_patch(critics, patch)
    parts = {}
    if critics.pixel is not None and patch is not None:
        parts["pixel"] = weights.pixel * calibrator_loss(
            critics.pixel(calibrated.source, patch), critics.pixel(calibrated.target, patch), weights.source
        )
    if critics.feature is not None:
        if calibrated.source_features is None or calibrated.target_features is None:
            raise ValueError(
                "there is a feature critic, and features of the calibrated images are missing: give features"
            )
        parts["feature"] = weights.feature * calibrator_loss(
            critics.feature(calibrated.source_features),
            critics.feature(calibrated.target_features),
            weights.source,
        )
    return parts


def naming_loss(batch: Batch, calibrated: CalibratedBatch, weights: Weights) -> dict[str, Float[Tensor, ""]]:
    """The terms `views` and `hold` of :class:`Weights` by name, weighted.

    Raises ValueError where the batch lacks what a term is measured against, or the calibrated batch its logits.
    """
    parts = {}
    if weights.views:
        if batch.taught is None or calibrated.target_logits is None:
            raise ValueError(
                "weights.views needs batch.taught, and features that are a calib.features.Features"
            )
        parts["views"] = weights.views * agreement_loss(calibrated.target_logits, batch.taught)
    if weights.hold:
        if batch.held is None or calibrated.source_logits is None:
            raise ValueError("weights.hold needs batch.held, and features that are a calib.features.Features")
        parts["hold"] = weights.hold * cross_entropy(calibrated.source_logits.float(), batch.held)
    return parts


class Game:
    """Both players with their optimizers; `play` is one step of it.

    Args:
        features: the classifier's features, with gradient to the images; unused without a feature critic, unless
            the weights name classes.
        critics_optimizer: None where no critic plays.
        accelerator: accelerate's, for precision and devices; None computes plainly.

    Raises:
        ValueError: there is no critic and no view: nothing would teach.
    """

    def __init__(
        self,
        calibrator: nn.Module,
        features: Ask | None,
        critics: Critics,
        calibrator_optimizer: Any,
        critics_optimizer: Any,
        weights: Weights,
        accelerator: Any = None,
    ) -> None:
        if not critics.playing and not weights.views:
            raise ValueError(
                "there is no critic: give a pixel critic, a feature critic, both, or weights.views above 0"
            )
        self.calibrator, self.critics, self.weights = calibrator, critics, weights
        self.features = features if critics.feature is not None or weights.name_classes() else None
        self.calibrator_optimizer, self.critics_optimizer = calibrator_optimizer, critics_optimizer
        self.moved: frozenset[str] = frozenset()
        self.left_out = False
        self._backward = accelerator.backward if accelerator else torch.Tensor.backward
        self._autocast = accelerator.autocast if accelerator else nullcontext
        scaled = accelerator is not None and getattr(accelerator, "scaler", None) is not None
        self._unscale = accelerator.unscale_gradients if scaled else None

    def play(
        self,
        rounds: Sequence[tuple[Batch, Patch | None]],
        usable: Callable[[dict[str, Tensor]], bool] = lambda _parts: True,
    ) -> dict[str, Tensor]:
        """The critics' step, then the calibrator's; the parts of the loss by name, and the gradient's norm.

        With several rounds the gradients of all of them make one step, of both players at the end (the released
        segmentation script's order).

        `usable` judges the step once, so that the CPU waits for the device once: it sees all parts and the norms of
        both gradients before the calibrator moves.  On False the calibrator stays; the critics, which move first in a
        single round, are put back by :class:`calib.players.Players`.  `moved` names the players that moved, and
        `left_out` says whether a loss scaler left out a step that was usable.
        """
        critics_parts: dict[str, Tensor] = {}
        calibrator_parts: dict[str, Tensor] = {}
        judged = _peaks(rounds)
        moved: set[str] = set()
        critics_norm: Tensor | None = None
        share = 1 / len(rounds)
        for batch, patch in rounds:
            with self._autocast():
                calibrated = calibrate(self.calibrator, self.features, batch)
                parts = critics_loss(self.critics, batch, calibrated, patch)
            _add(critics_parts, parts, share)
            if self.critics.playing:
                self._backward(share * torch.stack(list(parts.values())).sum())
                if len(rounds) == 1:
                    critics_norm = average_gradients(self.critics)
                    moved |= self._moved("critics", self.critics_optimizer)
            with self._autocast(), _fixed(self.critics):
                deceived = deception_loss(self.critics, calibrated, patch, self.weights)
                deceived |= naming_loss(batch, calibrated, self.weights)
            _add(calibrator_parts, deceived, share)
            self._backward(share * torch.stack(list(deceived.values())).sum())
        if self.critics.playing and len(rounds) > 1:
            critics_norm = average_gradients(self.critics)
        norm = average_gradients(self.calibrator)

        # In the order in which they come about, so that the first that is not finite is the cause.
        judged |= critics_parts
        if critics_norm is not None:
            judged["critics_gradient_norm"] = critics_norm
        usable_step = usable({**judged, **calibrator_parts, "gradient_norm": norm})
        if usable_step and self.critics.playing and len(rounds) > 1:
            moved |= self._moved("critics", self.critics_optimizer)
        # A step that a loss scaler leaves out for the critics is none for the calibrator either.
        if usable_step and ("critics" in moved or not self.critics.playing):
            if self._unscale is not None:
                # Until here the gradients, and their norm, hold the factor of a loss scaler.  It is taken out behind
                # the average, so that an overflow of one process is one of all.
                self._unscale(self.calibrator_optimizer)
                norm = norm_of(self.calibrator)
            moved |= self._moved("calibrator", self.calibrator_optimizer)
        self.calibrator_optimizer.zero_grad()
        if self.critics.playing:
            self.critics_optimizer.zero_grad()
        self.moved, self.left_out = frozenset(moved), usable_step and "calibrator" not in moved
        return {**critics_parts, **calibrator_parts, "gradient_norm": norm}

    @staticmethod
    def _moved(name: str, optimizer: Any) -> set[str]:
        """Step, and say whether the player moved: under a loss scaler accelerate's optimizer may leave a step out."""
        optimizer.step()
        optimizer.zero_grad()
        return set() if getattr(optimizer, "step_was_skipped", False) else {name}


def _peaks(rounds: Sequence[tuple[Batch, Patch | None]]) -> dict[str, Tensor]:
    """The peaks of all batches that have some, by domain."""
    found = [batch.peaks for batch, _ in rounds if batch.peaks is not None]
    if not found:
        return {}
    source, target = torch.stack(found).amax(0).unbind()
    return {"source_images": source, "target_images": target}


def _add(total: dict[str, Tensor], parts: dict[str, Tensor], share: float) -> None:
    for name, part in parts.items():
        total[name] = total.get(name, 0) + share * part.detach()


def _check_patch(critics: Critics, patch: Patch | None) -> None:
    if critics.pixel is not None and patch is None:
        raise ValueError(
            "there is a pixel critic and no patch: draw one with calib.critics.draw_patch, or leave the critic out"
        )


@contextmanager
def _fixed(module: nn.Module) -> Iterator[None]:
    """No gradients for the module's own parameters inside."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
