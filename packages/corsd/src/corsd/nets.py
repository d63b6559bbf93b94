"""Classifiers by name: nets for small images, and all that :mod:`shared_core.nets` knows.

| name | paper |
|---|---|
| ``small:resnet10 resnet18 resnet50 resnet101`` | He et al. 2016, arXiv 1512.03385 |
| ``small:wrn16-8 wrn28-10`` | Zagoruyko and Komodakis 2016, arXiv 1605.07146 |
| ``small:mobilenet-v2`` | Sandler et al. 2018, arXiv 1801.04381 |
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from shared_core import nets
from torch import Tensor, nn
from torch.nn.functional import relu


def small_resnet(
    blocks: list[int], width: int, num_classes: int, in_channels: int = 3, bottleneck: bool = False
) -> nn.Module:
    """A residual net for images of 8 to 64 pixels: 3x3 stem at stride 1, no pooling before the stages.

    The four stages have ``width`` to 8 ``width`` channels, with ``bottleneck`` blocks four times as many.
    torchvision's blocks and names (layer1 ... layer4, fc).
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    block = Bottleneck if bottleneck else BasicBlock
    net: Any = ResNet(block, blocks, num_classes=num_classes)
    net.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
    net.bn1 = nn.BatchNorm2d(width)
    net.maxpool = nn.Identity()
    net.inplanes = width
    for i, count in enumerate(blocks):
        stage = net._make_layer(block, width * 2**i, count, stride=1 if i == 0 else 2)
        setattr(net, f"layer{i + 1}", stage)
    net.fc = nn.Linear(width * 8 * block.expansion, num_classes)
    return _initialised(net)


def wide_resnet(depth: int, width: int, num_classes: int, in_channels: int = 3) -> nn.Module:
    """A wide residual net for images of 8 to 64 pixels, WRN-``depth``-(``width`` / 16), without dropout.

    Three stages of (depth - 4) / 6 blocks have ``width``, 2 and 4 ``width`` channels behind a stem of 16.
    """
    net = nn.Sequential(OrderedDict(conv1=nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)))
    channels = 16
    for i in range(3):
        stage = nn.Sequential()
        for number in range((depth - 4) // 6):
            stage.append(WideBlock(channels, width * 2**i, stride=2 if i and number == 0 else 1))
            channels = width * 2**i
        if i == 2:
            # Blocks begin with a norm and a ReLU, so the last one's output still lacks both.
            stage.extend([nn.BatchNorm2d(channels), nn.ReLU()])
        net.add_module(f"layer{i + 1}", stage)
    net.add_module("pool", nn.AdaptiveAvgPool2d(1))
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc", nn.Linear(channels, num_classes))
    return _initialised(net)


class WideBlock(nn.Module):
    """Norm and ReLU before each of two 3x3 convolutions; a 1x1 one carries the input where its channels change."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(out)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if channels != out else None

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out out_height out_width"]:
        active = relu(self.bn1(x))
        carried = x if self.shortcut is None else self.shortcut(active)
        return carried + self.conv2(relu(self.bn2(self.conv1(active))))


def small_mobilenet(width: int, num_classes: int, in_channels: int = 3) -> nn.Module:
    """torchvision's MobileNetV2, ``width`` channels in its stem of 32, for images of about 32 pixels.

    The stem and the second stage keep the size, so that maps of 32, 16, 8 and 4 pixels are left of 32.
    """
    from torchvision.models import mobilenet_v2

    net: Any = mobilenet_v2(num_classes=num_classes, width_mult=width / 32)
    stem = net.features[0][0]
    net.features[0][0] = nn.Conv2d(in_channels, stem.out_channels, 3, 1, 1, bias=False)
    net.features[2].conv[1][0].stride = (1, 1)
    return _initialised(net)


SMALL: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "resnet10": (partial(small_resnet, [1, 1, 1, 1]), 64),
    "resnet18": (partial(small_resnet, [2, 2, 2, 2]), 64),
    "resnet50": (partial(small_resnet, [3, 4, 6, 3], bottleneck=True), 64),
    "resnet101": (partial(small_resnet, [3, 4, 23, 3], bottleneck=True), 64),
    "wrn16-8": (partial(wide_resnet, 16), 16 * 8),
    "wrn28-10": (partial(wide_resnet, 28), 16 * 10),
    "mobilenet-v2": (small_mobilenet, 32),
}
"""What ``small:NAME`` calls with (width, classes, channels), and the width that the paper has."""


def open_net(
    spec: str,
    num_classes: int,
    in_channels: int = 3,
    width: int | None = None,
    pretrained: bool = False,
    weights: Path | None = None,
    new_head: bool = False,
) -> nn.Module:
    """The classifier that ``spec`` names, with ``num_classes`` outputs.

    ``small:NAME`` is one of SMALL, as wide as in its paper unless ``width`` says so; the others, ``pretrained``,
    ``weights`` and ``new_head`` are those of :func:`shared_core.nets.open_net`.

    Raises:
        ValueError: an unknown kind or name (the known ones are listed), or weights that do not fit.
    """
    small = {f"small:{name}": partial(build, width or own) for name, (build, own) in SMALL.items()}
    return nets.open_net(spec, num_classes, in_channels, pretrained, weights, small, new_head)


def _initialised(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net
