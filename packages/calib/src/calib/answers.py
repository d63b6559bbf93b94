"""What a classifier's answer means: which part of it names the classes, and whether that is logits or probabilities.

Answers come as a tensor, or as dicts, tuples, dataclasses and lists that hold one.  Networks that end in a softmax give
probabilities, whose softmax would be nearly flat; binary ones give one column.  All of it becomes logits of two classes
or more, by a decision that is made once, on several images, and never by the batch at hand.

>>> values = pick(net(images), "logits")                        # by name, by place, or by a function
>>> outputs = decide(values)                                    # "logits" or "probabilities"
>>> as_logits(values, outputs).softmax(1)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

OUTPUTS = ("auto", "logits", "probabilities")
OBVIOUS = ("logits", "out", "pred", "preds", "prediction", "predictions", "scores", "output")
"""Names of the part that is taken where nobody says which, the first of these that is there."""

Part = str | int | Callable[[Any], Tensor] | None
"""Which part of an answer is taken: by name, by place, by a function of the whole; None: the obvious one."""


def pick(answer: Any, part: Part = None) -> Shaped[Tensor, "..."]:
    """The tensor of `answer` that names the classes.

    Raises:
        ValueError: no such part, or none that is obvious; the message lists what there is.
        TypeError: the part is no tensor.
    """
    if isinstance(answer, Tensor) and part is None:
        return answer
    if callable(part):
        found = part(answer)
    else:
        parts = _parts(answer)
        found = parts[_place(parts, part)]
    if not isinstance(found, Tensor):
        raise TypeError(
            f"output={part!r} of the classifier's answer is a {type(found).__name__}, not a tensor"
        )
    return found


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
    low, high = (float(end) for end in wide.aminmax()) if wide.numel() else (0.0, 1.0)
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
        off = (wide.sum(1) - 1).abs().max() if wide.numel() else torch.tensor(0.0)
        return "probabilities" if float(off) <= 0.02 + min(values.shape[1] / 512, 0.5) else "logits"
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


def _columns(values: Tensor) -> Tensor:
    if not values.is_floating_point():
        raise ValueError(
            f"the classifier answers with {values.dtype}, which are class numbers: logits or probabilities are needed"
        )
    return values.reshape(-1, 1) if values.dim() < 2 else values


def _parts(answer: Any) -> dict[Any, Any]:
    """Everything that an answer holds, by name, or by place where it has no names."""
    if isinstance(answer, Mapping):
        return dict(answer)
    if is_dataclass(answer) and not isinstance(answer, type):
        return {field.name: getattr(answer, field.name) for field in fields(answer)}
    if isinstance(answer, tuple) and hasattr(answer, "_fields"):
        return answer._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        return dict(enumerate(answer))
    if isinstance(answer, Tensor):
        return {0: answer}
    found = getattr(answer, "__dict__", None)
    if not found:
        raise TypeError(f"the classifier answers with a {type(answer).__name__}, in which there is no tensor")
    return dict(found)


def _place(parts: dict[Any, Any], part: str | int | None) -> Any:
    names = list(parts)
    if part is None:
        tensors = [name for name, value in parts.items() if isinstance(value, Tensor)]
        obvious = [name for name in OBVIOUS if name in tensors]
        if obvious or len(tensors) == 1:
            return (obvious or tensors)[0]
        raise ValueError(
            f"the classifier answers with {_listed(parts)}: say which part is the logits, with output=NAME, "
            "output=PLACE or a function"
        )
    if part in parts:
        return part
    if isinstance(part, int) and -len(names) <= part < len(names):
        return names[part]
    raise ValueError(f"the classifier's answer has no part {part!r}; it holds {_listed(parts)}")


def _listed(parts: dict[Any, Any]) -> str:
    words = [
        f"{name} {tuple(value.shape)}" if isinstance(value, Tensor) else f"{name} ({type(value).__name__})"
        for name, value in parts.items()
    ]
    return ", ".join(words) or "nothing"
