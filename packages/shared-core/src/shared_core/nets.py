"""Classifiers by name: torchvision's, timm's, a function in a file, or a method's own; weights without code.

>>> net = open_net("torchvision:resnet18", num_classes=10)
>>> net = open_net("mine.py:build", num_classes=10, in_channels=1, weights="mine.safetensors")
"""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from shared_core.fitting_weights import load_weights
from shared_core.from_file import function_in, naming_lines

__all__ = ["Builder", "open_net"]

Builder = Callable[[int, int], nn.Module]


def open_net(
    spec: str,
    num_classes: int | None,
    in_channels: int = 3,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    builders: Mapping[str, Builder] = {},
    new_head: bool = False,
) -> nn.Module:
    """The classifier that `spec` names, with `num_classes` outputs; None keeps the head that the net has.

    - `torchvision:NAME`, `timm:NAME`; `pretrained` asks them for published weights (a download), whose last
      layer is kept if it has `num_classes` outputs and with `new_head` starts fresh otherwise.
    - `path/to/file.py:function`: called with those of `num_classes=` and `in_channels=` that it takes.
    - a name in `builders`, written `kind:name`: called as `builder(num_classes, in_channels)`.

    `weights` and `new_head` are those of `load_weights`: all of the file fits, or all but the last layer.

    Raises ValueError for an unknown kind or name (the known ones are listed), a channel count that the net
    does not come in, a function that fails (file and line are named), or weights that do not fit.
    """
    kind, _, name = spec.rpartition(":")
    if spec in builders:
        if num_classes is None:
            raise ValueError(f"{spec} has no head of its own: give the number of classes")
        net = builders[spec](num_classes, in_channels)
    elif any(known.startswith(f"{kind}:") for known in builders):
        raise ValueError(f"there is no net {spec}; choose {', '.join(builders)}")
    elif kind == "torchvision":
        net = _torchvision(name, num_classes, in_channels, pretrained, new_head)
    elif kind == "timm":
        net = _timm(name, num_classes, in_channels, pretrained, new_head)
    elif kind.endswith(".py"):
        net = _call(function_in(kind, name), spec, num_classes, in_channels)
    else:
        kinds = [*builders, "torchvision:NAME", "timm:NAME", "path/to/file.py:function"]
        raise ValueError(f"model {spec!r} is none of {', '.join(kinds)}")
    if weights is not None:
        load_weights(net, weights, new_head)
    return net


def _torchvision(
    name: str, num_classes: int | None, in_channels: int, pretrained: bool, new_head: bool
) -> nn.Module:
    import torchvision.models as models

    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}; it has {', '.join(known)}")
    if in_channels != 3:
        raise ValueError(
            f"torchvision's nets take images of 3 channels, these have {in_channels}: "
            "use timm:NAME or a function in a file"
        )
    head: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if not pretrained:
        return models.get_model(name, weights=None, **head)
    try:
        net = models.get_model(name, weights="DEFAULT")
    except (AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"torchvision publishes no weights of {name}: leave pretrained out") from error
    return net if num_classes is None else _replace_last_layer(net, num_classes, new_head)


def _timm(
    name: str, num_classes: int | None, in_channels: int, pretrained: bool, new_head: bool
) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"timm:{name} needs the package timm, which is not installed") from error
    if name not in timm.list_models():
        close = timm.list_models(f"*{name.split('_')[0]}*")[:10]
        raise ValueError(f"timm has no model {name!r}; similar: {', '.join(close) or 'none'}")
    head: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    published = timm.get_pretrained_cfg(name)
    if pretrained and published is not None and num_classes not in (None, published.num_classes):
        _refuse_head(published.num_classes, num_classes, new_head)
    try:
        return timm.create_model(name, pretrained=pretrained, in_chans=in_channels, **head)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        asked = "with published weights" if pretrained else f"for {in_channels} channels"
        raise ValueError(f"timm cannot make {name} {asked}: {reason}") from error


def _call(function: Callable[..., Any], spec: str, num_classes: int | None, in_channels: int) -> nn.Module:
    signature = inspect.signature(function)
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    values = {"in_channels": in_channels} | ({} if num_classes is None else {"num_classes": num_classes})
    values = {name: value for name, value in values.items() if anything or name in signature.parameters}
    try:
        signature.bind(**values)
    except TypeError as error:
        given = " and ".join(f"{name}=" for name in values) or "nothing"
        raise ValueError(f"{spec} is called with {given}, which does not do: {error}") from error
    with naming_lines(spec.rpartition(":")[0]):
        net = function(**values)
    if not isinstance(net, nn.Module):
        raise ValueError(f"{spec} returned a {type(net).__name__}; it must return a torch.nn.Module")
    return net


def _replace_last_layer(net: nn.Module, num_classes: int, new_head: bool) -> nn.Module:
    """A fresh last layer, linear or (SqueezeNet's) a convolution, unless its size is right."""
    name, last = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    parent, _, child = name.rpartition(".")
    bias = last.bias is not None
    if isinstance(last, nn.Conv2d):
        if last.out_channels == num_classes:
            return net
        _refuse_head(last.out_channels, num_classes, new_head)
        fresh = nn.Conv2d(last.in_channels, num_classes, 1, bias=bias)
    else:
        if last.out_features == num_classes:
            return net
        _refuse_head(last.out_features, num_classes, new_head)
        fresh = nn.Linear(last.in_features, num_classes, bias=bias)
    setattr(net.get_submodule(parent), child, fresh)
    return net


def _refuse_head(published: int, wanted: int | None, new_head: bool) -> None:
    if not new_head:
        raise ValueError(
            f"the published weights are of {published} classes, not {wanted}: the last layer would be random; give the "
            "net as many classes, or new_head to train a fresh one"
        )
