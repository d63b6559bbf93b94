"""Classifiers by name: small residual nets for small images, and all that :mod:`shared_core.nets` knows."""

from functools import partial
from pathlib import Path

from shared_core import nets
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

    ``small:resnet10`` and ``small:resnet18`` are :func:`small_resnet`, 64 channels wide unless ``width`` says
    so; the others, ``pretrained`` and ``weights`` are those of :func:`shared_core.nets.open_net`.

    Raises:
        ValueError: an unknown kind or name (the known ones are listed), or weights that do not fit.
    """
    small = {
        f"small:{name}": partial(small_resnet, blocks, width or 64) for name, blocks in SMALL_BLOCKS.items()
    }
    return nets.open_net(spec, num_classes, in_channels, pretrained, weights, small)
