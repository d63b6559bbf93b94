"""Pick the logits out of what a network returns: a tensor, a dict, a dataclass, a tuple.

>>> logits = pick_logits(googlenet(images))                  # GoogLeNetOutputs: the field "logits"
>>> logits = pick_logits(net(images), "scores")              # a key or an attribute
>>> logits = pick_logits(net(images), 1)                     # the second of a tuple
>>> logits = pick_logits(net(images), lambda out: out.heads[0].logits)
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Which = str | int | Callable[[Any], Tensor] | None
"""Which part of an output the logits are: a name, a place, a function of the output, or found by name."""

NAMES = ("logits", "out", "pred", "preds", "prediction", "predictions", "scores", "output")
"""Names that say it by themselves, the first of them that is there."""

WHOLE = (None, 0, -1, "logits", "out", "output")
"""What a single tensor may be asked for as: networks may return it in eval mode and several parts while they train."""


def pick_logits(output: Any, which: Which = None, who: str = "the net", floats: bool = True) -> Tensor:
    """The logits in `output`; a tensor is taken as it is.

    Without `which` they are the part called "logits" (Hugging Face, GoogLeNet, Inception), "out" (torchvision's
    segmentation) or another of NAMES, or the only tensor that there is.

    Args:
        who: what returned the output, for messages.
        floats: refuse tensors that are not of floating point; without it they are returned, too.

    Raises ValueError, with a list of the parts, if they cannot be found; TypeError if what was picked is not a
    tensor (of floating-point numbers).
    """
    if callable(which):
        return _checked(which(output), "the function output= returned", floats)
    if isinstance(output, Tensor):
        if which not in WHOLE:
            raise ValueError(f"output={which!r}, but {who} returns one tensor: leave output out")
        return _checked(output, f"{who} returned", floats)
    parts = named_parts(output)
    if which is not None:
        return _checked(_named(output, parts, which, who), f"output={which!r} is", floats)
    tensors = [name for name, value in parts.items() if isinstance(value, Tensor)]
    obvious = [name for name in NAMES if name in tensors]
    # A part of such a name that is no tensor is better refused by name than passed over for another one.
    meant = obvious or [name for name in NAMES if parts.get(name) is not None]
    if meant or len(tensors) == 1:
        name = (meant or tensors)[0]
        return _checked(parts[name], f"part {name!r} of {who}'s output is", floats)
    raise ValueError(
        f"{who} returns {_shown(output, parts)}: say which part the logits are, by output=NAME, output=NUMBER "
        f"or output=FUNCTION of what {who} returns"
    )


def named_parts(output: Any) -> dict[str | int, Any]:
    """The parts of an output by name, or by place where they have no names; {} for what has no parts."""
    if isinstance(output, Mapping):
        return dict(output)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        names: tuple[str, ...] = output._fields  # pyright: ignore[reportAttributeAccessIssue]
        return {**dict(zip(names, output, strict=True))}
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    return {**vars(output)} if hasattr(output, "__dict__") else {}


def _named(output: Any, parts: Mapping[str | int, Any], which: str | int, who: str) -> Any:
    if which in parts:
        return parts[which]
    if isinstance(which, str) and hasattr(output, which):
        return getattr(output, which)
    if isinstance(which, int) and -len(parts) <= which < len(parts):
        return list(parts.values())[which]
    raise ValueError(f"output={which!r} is not in what {who} returns, {_shown(output, parts)}")


def _checked(value: Any, what: str, floats: bool) -> Tensor:
    if isinstance(value, Tensor) and (value.is_floating_point() or not floats):
        return value
    raise TypeError(f"{what} {_kind(value)}; logits are a tensor of floating-point numbers")


def _shown(output: Any, parts: Mapping[str | int, Any]) -> str:
    there = [(name, value) for name, value in parts.items() if value is not None]
    listed = ", ".join(f"{name!r}: {_kind(value)}" for name, value in there[:12])
    return f"a {type(output).__name__} of {listed or 'no parts'}"


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
