"""Noise that sticks to the surface of the object, for Consistent Flow Distillation (arXiv 2501.05445).

>>> guide = ConsistentFlowDistillation(prior, noise=SurfaceNoise(seed=0))
>>> out = guide(view.image, prompt, cameras, progress, opacity=view.opacity, depth=view.depth)
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from shared_core.data.sampling import keyed_generator_seed
from torch import Tensor, nn

from fsd.cameras import Cameras, rays
from fsd.noise import Shape, allocated, check_view, draw, seeded, share, unallocated


class SurfaceNoise(nn.Module):
    """Noise that sticks to the surface (Consistent Flow Distillation, arXiv 2501.05445; no rasteriser needed).

    Each latent pixel gathers the reference noise under `rays_per_pixel`^2 of its rays: where a ray meets the surface,
    the cell of a grid of `cells` per unit length holds one Gaussian of the seed, and the pixel is the sum over its
    distinct cells divided by the square root of their number, which keeps N(0, 1) (arXiv 2403.10701, equation 5).
    Pixels that see no surface get one fixed background.  `refresh` is the follow-up's gamma: the share of the noise
    that is new at every call (0 keeps it for ever).
    """

    table: Tensor
    behind: Tensor

    def __init__(
        self,
        seed: int = 0,
        cells: float = 64.0,
        rays_per_pixel: int = 4,
        refresh: float = 0.0,
        latent_shape: Shape | None = None,
    ) -> None:
        super().__init__()
        if cells <= 0 or rays_per_pixel < 1:
            raise ValueError(f"cells={cells}, rays_per_pixel={rays_per_pixel}; both must be positive")
        self.cells, self.rays_per_pixel, self.refresh = cells, rays_per_pixel, share("refresh", refresh)
        self.generator = seeded(seed)
        self.seed, self.renewals = seed, 0
        self.latent_shape: Shape | None = None
        if latent_shape is not None:
            self.allocate(latent_shape)

    def allocate(self, latent_shape: Shape) -> None:
        """Draws reference noise and background.  Raises ValueError if it has another shape already."""
        if unallocated(self.latent_shape, latent_shape):
            # A table shared by hash, as in a hash grid: 2^18 Gaussians a channel, far more than any view touches.
            self.register_buffer("table", draw(self.generator, 2**18, latent_shape[0]))
            self.register_buffer("behind", draw(self.generator, *latent_shape))
            self.latent_shape = latent_shape

    def forward(
        self,
        cameras: Cameras,
        opacity: Float[Tensor, "b 1 h w"] | None = None,
        depth: Float[Tensor, "b 1 h w"] | None = None,
    ) -> Float[Tensor, "b c hh ww"]:
        """Raises ValueError without opacity and depth."""
        if opacity is None or depth is None:
            raise ValueError("noise on the surface needs the surface: pass opacity= and depth= of the render")
        check_view(cameras, opacity, depth)
        if self.refresh:
            self._renew()
        found = self.transport(cameras, opacity.detach(), depth.detach())
        return found.to(cameras.c2w.dtype)

    def transport(
        self, cameras: Cameras, opacity: Float[Tensor, "b 1 h w"], depth: Float[Tensor, "b 1 h w"]
    ) -> Float[Tensor, "b c hh ww"]:
        """The reference noise seen by each latent pixel."""
        _, height, width = allocated(self.latent_shape)
        k = self.rays_per_pixel
        fine = (height * k, width * k)
        origins, directions = rays(cameras, *fine)
        far = nn.functional.interpolate(depth, fine, mode="nearest")[:, 0, ..., None]
        hit = nn.functional.interpolate(opacity, fine, mode="nearest")[:, 0] >= 0.5
        cell = ((origins + far * directions) * self.cells).floor().long()
        index = torch.where(hit, _hash(cell, len(self.table)), -1)
        # (b, h, w, k*k): the cells under each latent pixel, every one counted once.
        index = index.reshape(-1, height, k, width, k).transpose(2, 3).reshape(-1, height, width, k * k)
        index = index.sort(-1).values
        new = torch.ones_like(index, dtype=torch.bool)
        new[..., 1:] = index[..., 1:] != index[..., :-1]
        new &= index >= 0
        count = new.sum(-1, keepdim=True)
        total = (self.table[index.clamp(0)] * new[..., None]).sum(-2)
        seen = (total / count.clamp(1).sqrt()).permute(0, 3, 1, 2)
        return torch.where(
            (count > 0).permute(0, 3, 1, 2), seen, self.behind.expand(len(cameras), -1, -1, -1)
        )

    def get_extra_state(self) -> dict[str, Tensor]:
        """The generator's state, and how often the noise was renewed."""
        return {"generator": self.generator.get_state(), "renewals": torch.tensor(self.renewals)}

    def set_extra_state(self, state: Any) -> None:
        """Puts it back."""
        self.generator.set_state(state["generator"].cpu())
        self.renewals = int(state["renewals"])

    def _renew(self) -> None:
        keep, new = math.sqrt(1 - self.refresh), math.sqrt(self.refresh)
        for number, buffer in enumerate((self.table, self.behind)):
            buffer.mul_(keep).add_(self._fresh(buffer, number), alpha=new)
        self.renewals += 1

    def _fresh(self, like: Tensor, number: int) -> Tensor:
        """New Gaussians where they are needed: the table has a million numbers, too many to send at every step.

        So this noise is another one on each kind of device; what is drawn once, at the start, is the same on all.
        """
        if like.device.type == "cpu":
            return draw(self.generator, *like.shape).to(like)
        if like.is_meta:
            return torch.randn_like(like)
        generator = torch.Generator(like.device).manual_seed(
            keyed_generator_seed(self.seed, self.renewals, number, 0)
        )
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def _hash(cell: Tensor, size: int) -> Tensor:
    """Instant-NGP's spatial hash (arXiv 2201.05989, equation 4)."""
    x, y, z = cell.unbind(-1)
    return (x ^ (y * 2654435761) ^ (z * 805459861)) % size
