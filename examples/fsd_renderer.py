"""Your own renderer: anything that makes a differentiable image. Here sixty soft balls, splatted in twelve lines.

python examples/fsd_renderer.py [STEPS]
"""

import sys

import fsd
import torch
from fsd.turntable import write_video
from torch import Tensor, nn

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 150


class Balls(nn.Module):
    """Soft balls with a place, a size, a colour and an opacity, blended from far to near."""

    def __init__(self, count: int = 60) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.places = nn.Parameter(0.35 * torch.randn(count, 3, generator=generator))
        self.log_radii = nn.Parameter(torch.full((count,), -2.0))
        self.colors = nn.Parameter(torch.zeros(count, 3))
        self.opacities = nn.Parameter(torch.zeros(count))

    def render(self, cameras: fsd.Cameras, size: int) -> tuple[Tensor, Tensor]:
        """Images (b, 3, size, size) on grey, and opacities (b, 1, size, size)."""
        world_to_camera = torch.linalg.inv(cameras.c2w)
        local = self.places @ world_to_camera[:, :3, :3].mT + world_to_camera[:, None, :3, 3]
        depth = -local[..., 2]  # a camera looks along its own -z
        focal = 1 / torch.tan(torch.deg2rad(cameras.fov_deg) / 2)[:, None]
        line = (torch.arange(size) + 0.5) / size * 2 - 1
        dx = line[None, None, None, :] - (focal * local[..., 0] / depth)[..., None, None]
        dy = -line[None, None, :, None] - (focal * local[..., 1] / depth)[..., None, None]
        radius = (focal * self.log_radii.exp() / depth)[..., None, None]
        alpha = self.opacities.sigmoid()[:, None, None] * torch.exp(-(dx**2 + dy**2) / (2 * radius**2))
        order = depth.argsort(1)[..., None, None].expand_as(alpha)
        alpha, colors = alpha.gather(1, order), self.colors.sigmoid()[order[..., 0, 0]]
        clear = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha], 1), 1)
        weights = alpha * clear[:, :-1]
        image = torch.einsum("bnhw,bnc->bchw", weights, colors) + 0.5 * clear[:, -1:]
        return image, 1 - clear[:, -1:]


prior = fsd.RenderBank(size=16, azimuths=12)
guide = fsd.FlowScoreDistillation(prior, noise=fsd.WorldMapNoise(seed=0))
prompt = prior.encode_text("a red object")
balls = Balls()
optimizer = torch.optim.Adam(balls.parameters(), lr=0.03)
generator = torch.Generator().manual_seed(0)
for step in range(steps):
    cameras = fsd.cameras.orbit(batch=4, generator=generator, views=prior.views)
    image, opacity = balls.render(cameras, size=16)
    out = guide(image, prompt, cameras, progress=step / steps, opacity=opacity)
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()

with torch.no_grad():
    turn = fsd.cameras.turntable(24)
    frames, _ = balls.render(turn, size=64)
    labels, _ = prior.describe(balls.render(turn, size=16)[0], turn)
write_video((255 * frames.permute(0, 2, 3, 1)).byte().numpy(), "balls.gif")
print("balls.gif;", "the bank calls it", max(set(labels), key=labels.count))
