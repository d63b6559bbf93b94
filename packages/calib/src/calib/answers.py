"""What a classifier's answer means: which part of it is the logits, and whether that is logits or probabilities.

Answers come as a tensor, or as dicts, tuples, dataclasses and lists that hold one.  Networks that end in a softmax give
probabilities, whose softmax would be nearly flat; binary ones give one column.  All of it becomes logits of two classes
or more, by a decision that is made once, on several images, and never by the batch at hand.

>>> read = Reading("scores", settled(net, images, "scores"))    # part by name, by place, or by a function
>>> read(net(images)).softmax(1)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Shaped
from shared_core.ops.host import read_back
from shared_core.ops.inputs import check_images
from shared_core.ops.outputs import Which, pick_logits
from torch import Tensor

OUTPUTS = ("auto", "logits", "probabilities")
PROBES = 16

pick = partial(pick_logits, who="the classifier", floats=False)
"""The part of a classifier's answer that is the logits; class numbers are refused by :func:`decide`."""


@dataclass(frozen=True)
class Reading:
    """Read logits out of a classifier's answers: of its part `output`, which holds `outputs`, see :func:`settled`."""

    output: Which = None
    outputs: str = "logits"

    def __call__(self, answer: Any) -> Float[Tensor, "images classes ..."]:
        """Logits of two classes or more.  Raises ValueError, TypeError if there are none in the answer."""
        return as_logits(pick(answer, self.output), self.outputs)

    def training(self, answer: Any) -> Float[Tensor, "images classes ..."]:
        """The same of a net that trains: auxiliary logits may stand behind its own in a tuple without names."""
        plain = isinstance(answer, tuple | list) and not hasattr(answer, "_fields")
        return self(next(iter(answer), answer) if plain and self.output is None else answer)


def settled(
    ask: Callable[[Tensor], Any],
    images: Float[Tensor, "batch channels height width"],
    output: Which = None,
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
) -> str:
    """Decide what the answers of `ask` are, "logits" or "probabilities"; see :func:`decide`.

    Asked are 16 images: of those given, or random ones of their size from `low` to `high` if they are fewer, so that
    no decision hangs on the batch at hand.  `ask` gets a tensor of its own, with gradient.
    """
    check_images("images", images)
    probes = images[:PROBES].detach().clone()
    if len(probes) < PROBES:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.rand(PROBES, *images.shape[1:], generator=generator).to(images)
        probes = low + drawn * (high - low)
    if not probes.is_inference():
        probes.requires_grad_(True)
    with torch.enable_grad():
        # A copy: a net may write into what it is given.
        return decide(pick(ask(probes.clone()), output))


def check_outputs(outputs: str) -> None:
    """Raises ValueError for a word that is none of OUTPUTS."""
    if outputs not in OUTPUTS:
        raise ValueError(f"outputs is {outputs!r}; choose {', '.join(OUTPUTS)}")


def decide(values: Shaped[Tensor, "images ..."], outputs: str = "auto") -> str:
    """What these answers to several images are: "logits" or "probabilities"; `outputs` other than auto is believed.

    Probabilities are what a softmax or a sigmoid just gave (autograd tells), or rows of numbers from 0 to 1 that sum
    to 1 as far as 8 bits can.

    Raises:
        ValueError: class numbers in place of scores, probabilities outside of [0, 1], or a single column that may be
            either.
    """
    check_outputs(outputs)
    values = _columns(values)
    if outputs == "logits":
        return outputs
    wide = values.detach().float()
    low, high, off = _summary(wide) if wide.numel() else (0.0, 1.0, 0.0)
    inside = low >= 0 and high <= 1 + 1e-3
    if outputs == "probabilities":
        if not inside:
            raise ValueError(
                f"outputs is 'probabilities', but the classifier's run from {low:.4g} to {high:.4g}: say "
                "outputs='logits'"
            )
        return outputs
    last = type(values.grad_fn).__name__
    if inside and last.startswith(("SoftmaxBackward", "SigmoidBackward")):
        return "probabilities"
    if not inside:
        return "logits"
    if values.shape[1] > 1:
        # 8 bits round each class by up to 1/512.
        return "probabilities" if off <= 0.02 + min(values.shape[1] / 512, 0.5) else "logits"
    if high - low > 0.5:
        return "probabilities"
    raise ValueError(
        f"the classifier answers with one column, here from {low:.4g} to {high:.4g}, which may be probabilities of the "
        "second of two classes or their logits: say outputs='probabilities' or outputs='logits'"
    )


def as_logits(values: Shaped[Tensor, "images ..."], outputs: str) -> Float[Tensor, "images classes ..."]:
    """Logits of two classes or more: those given, logarithms of probabilities, of one column both classes.

    Raises ValueError for class numbers.
    """
    values = _columns(values)
    if outputs == "probabilities":
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        wide = torch.cat([1 - wide, wide], 1) if wide.shape[1] == 1 else wide
        return wide.clamp(min=1e-12).log()
    return torch.cat([torch.zeros_like(values), values], 1) if values.shape[1] == 1 else values


def _summary(values: Tensor) -> tuple[float, float, float]:
    """The smallest and the largest value, and how far the sum over classes is from 1 at most."""
    found = torch.stack([*values.aminmax(), (values.sum(1) - 1).abs().max()])
    low, high, off = read_back(found, "are answers logits or probabilities?").tolist()
    return low, high, off


def _columns(values: Tensor) -> Tensor:
    if not isinstance(values, Tensor) or not values.dim():
        kind = "a single number" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise TypeError(f"answers are {kind}; give a tensor of shape (images, classes)")
    if not values.is_floating_point():
        raise ValueError(
            f"the classifier answers with {values.dtype}, which are class numbers: logits or probabilities are needed"
        )
    return values.reshape(-1, 1) if values.dim() < 2 else values
