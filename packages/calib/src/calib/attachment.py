"""Put a calibrator in front of a classifier, prove that the classifier stays as it is, take it off again.

>>> model = attach(classifier, Calibrator(channels=3, epsilon=0.2))
>>> logits = model(images)                # classifier(calibrator(images))
>>> model.verify()                        # raises if one bit of the classifier changed
>>> classifier = model.detach()           # as it came: modes and requires_grad as before
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from shared_core.ops.freeze import changed, checksums, freeze
from torch import Tensor, nn

from calib.blackbox import gives_gradient
from calib.calibrator import Calibrator, ValueRange
from calib.features import Features


class ClassifierChangedError(RuntimeError):
    """The attached classifier is no longer what it was; the message names what changed."""


class CalibratedClassifier(nn.Module):
    """classifier(calibrator(x)), with the classifier frozen: parameters, buffers, eval mode."""

    def __init__(self, classifier: nn.Module, calibrator: Calibrator) -> None:
        super().__init__()
        self._modes = {name: module.training for name, module in classifier.named_modules()}
        self._trainable = {name: p.requires_grad for name, p in classifier.named_parameters()}
        self.calibrator, self.classifier = calibrator, classifier
        freeze(classifier)
        self.checksums = checksums(classifier)

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        alpha: float | Float[Tensor, ""] | Float[Tensor, " batch"] = 1.0,
    ) -> Tensor:
        """The classifier's answer to the calibrated images; `alpha=0` is the classifier alone."""
        return self.classifier(self.calibrator(images, alpha))

    def train(self, mode: bool = True) -> "CalibratedClassifier":
        """Sets the mode of the calibrator; the classifier stays in eval mode."""
        super().train(mode)
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
        training = [
            name or "the whole" for name, module in self.classifier.named_modules() if module.training
        ]
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
        for name, module in self.classifier.named_modules():
            module.training = self._modes[name]
        for name, parameter in self.classifier.named_parameters():
            parameter.requires_grad_(self._trainable[name])
        return self.classifier

    def parameter_ratio(self) -> float | None:
        """Parameters of the calibrator over those of the classifier; None of one that shows none (ONNX, int8)."""
        own, its = (sum(p.numel() for p in part.parameters()) for part in (self.calibrator, self.classifier))
        return own / its if its else None


def attach(
    classifier: nn.Module, calibrator: Calibrator, value_range: ValueRange | None = None
) -> CalibratedClassifier:
    """Freeze `classifier` and put `calibrator` in front of it.

    A classifier in training mode is put into eval mode, and back by `detach`.  `value_range` says in which range
    its images come (:meth:`Calibrator.set_value_range`); without it the calibrator keeps its own.

    Raises:
        TypeError: not an nn.Module, or one that has a calibrator already.
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
    if value_range is not None:
        calibrator.set_value_range(value_range)
    device = next((p.device for p in classifier.parameters()), None)
    return CalibratedClassifier(classifier, calibrator if device is None else calibrator.to(device))


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
    if not gives_gradient(model.classifier, images):
        raise ValueError(
            "the classifier gives no gradient to its input (int8, ONNX, or under no_grad): adapt with pixels only "
            "(feature_weight=0), or train on a differentiable stand-in (calib.blackbox.distil_surrogate)"
        )
    if not bool(answer.isfinite().all()):
        raise ValueError("the classifier answers the source images with values that are not finite")
    return answer
