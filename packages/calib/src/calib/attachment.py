"""Put a calibrator in front of a classifier, prove that the classifier stays as it is, take it off again.

>>> model = attach(classifier, Calibrator(channels=3, epsilon=0.2))
>>> answers = model(images)               # classifier(calibrator(images))
>>> model.logits(images)                  # the same as logits of two classes or more, whatever the classifier gives
>>> model.verify()                        # raises if one bit of the classifier changed
>>> classifier = model.detach()           # as it came: modes and requires_grad as before
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from shared_core.ops.freeze import changed, checksums, freeze, modes, restore_modes
from shared_core.ops.inputs import check_images, copy_for
from shared_core.ops.outputs import Which
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from calib.answers import Reading, check_outputs, pick, settled
from calib.blackbox import gives_gradient
from calib.calibrator import Calibrator, ValueRange
from calib.features import Features


class ClassifierChangedError(RuntimeError):
    """The attached classifier is no longer what it was; the message names what changed."""


class CalibratedClassifier(nn.Module):
    """classifier(calibrator(x)), with the classifier frozen: parameters, buffers, eval mode.

    `output` and `outputs` are those of :func:`attach`; `outputs` is "auto" until it is decided.
    """

    def __init__(
        self, classifier: nn.Module, calibrator: Calibrator, output: Which = None, outputs: str = "auto"
    ) -> None:
        super().__init__()
        check_outputs(outputs)
        # Not as a submodule: what runs is the net inside, which one process needs no more around.
        self._given = (classifier,)
        if isinstance(classifier, DistributedDataParallel | DataParallel):
            classifier = classifier.module
        self._modes = modes(classifier)
        self._trainable = {name: p.requires_grad for name, p in classifier.named_parameters()}
        self.calibrator, self.classifier = calibrator, classifier
        self.output, self.outputs = output, outputs
        freeze(classifier)
        self.checksums = checksums(classifier)

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        alpha: float | Float[Tensor, ""] | Float[Tensor, " batch"] = 1.0,
    ) -> Tensor:
        """The classifier's answer to the calibrated images, of several parts the one that is `output`.

        `alpha=0` is the classifier alone.
        """
        return pick(self._answer(self.calibrator(images, alpha)), self.output)

    def logits(
        self,
        images: Float[Tensor, "batch channels height width"],
        alpha: float | Float[Tensor, ""] | Float[Tensor, " batch"] = 1.0,
    ) -> Float[Tensor, "batch classes ..."]:
        """The same as logits of two classes or more: of probabilities their logarithm, of one column both classes."""
        return self.ask(self.calibrator(images, alpha))

    def ask(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes ..."]:
        """Logits of the classifier alone."""
        check_images("images", images)
        self.settle(images)
        return self.read(self._answer(images))

    def read(self, answer: Any) -> Float[Tensor, "batch classes ..."]:
        """Logits of an answer of the classifier."""
        return self.reading(answer)

    def settle(self, images: Float[Tensor, "batch channels height width"]) -> str:
        """Decide what the classifier's answers are, if that is open; see `meaning`.

        Asked are 16 images: of those given, or random ones of their size where they are fewer, so that no decision
        hangs on the batch at hand.

        Raises ValueError where `outputs` has to be said, see :func:`calib.answers.decide`.
        """
        check_images("images", images)
        if self.outputs != "auto":
            return self.meaning
        low, high = self.calibrator.low.to(images), self.calibrator.high.to(images)
        self.outputs = settled(self._answer, images, self.output, low, high)
        logging.getLogger("calib").info("the classifier's answers are taken for %s", self.meaning)
        return self.meaning

    @property
    def reading(self) -> Reading:
        """How its logits are read out of the classifier's answers; while that is open, as logits."""
        return Reading(self.output, "logits" if self.outputs == "auto" else self.outputs)

    @property
    def meaning(self) -> str:
        """What the classifier gives: "logits" or "probabilities", or "auto" while that is open."""
        # An ONNX file's answers are logits by the time they come here.
        inner = getattr(self.classifier, "outputs", None)
        return "probabilities" if inner == "probabilities" else self.outputs

    def features(self, kind: str = "softmax", stride: int = 1) -> Features:
        """What a feature critic sees of the classifier, see :class:`calib.features.Features`."""
        return Features(self.classifier, kind, stride, self.read)

    def _answer(self, images: Tensor) -> Any:
        # A copy: a classifier may write into what it is given, and others still read it.
        return self.classifier(copy_for(self.classifier, images))

    def train(self, mode: bool = True) -> "CalibratedClassifier":
        """Sets the mode of the calibrator; the classifier stays in eval mode."""
        self.training = mode
        self.calibrator.train(mode)
        self.classifier.eval()
        return self

    def verify(self) -> None:
        """Raises ClassifierChangedError if a parameter or buffer differs by one bit, or a part left eval mode."""
        names = changed(self.checksums, checksums(self.classifier))
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ClassifierChangedError(
                f"the classifier changed since it was attached: {', '.join(names[:5])}{more}; "
                "something trained it, or a layer or hook of it writes its own state"
            )
        training = [name or "the whole" for name, training in modes(self.classifier).items() if training]
        if training:
            raise ClassifierChangedError(
                f"the classifier left eval mode ({', '.join(training[:5])}): call eval() on it, or its dropout and "
                "batch statistics act on every answer"
            )

    def unchanged(self) -> bool:
        """Whether :meth:`verify` would pass."""
        try:
            self.verify()
        except ClassifierChangedError:
            return False
        return True

    def detach(self) -> nn.Module:
        """The classifier with the modes and requires_grad flags it came with; the calibrator stays usable."""
        restore_modes(self.classifier, self._modes)
        for name, parameter in self.classifier.named_parameters():
            parameter.requires_grad_(self._trainable[name])
        return self._given[0]

    def parameter_ratio(self) -> float | None:
        """Parameters of the calibrator over those of the classifier; None of one that shows none (ONNX, int8)."""
        own, its = (sum(p.numel() for p in part.parameters()) for part in (self.calibrator, self.classifier))
        return own / its if its else None


def attach(
    classifier: nn.Module,
    calibrator: Calibrator,
    value_range: ValueRange | None = None,
    output: Which = None,
    outputs: str = "auto",
) -> CalibratedClassifier:
    """Freeze `classifier` and put `calibrator` in front of it.

    A classifier in training mode is put into eval mode, and back by `detach`.  `value_range` says in which range
    its images come (:meth:`Calibrator.set_value_range`); without it the calibrator keeps its own.

    Args:
        classifier: any module, TorchScript, compiled or under activation checkpoints, too.  Of DistributedDataParallel
            and DataParallel the net inside answers; `detach` gives back what was given.
        output: which part of its answer names the classes, where it is a dict, tuple, dataclass or list: a name, a
            place, or a function of the answer; by default the obvious one ("logits", "out", "pred" ...).
        outputs: what that is, "logits", "probabilities" (of one column: of the second of two classes), or "auto":
            decided once, on several images.

    Raises:
        TypeError: not an nn.Module, or one that has a calibrator already; a calibrator that is none.
    """
    if not isinstance(classifier, nn.Module):
        raise TypeError(
            f"the classifier is a {type(classifier).__name__}, not an nn.Module: wrap it into a module whose forward "
            "takes images and returns logits (calib.OnnxClassifier does so for an ONNX file)"
        )
    if isinstance(classifier, CalibratedClassifier):
        raise TypeError(
            "this classifier has a calibrator already: attach to its .classifier, or detach() first"
        )
    if not isinstance(calibrator, Calibrator):
        raise TypeError(
            f"the calibrator is a {type(calibrator).__name__}: give a calib.Calibrator as the second argument"
        )
    check_outputs(outputs)
    if value_range is not None:
        calibrator.set_value_range(value_range)
    device = next((p.device for p in classifier.parameters()), None)
    calibrator = calibrator if device is None else calibrator.to(device)
    return CalibratedClassifier(classifier, calibrator, output, outputs)


@contextmanager
def drifting(model: CalibratedClassifier) -> Iterator[None]:
    """The released code's fault, for comparison: the classifier in training mode, so that its buffers move."""
    model.classifier.train()
    try:
        yield
    finally:
        model.classifier.eval()


def probe(
    model: CalibratedClassifier, features: Features, images: Float[Tensor, "batch channels height width"]
) -> Tensor:
    """Features of a few images, after making sure that the classifier can be adapted through them.

    Raises:
        ValueError: the classifier gives no gradient to its input, or answers with something not finite.
        ClassifierChangedError: it writes its own state while it answers.
    """
    with torch.no_grad():
        answer = features(images)
    model.verify()
    if not gives_gradient(model.classifier, images, model.read):
        raise ValueError(
            "the classifier gives no gradient to its input (int8, ONNX, or under no_grad): adapt with pixels only "
            "(feature_weight=0), or train on a differentiable stand-in (calib.blackbox.distil_surrogate)"
        )
    if not bool(answer.isfinite().all()):
        raise ValueError("the classifier answers the source images with values that are not finite")
    return answer
