"""What stands behind the object: a colour that stays, a colour that is learned, or one learned for each direction.

Each is an nn.Module that maps unit directions (n, 3) to colours (n, 3) in [0, 1].
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fsd.inputs import check_tensor


class ConstantBackground(nn.Module):
    """The same colour everywhere, never changed.  Raises ValueError for one outside [0, 1]."""

    color: Tensor

    def __init__(self, color: tuple[float, float, float] = (0.5, 0.5, 0.5)) -> None:
        super().__init__()
        self.register_buffer("color", _checked(color))

    def forward(self, directions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        _check_directions(directions)
        return self.color.expand_as(directions)


class LearnedBackground(nn.Module):
    """One learned colour, the same everywhere.  Raises ValueError for a start outside (0, 1)."""

    def __init__(self, color: tuple[float, float, float] = (0.5, 0.5, 0.5)) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.logit(_checked(color), eps=1e-4))

    def forward(self, directions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        _check_directions(directions)
        return self.logit.sigmoid().expand_as(directions)


class BackgroundMap(nn.Module):
    """A small network of the direction, through sines of `frequencies` octaves; begins near `color`."""

    def __init__(
        self, color: tuple[float, float, float] = (0.5, 0.5, 0.5), frequencies: int = 3, width: int = 16
    ) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.network = nn.Sequential(
            nn.Linear(3 + 6 * frequencies, width), nn.ReLU(inplace=True), nn.Linear(width, 3)
        )
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.copy_(torch.logit(_checked(color), eps=1e-4))

    def forward(self, directions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        _check_directions(directions)
        angles = [directions * (math.pi * 2**octave) for octave in range(self.frequencies)]
        waves = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
        return self.network(torch.cat([directions, *waves], 1)).sigmoid()


def _check_directions(directions: Tensor) -> None:
    check_tensor("directions", directions, "n 3", "one unit vector per row")


def _checked(color: tuple[float, float, float]) -> Tensor:
    values = torch.tensor(color, dtype=torch.float32)
    if values.shape != (3,) or not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"color={color}; a background is three numbers in [0, 1]: red, green, blue")
    return values
