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

NAMES = ("logits", "out", "output")
"""Names that say it by themselves, the first of them that is there."""


def pick_logits(output: Any, which: Which = None) -> Tensor:
    """The logits in `output`; a tensor is taken as it is.

    Without `which` they are the part called "logits" (Hugging Face, GoogLeNet, Inception), "out" (torchvision's
    segmentation) or "output", or the only part that there is.

    Raises ValueError, with a list of the parts, if they cannot be found; TypeError if what was picked is not a
    tensor of floating-point numbers.
    """
    if callable(which):
        return _checked(which(output), "the function output= returned")
    if isinstance(output, Tensor):
        if which not in (None, 0) and which not in NAMES:
            raise ValueError(f"output={which!r}, but the net returns one tensor: leave output out")
        return _checked(output, "the net returned")
    parts = named_parts(output)
    if which is not None:
        if which in parts:
            return _checked(parts[which], f"output={which!r} is")
        if isinstance(which, str) and hasattr(output, which):
            return _checked(getattr(output, which), f"output={which!r} is")
        if (
            isinstance(which, int)
            and isinstance(output, tuple | list)
            and -len(output) <= which < len(output)
        ):
            return _checked(output[which], f"output={which} is")
        raise ValueError(f"output={which!r} is not in what the net returns, {_shown(output, parts)}")
    for name in NAMES:
        if name in parts:
            return _checked(parts[name], f"part {name!r} of the net's output is")
    if len(parts) == 1:
        (name,) = parts
        return _checked(parts[name], f"part {name!r} of the net's output is")
    raise ValueError(
        f"the net returns {_shown(output, parts)}: say which part the logits are, by output=NAME, output=NUMBER "
        "or output=FUNCTION of what the net returns"
    )


def named_parts(output: Any) -> dict[str | int, Any]:
    """The parts of an output by name or place, without those that are None; {} for what has no parts."""
    if isinstance(output, Mapping):
        found: dict[str | int, Any] = dict(output)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        found = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        names: tuple[str, ...] = output._fields  # pyright: ignore[reportAttributeAccessIssue]
        found = {**dict(zip(names, output, strict=True))}
    elif isinstance(output, tuple | list):
        found = dict(enumerate(output))
    else:
        found = dict(vars(output)) if hasattr(output, "__dict__") else {}
    return {name: value for name, value in found.items() if value is not None}


def _checked(value: Any, what: str) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{what} {_kind(value)}; logits are a tensor of floating-point numbers")
    return value


def _shown(output: Any, parts: Mapping[str | int, Any]) -> str:
    listed = ", ".join(f"{name!r}: {_kind(value)}" for name, value in list(parts.items())[:12])
    return f"a {type(output).__name__} of {listed or 'no parts'}"


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
