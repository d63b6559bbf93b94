"""The common form of all baselines: what they are given, what they give back, how they draw and find features."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from shared_core.data.augment import to_float
from shared_core.data.sampling import shuffled_plan
from shared_core.ops.features import FeatureCapture
from shared_core.ops.inputs import ANY, check_images
from shared_core.ops.outputs import Which
from shared_core.ops.targets import class_numbers
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calib.answers import PROBES, Reading, check_outputs, settled


class Labelled(NamedTuple):
    """Images [n, c, h, w], float in [0, 1] or uint8, and their classes [n]."""

    images: Tensor
    labels: Int64[Tensor, " n"]


class Adapted(NamedTuple):
    """What came out.

    `predict` takes images as in :class:`Labelled` of either domain and gives logits [n, classes].
    `touched` says what of the classifier differs from the given one: "nothing", "buffers",
    "batch-norm weights" (buffers too), or "new model".  `net` is the copy behind `predict`, with the given one's names.
    """

    predict: Callable[[Tensor], Tensor]
    touched: str
    net: nn.Module


@dataclass(frozen=True)
class Settings:
    """What the methods read; each names in its docstring which of them.

    `epsilon` is a share of the value range, as in :class:`calib.Calibrator`.  `output` and `outputs` say which part of
    the classifier's answer is the logits, as in :func:`calib.attach`; all methods read them.
    """

    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 3e-4
    epsilon: float = 0.2
    coral_weight: float = 100.0
    domain_weight: float = 1.0
    domain_hidden: int = 500
    tent_learning_rate: float = 1e-3
    tent_batch_size: int = 200
    output: Which = None
    outputs: str = "auto"

    def __post_init__(self) -> None:
        check_outputs(self.outputs)
        for name, value in vars(self).items():
            if name not in ("output", "outputs") and not 0 < value < float("inf"):
                raise ValueError(f"settings.{name} is {value}; it must be above 0")


class NotApplicableError(ValueError):
    """The method needs something that this classifier does not have; the message names it."""


class FeatureNet(nn.Module):
    """A copy of a classifier that gives (logits, features): features are the input of its last linear layer.

    With `images` how logits are read out of its answers is decided on them by `settings`; else they are logits, alone
    or as the obvious part.

    Raises NotApplicableError for a net without a linear layer.
    """

    def __init__(
        self, classifier: nn.Module, images: Tensor | None = None, settings: Settings | None = None
    ) -> None:
        super().__init__()
        net = copied(classifier)
        linear = [name for name, module in net.named_modules() if name and isinstance(module, nn.Linear)]
        if not linear:
            raise NotApplicableError(
                "the classifier has no linear layer, whose input would be its features: "
                "use a method that needs none (source_only, moment_matching, bn_adapt, tent)"
            )
        self.head = net.get_submodule(linear[-1])
        # An identity before the head, whose output can be captured in any kind of net.
        tapped = nn.Sequential(nn.Identity(), self.head)
        self._name = linear[-1]
        self.net = _replaced(net, self._name, tapped)
        self._capture = FeatureCapture(self.net, [f"{self._name}.0"])
        self.read = Reading() if images is None else reading(self.net, images, settings or Settings())

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch features"]]:
        """Logits and features of the same pass."""
        check_images("images", images)
        with self._capture:
            answer = self.net(images)
            logits = self.read.training(answer) if self.net.training else self.read(answer)
        (features,) = self._capture.pop().values()
        return logits, features

    def untapped(self) -> nn.Module:
        """The copy alone, with the names of the classifier; this object is used up."""
        return _replaced(self.net, self._name, self.head)

    @property
    def width(self) -> int:
        """Number of features."""
        return int(self.head.in_features)  # pyright: ignore[reportArgumentType]


def domains(classifier: nn.Module, source: Labelled, target: Any, settings: Settings) -> tuple[Labelled, Any]:
    """What a method is given, checked: both domains, labels as int64; `target` is None if there is only one.

    Raises TypeError or ValueError for another kind of classifier, images, labels or settings.
    """
    if not isinstance(classifier, nn.Module):
        raise TypeError(f"the classifier is a {type(classifier).__name__}; give an nn.Module")
    if not isinstance(settings, Settings):
        raise TypeError(f"settings are a {type(settings).__name__}; give calib.baselines.Settings()")
    if not isinstance(source, tuple | list) or len(source) != 2:
        raise TypeError(
            f"labelled images are a {type(source).__name__}; give calib.baselines.Labelled(images, labels)"
        )
    images, labels = source
    check_images("images", images, numbers=ANY)
    labels = class_numbers(labels, len(images))
    if target is not None:
        check_images("target", target, images.shape[1], numbers=ANY)
    for name, given in (("images", images), ("target", images if target is None else target)):
        if given.dtype != torch.uint8 and not given.is_floating_point():
            raise TypeError(f"{name} have the type {given.dtype}; give uint8 (0 to 255) or floats in [0, 1]")
    return Labelled(images, labels), target


def copied(classifier: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters all learn, also if the classifier was frozen."""
    return copy.deepcopy(classifier).eval().requires_grad_(True)


def reading(net: nn.Module, images: Tensor, settings: Settings) -> Reading:
    """How logits are read out of the answers of a net in eval mode; decided on these images if that is open.

    Raises ValueError where `settings` has to say `output` or `outputs`.
    """
    if settings.outputs != "auto":
        return Reading(settings.output, settings.outputs)
    return Reading(settings.output, settled(net, pixels(images[:PROBES], net), settings.output))


def adapted(net: nn.Module, touched: str, read: Reading | None = None) -> Adapted:
    """The trained net as a result: eval mode, no gradient; its answers are read as logits without `read`."""
    read = read or (net.read if isinstance(net, FeatureNet) else Reading())
    net = net.untapped() if isinstance(net, FeatureNet) else net
    net.eval().requires_grad_(False)

    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        return read(net(pixels(images, net)))

    return Adapted(predict, touched, net)


def batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """The batch norm layers.  Raises NotApplicableError if there is none."""
    found = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    if not found:
        raise NotApplicableError("the classifier has no batch norm, which this method adapts: choose another")
    return found


def statistics_mode(net: nn.Module) -> nn.Module:
    """Eval mode, but batch norms see the statistics of their batch and update their own; returns the net.

    Without the noise of dropout, by which a critic could tell two nets apart.
    """
    net.eval()
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    return net


def pixels(images: Tensor, net: nn.Module) -> Float[Tensor, "n channels height width"]:
    """Floats in [0, 1] on the net's device; bytes are divided by 255."""
    check_images("images", images, numbers=ANY)
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images have the type {images.dtype}; give uint8 (0 to 255) or floats in [0, 1]")
    device = next((p.device for p in net.parameters()), images.device)
    images = images.to(device)
    return to_float(images) if images.dtype == torch.uint8 else images


def batches(n: int, batch_size: int, seed: int) -> Iterator[Int64[Tensor, " batch"]]:
    """Endless places of shuffled batches, a pure function of `seed`; all `n` if they fill no batch.

    Raises ValueError for fewer than 2 images.
    """
    if n < 2:
        raise ValueError(f"a domain has {n} images; training needs 2 or more")
    plan = shuffled_plan(n, min(batch_size, n), seed)
    for epoch in count():
        yield from plan(epoch)[:, :, 0]


def _replaced(net: nn.Module, name: str, module: nn.Module) -> nn.Module:
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)
    return net


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Dropout and first weights inside are a pure function of `seed`; the caller's generator stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
