"""Classifiers by name: small residual nets for small images, torchvision's, timm's, or a function in a file."""

import importlib.util
from pathlib import Path

from torch import nn

SMALL_BLOCKS = {"resnet10": [1, 1, 1, 1], "resnet18": [2, 2, 2, 2]}


def small_resnet(blocks: list[int], width: int, num_classes: int, in_channels: int = 3) -> nn.Module:
    """A residual net for images of 8 to 64 pixels: 3x3 stem at stride 1, no pooling before the stages.

    The four stages have ``width`` to 8 ``width`` channels.  torchvision's blocks and names (layer1 ... layer4, fc).
    """
    from torchvision.models.resnet import BasicBlock, ResNet

    net = ResNet(BasicBlock, blocks, num_classes=num_classes)
    net.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
    net.bn1 = nn.BatchNorm2d(width)
    net.maxpool = nn.Identity()
    net.inplanes = width
    for i, count in enumerate(blocks):
        stage = net._make_layer(BasicBlock, width * 2**i, count, stride=1 if i == 0 else 2)
        setattr(net, f"layer{i + 1}", stage)
    net.fc = nn.Linear(width * 8, num_classes)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def open_net(
    spec: str,
    num_classes: int,
    in_channels: int = 3,
    width: int | None = None,
    pretrained: bool = False,
    weights: Path | None = None,
) -> nn.Module:
    """The classifier that ``spec`` names, with ``num_classes`` outputs.

    - ``small:resnet10``, ``small:resnet18``: :func:`small_resnet`, 64 channels wide unless ``width`` says so.
    - ``torchvision:NAME``, ``timm:NAME``; ``pretrained`` asks them for published weights (a download).
    - ``path/to/file.py:function``: called as ``function(num_classes=..., in_channels=...)``.

    ``weights`` is a safetensors file; a last layer of another size is left at its initial value.

    Raises:
        ValueError: an unknown kind or name (the known ones are listed), or weights that do not fit.
    """
    kind, _, name = spec.rpartition(":")
    if kind == "small":
        if name not in SMALL_BLOCKS:
            raise ValueError(f"there is no net small:{name}; choose small:{', small:'.join(SMALL_BLOCKS)}")
        net = small_resnet(SMALL_BLOCKS[name], width or 64, num_classes, in_channels)
    elif kind == "torchvision":
        net = _torchvision(name, num_classes, pretrained)
    elif kind == "timm":
        net = _timm(name, num_classes, in_channels, pretrained)
    elif kind.endswith(".py"):
        net = _from_file(Path(kind), name)(num_classes=num_classes, in_channels=in_channels)
    else:
        raise ValueError(
            f"model {spec!r} is none of small:NAME, torchvision:NAME, timm:NAME, path/to/file.py:function"
        )
    if weights is not None:
        load_weights(net, weights)
    return net


def load_weights(net: nn.Module, path: Path) -> list[str]:
    """Load safetensors into ``net`` and return the keys that were left out because their shapes differ.

    Raises:
        ValueError: the file is no safetensors file, holds keys that the net does not have, or lacks some.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
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


def _torchvision(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    import torchvision.models as models

    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}; it has {', '.join(known)}")
    if not pretrained:
        return models.get_model(name, weights=None, num_classes=num_classes)
    net = models.get_model(name, weights="DEFAULT")
    return _replace_last_linear(net, num_classes)


def _timm(name: str, num_classes: int, in_channels: int, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ValueError("timm:NAME needs timm: pip install 'corsd[timm]'") from error
    if name not in timm.list_models():
        close = timm.list_models(f"*{name.split('_')[0]}*")[:10]
        raise ValueError(f"timm has no model {name!r}; similar: {', '.join(close) or 'none'}")
    return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels)


def _from_file(path: Path, function: str):
    if not path.is_file():
        raise ValueError(f"there is no file {path} to take the function {function!r} from")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise ValueError(f"{path} has no function {function!r}")
    return getattr(module, function)


def _replace_last_linear(net: nn.Module, num_classes: int) -> nn.Module:
    name, last = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1]
    parent, _, child = name.rpartition(".")
    fresh = nn.Linear(last.in_features, num_classes, bias=last.bias is not None)
    setattr(net.get_submodule(parent), child, fresh)
    return net
