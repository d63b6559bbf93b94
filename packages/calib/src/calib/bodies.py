"""The nets inside a calibrator: from images in [-1, 1] to a raw correction of the same shape.

| body | what | source |
|---|---|---|
| `residual` | stem, two strided convolutions, residual blocks, two transposed convolutions, 7x7 head | the paper's |
| `depthwise` | the same skeleton, every inner convolution split into depthwise and pointwise | ours |
| `lowres` | the residual skeleton on an image folded 2x2 into channels, its correction bilinearly upsampled | ours |
| `folded` | the same, its correction folded back: four numbers for each channel become 2x2 pixels | ours |
| `constant` | one learned correction for all images, stretched to their size: the simplest control | ours |

>>> body = residual_body(channels=3, width=8, blocks=9)
>>> body(torch.zeros(2, 3, 32, 32)).shape
torch.Size([2, 3, 32, 32])

Height and width must be multiples of 4 and at least 8, of `lowres` and `folded` 8 and 16; :class:`calib.Calibrator`
pads to :func:`padded_size`.  The head starts at zero, so that a calibrator starts at the identity.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Conv = Callable[[int, int, int], nn.Module]


def residual_body(channels: int, width: int = 8, blocks: int = 9) -> nn.Sequential:
    """The paper's generator: 180,419 parameters at width 8 and 9 blocks of 3 channels, 45,859 at width 4."""
    return _skeleton(channels, channels, width, blocks, _full)


def depthwise_body(channels: int, width: int = 8, blocks: int = 9) -> nn.Sequential:
    """The residual body with every 3x3 convolution between its stem and head split in two."""
    return _skeleton(channels, channels, width, blocks, _separable)


class LowResolution(nn.Module):
    """The residual body at half the height and width: a quarter of the work, a smooth correction."""

    def __init__(self, channels: int, width: int = 8, blocks: int = 9) -> None:
        super().__init__()
        self.inner = _skeleton(4 * channels, channels, width, blocks, _full, kernel=3)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        small = self.inner(functional.pixel_unshuffle(images, 2))
        return functional.interpolate(small, scale_factor=2.0, mode="bilinear", align_corners=False)


class Folded(nn.Module):
    """The residual body at half the height and width, whose channels are the pixels of a sharp correction."""

    def __init__(self, channels: int, width: int = 8, blocks: int = 9) -> None:
        super().__init__()
        self.inner = _skeleton(4 * channels, 4 * channels, width, blocks, _full, kernel=3)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        return functional.pixel_shuffle(self.inner(functional.pixel_unshuffle(images, 2)), 2)


class ConstantMap(nn.Module):
    """One map of `side` by `side` numbers per channel for all images, stretched to their size."""

    def __init__(self, channels: int, side: int = 32) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.zeros(1, channels, side, side))

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        stretched = functional.interpolate(
            self.map, size=images.shape[-2:], mode="bilinear", align_corners=False
        )
        return stretched.expand_as(images)


def padded_size(body: str, size: int | torch.SymInt) -> Any:
    """The next height or width that a body takes, from any size of 8 or more."""
    multiple, least = (8, 16) if body in ("lowres", "folded") else (1, 8) if body == "constant" else (4, 8)
    return torch.sym_max((size + multiple - 1) // multiple * multiple, least)


BODIES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "residual": residual_body,
    "depthwise": depthwise_body,
    "lowres": LowResolution,
    "folded": Folded,
    "constant": lambda channels, _width, _blocks: ConstantMap(channels),
}


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions with instance norm and a ReLU between them."""

    def __init__(self, width: int, conv: Conv) -> None:
        super().__init__()
        first = [nn.ReflectionPad2d(1), conv(width, width, 0), nn.InstanceNorm2d(width), nn.ReLU(True)]
        second = [nn.ReflectionPad2d(1), conv(width, width, 0), nn.InstanceNorm2d(width)]
        self.branch = nn.Sequential(*first, *second)

    def forward(
        self, x: Float[Tensor, "batch width height width_"]
    ) -> Float[Tensor, "batch width height width_"]:
        return x + self.branch(x)


def _skeleton(
    inputs: int, outputs: int, width: int, blocks: int, conv: Conv, kernel: int = 7
) -> nn.Sequential:
    edge = kernel // 2
    layers: list[nn.Module] = [nn.ReflectionPad2d(edge), nn.Conv2d(inputs, width, kernel)]
    layers += [nn.InstanceNorm2d(width), nn.ReLU(True)]
    for wide in (width, 2 * width):
        down = conv(wide, 2 * wide, 1)
        _first_conv(down).stride = (2, 2)
        layers += [down, nn.InstanceNorm2d(2 * wide), nn.ReLU(True)]
    layers += [ResidualBlock(4 * width, conv) for _ in range(blocks)]
    for wide in (4 * width, 2 * width):
        up = nn.ConvTranspose2d(wide, wide // 2, 3, 2, 1, output_padding=1)
        layers += [up, nn.InstanceNorm2d(wide // 2), nn.ReLU(True)]
    head = nn.Conv2d(width, outputs, kernel)
    body = nn.Sequential(*layers, nn.ReflectionPad2d(edge), head)
    for module in body.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            # N(0, 0.02), as in the released code; every norm behind makes the scale matter little.
            nn.init.normal_(module.weight, std=0.02)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    nn.init.zeros_(head.weight)
    return body


def _full(inputs: int, outputs: int, padding: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=padding)


def _separable(inputs: int, outputs: int, padding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=padding, groups=inputs), nn.Conv2d(inputs, outputs, 1)
    )


def _first_conv(module: nn.Module) -> nn.Conv2d:
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d))
