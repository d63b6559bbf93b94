"""Pictures of solids by sphere tracing: shape and shading apart from colour, so that a colour costs nothing.

>>> shading, mask = trace(KINDS["mug"], turntable(8), 32)
>>> image = paint(shading, mask, COLOURS["red"])                 # (8, 3, 32, 32)
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fsd.cameras import Cameras, rays
from fsd.world.solids import Solid

GREY = 0.5
AMBIENT = 0.55
LIGHT = (-0.4, 0.5, 0.77)


@torch.no_grad()
def trace(
    solid: Solid, cameras: Cameras, size: int, fine: int = 2, steps: int = 40, chunk: int = 16
) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 h w"]]:
    """Shading in [0, 1] times coverage, and coverage, of `fine`^2 rays a pixel.

    The light comes from above the front; shading is AMBIENT plus the Lambertian rest.
    """
    pieces = [
        _trace(solid, cameras[start : start + chunk], size * fine, steps)
        for start in range(0, len(cameras), chunk)
    ]
    shading, mask = (avg_pool2d(torch.cat(part), fine) for part in zip(*pieces, strict=True))
    return shading, mask


def paint(
    shading: Float[Tensor, "b 1 h w"],
    mask: Float[Tensor, "b 1 h w"],
    colour: Sequence[float],
    background: float = GREY,
) -> Float[Tensor, "b 3 h w"]:
    """The object in one colour before a grey ground, in [0, 1]."""
    return shading * shading.new_tensor(colour)[:, None, None] + (1 - mask) * background


def _trace(solid: Solid, cameras: Cameras, size: int, steps: int) -> tuple[Tensor, Tensor]:
    origins, directions = rays(cameras, size, size)
    shape = origins.shape[:3]
    origins, directions = origins.reshape(-1, 3), directions.reshape(-1, 3)
    # From where the ray enters the ball around everything to where it leaves it; rays that miss it are done.
    middle = -(origins * directions).sum(-1)
    reach = 0.95**2 - (origins + middle[:, None] * directions).square().sum(-1)
    alive = reach > 0
    origins, directions = origins[alive], directions[alive]
    half = reach[alive].sqrt()
    along, end = middle[alive] - half, middle[alive] + half
    for _ in range(steps):
        along = along + solid(origins + along[:, None] * directions)
    points = origins + along[:, None] * directions
    hit = (solid(points) < 5e-3) & (along < end)
    light = points.new_tensor(LIGHT)
    bright = (_normal(solid, points) * light).sum(-1).clamp(min=0)
    shade = (AMBIENT + (1 - AMBIENT) * bright) * hit
    shading, mask = (torch.zeros(alive.shape, dtype=points.dtype, device=points.device) for _ in range(2))
    shading[alive], mask[alive] = shade, hit.to(points.dtype)
    return shading.view(shape)[:, None], mask.view(shape)[:, None]


def _normal(solid: Solid, points: Tensor, step: float = 2e-3) -> Tensor:
    offsets = torch.eye(3, dtype=points.dtype, device=points.device) * step
    slope = torch.stack([solid(points + offset) - solid(points - offset) for offset in offsets], -1)
    return torch.nn.functional.normalize(slope, dim=-1)
