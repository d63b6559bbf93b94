"""Classifiers by name: torchvision's, timm's, a function in a file, or a method's own; weights without code.

>>> net = open_net("torchvision:resnet18", num_classes=10)
>>> net = open_net("mine.py:build", num_classes=10, in_channels=1, weights="mine.safetensors")
"""

import importlib.util
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

Builder = Callable[[int, int], nn.Module]


def open_net(
    spec: str,
    num_classes: int | None,
    in_channels: int = 3,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    builders: Mapping[str, Builder] = {},
) -> nn.Module:
    """The classifier that `spec` names, with `num_classes` outputs; None keeps the head that the net has.

    - `torchvision:NAME`, `timm:NAME`; `pretrained` asks them for published weights (a download), whose last
      layer is kept if it has `num_classes` outputs.
    - `path/to/file.py:function`: called with those of `num_classes=` and `in_channels=` that it takes.
    - a name in `builders`, written `kind:name`: called as `builder(num_classes, in_channels)`.

    `weights` is a file for `load_weights`; a layer of another shape is left at its initial value.

    Raises ValueError for an unknown kind or name (the known ones are listed), a channel count that the net
    does not come in, or weights that do not fit.
    """
    kind, _, name = spec.rpartition(":")
    if spec in builders:
        if num_classes is None:
            raise ValueError(f"{spec} has no head of its own: give the number of classes")
        net = builders[spec](num_classes, in_channels)
    elif any(known.startswith(f"{kind}:") for known in builders):
        raise ValueError(f"there is no net {spec}; choose {', '.join(builders)}")
    elif kind == "torchvision":
        net = _torchvision(name, num_classes, in_channels, pretrained)
    elif kind == "timm":
        net = _timm(name, num_classes, in_channels, pretrained)
    elif kind.endswith(".py"):
        net = _call(_function(Path(kind), name), spec, num_classes, in_channels)
    else:
        kinds = [*builders, "torchvision:NAME", "timm:NAME", "path/to/file.py:function"]
        raise ValueError(f"model {spec!r} is none of {', '.join(kinds)}")
    if weights is not None:
        load_weights(net, weights)
    return net


def load_weights(net: nn.Module, path: str | os.PathLike[str]) -> list[str]:
    """Loads safetensors into `net` and returns the keys that were left out because their shapes differ.

    Raises ValueError if the file is no safetensors file, holds keys that the net does not have, or lacks some.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise ValueError(f"there is no weights file {path}")
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}); weights of other kinds may hold code and are not read: "
            "save them with safetensors.torch.save_file(net.state_dict(), ...)"
        ) from error
    own = net.state_dict()
    unknown, missing = sorted(found.keys() - own.keys()), sorted(own.keys() - found.keys())
    if unknown or missing:
        raise ValueError(
            f"{path} does not fit the net: keys the net does not have {unknown[:5]}, keys it needs {missing[:5]}"
        )
    other_shape = [key for key in own if found[key].shape != own[key].shape]
    net.load_state_dict({**found, **{key: own[key] for key in other_shape}})
    return other_shape


def _torchvision(name: str, num_classes: int | None, in_channels: int, pretrained: bool) -> nn.Module:
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
    net = models.get_model(name, weights="DEFAULT")
    return net if num_classes is None else _replace_last_layer(net, num_classes)


def _timm(name: str, num_classes: int | None, in_channels: int, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"timm:{name} needs the package timm, which is not installed") from error
    if name not in timm.list_models():
        close = timm.list_models(f"*{name.split('_')[0]}*")[:10]
        raise ValueError(f"timm has no model {name!r}; similar: {', '.join(close) or 'none'}")
    head: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    return timm.create_model(name, pretrained=pretrained, in_chans=in_channels, **head)


def _function(path: Path, name: str) -> Callable[..., Any]:
    if not path.is_file():
        raise ValueError(f"there is no file {path} to take the function {name!r} from")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise ValueError(f"{path} has no function {name!r}")
    return getattr(module, name)


def _call(function: Callable[..., Any], spec: str, num_classes: int | None, in_channels: int) -> nn.Module:
    parameters = inspect.signature(function).parameters.values()
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters}
    values = {"in_channels": in_channels} | ({} if num_classes is None else {"num_classes": num_classes})
    net = function(**{name: value for name, value in values.items() if anything or name in names})
    if not isinstance(net, nn.Module):
        raise ValueError(f"{spec} returned a {type(net).__name__}; it must return a torch.nn.Module")
    return net


def _replace_last_layer(net: nn.Module, num_classes: int) -> nn.Module:
    """A fresh last layer, linear or (SqueezeNet's) a convolution, unless its size is right."""
    name, last = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    parent, _, child = name.rpartition(".")
    bias = last.bias is not None
    if isinstance(last, nn.Conv2d):
        if last.out_channels == num_classes:
            return net
        fresh = nn.Conv2d(last.in_channels, num_classes, 1, bias=bias)
    else:
        if last.out_features == num_classes:
            return net
        fresh = nn.Linear(last.in_features, num_classes, bias=bias)
    setattr(net.get_submodule(parent), child, fresh)
    return net
