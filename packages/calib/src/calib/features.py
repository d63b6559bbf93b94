"""What the feature critic sees of a classifier: its softmax, its logits, or a layer by name.

>>> features = Features(classifier, "softmax")          # or "logits", "layer:NAME"
>>> features(images), features.answer(images).logits
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from shared_core.ops.features import FeatureCapture
from shared_core.ops.inputs import check_images, copy_for
from torch import Tensor, nn

from calib.answers import pick


class Answer(NamedTuple):
    """What a classifier says of a batch; logits are None where nobody asked for them."""

    features: Tensor
    logits: Tensor | None


class Features:
    """What the feature critic sees of the classifier: "softmax" (default), "logits" or "layer:NAME".

    Of feature maps (a segmentation net's scores) it sees every `stride`-th pixel of every `stride`-th row.
    `read` makes logits of the classifier's answer; :meth:`calib.CalibratedClassifier.features` gives its own.
    """

    def __init__(
        self,
        classifier: nn.Module,
        kind: str = "softmax",
        stride: int = 1,
        read: Callable[[Any], Tensor] = pick,
    ) -> None:
        if not isinstance(classifier, nn.Module):
            raise TypeError(f"the classifier is a {type(classifier).__name__}; give an nn.Module")
        if stride < 1:
            raise ValueError(f"stride is {stride}; it counts from 1")
        if kind not in ("softmax", "logits"):
            # A layer is sought, and called, inside the wrapper that torch.compile(net) makes.
            classifier = getattr(classifier, "_orig_mod", classifier)
        self.classifier, self.kind, self.stride, self.read = classifier, kind, stride, read
        layer = kind.removeprefix("layer:")
        if kind not in ("softmax", "logits") and layer == kind:
            raise ValueError(f"feature is {kind!r}; choose softmax, logits or layer:NAME")
        self._capture = None if kind in ("softmax", "logits") else FeatureCapture(classifier, [layer])

    def __call__(self, images: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Features of a batch, with gradient to the images."""
        return self.answer(images).features

    def answer(self, images: Float[Tensor, "batch channels height width"]) -> Answer:
        """Features and logits of a batch, of one pass of the classifier."""
        check_images("images", images)
        # A copy: a classifier may write into what it is given, and the pixel critic reads it afterwards.
        images = copy_for(self.classifier, images)
        if self._capture is not None:
            with self._capture:
                logits = self.read(self.classifier(images))
            (features,) = self._capture.pop().values()
        else:
            logits = features = self.read(self.classifier(images))
        if self.kind == "softmax":
            features = logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))
        if features.dim() == 4:
            features = features[..., :: self.stride, :: self.stride]
        return Answer(features, logits)
