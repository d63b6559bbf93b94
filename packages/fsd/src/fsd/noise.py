"""Noise as a function of the camera: what tells flow score distillation from score distillation.

Every module is called with the cameras of a batch, and where it needs them with the rendered opacity and depth, and
gives standard normal noise of the prior's latent shape.  Each marginal stays N(0, 1) exactly: noise is moved, summed
with weights of unit norm, or mixed as sqrt(beta), sqrt(1 - beta), never averaged.  All state, generators included,
is in `state_dict()`, so that a resumed run draws what the interrupted one would have drawn.  Processes that share the
views of a step draw as one process would (`fsd.processes`).

    >>> guide = FlowScoreDistillation(prior, noise=WorldMapNoise(seed=0))      # takes the prior's latent shape
    >>> noise = WorldMapNoise(seed=0, latent_shape=(4, 64, 64))
    >>> epsilon = noise(cameras, opacity=view.opacity)                         # (b, 4, 64, 64)
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from fsd.cameras import Cameras
from fsd.inputs import check_cameras, check_tensor, check_together
from fsd.processes import draw_views

Shape = tuple[int, int, int]


class RandomNoise(nn.Module):
    """Fresh at every call: plain score distillation."""

    def __init__(self, seed: int = 0, latent_shape: Shape | None = None, stream: int = 0) -> None:
        super().__init__()
        self.generator = seeded(seed, stream)
        self.latent_shape: Shape | None = None
        if latent_shape is not None:
            self.allocate(latent_shape)

    def allocate(self, latent_shape: Shape) -> None:
        """Takes the prior's latent shape; a guidance does this.  Raises ValueError if it has another already."""
        unallocated(self.latent_shape, latent_shape)
        self.latent_shape = latent_shape

    def forward(
        self,
        cameras: Cameras,
        opacity: Float[Tensor, "b 1 h w"] | None = None,
        depth: Float[Tensor, "b 1 h w"] | None = None,
    ) -> Float[Tensor, "b c hh ww"]:
        """Independent of everything."""
        check_view(cameras, opacity, depth)
        drawn = draw_views(self.generator, len(cameras), *allocated(self.latent_shape))
        return drawn.to(cameras.c2w.device)

    def get_extra_state(self) -> dict[str, Tensor]:
        """The generator's state."""
        return {"generator": self.generator.get_state()}

    def set_extra_state(self, state: Any) -> None:
        """Puts it back."""
        self.generator.set_state(state["generator"].cpu())


class ConstantNoise(nn.Module):
    """The same for all cameras: diverse, but texture sticks to the screen (FSD's first design)."""

    noise: Tensor

    def __init__(self, seed: int = 0, beta: float = 1.0, latent_shape: Shape | None = None) -> None:
        super().__init__()
        self.seed, self.beta = seed, share("beta", beta)
        self.fresh = RandomNoise(seed, stream=1)
        self.latent_shape: Shape | None = None
        if latent_shape is not None:
            self.allocate(latent_shape)

    def allocate(self, latent_shape: Shape) -> None:
        """Draws the noise.  Raises ValueError if it has another shape already."""
        if unallocated(self.latent_shape, latent_shape):
            self.register_buffer("noise", draw(seeded(self.seed), *latent_shape))
            self.fresh.allocate(latent_shape)
            self.latent_shape = latent_shape

    def forward(
        self,
        cameras: Cameras,
        opacity: Float[Tensor, "b 1 h w"] | None = None,
        depth: Float[Tensor, "b 1 h w"] | None = None,
    ) -> Float[Tensor, "b c hh ww"]:
        """sqrt(beta) fixed + sqrt(1 - beta) fresh noise."""
        check_view(cameras, opacity, depth)
        allocated(self.latent_shape)
        fixed = self.noise.expand(len(cameras), -1, -1, -1)
        return blend(fixed, self.fresh, self.beta, cameras)


class WorldMapNoise(nn.Module):
    """A window of one map of noise, moved with the camera, before one fixed background (FSD, section 3.3).

    The map is `360 / map_degrees` images wide, closes on itself in azimuth, and reaches from straight above to straight
    below.  A camera turned by `map_degrees` sees the next image width of it; the window moves by whole latent pixels,
    because interpolation would take variance away.  Latent pixels whose mean opacity is below one half get the
    background; without an opacity all of them are foreground.

    `beta`: share of fixed noise (0 is score distillation, 1 is flow score distillation).
    `background`: "fixed", or "fresh" for new noise at every call.
    `released_rows`: number the rows as the released code does, where elevation 0 and 1 share none of them.
    `shared`: the lowest `shared` x `shared` frequencies are the same for all cameras (ours; 0 is the paper).  They
    decide the colour and size of what a pixel-space prior draws: moved with the camera, they give an object another
    colour on each side.  As many as the latent has rows is constant noise.
    """

    map: Tensor
    behind: Tensor
    common: Tensor

    def __init__(
        self,
        seed: int = 0,
        beta: float = 1.0,
        map_degrees: float = 180.0,
        background: str = "fixed",
        released_rows: bool = False,
        latent_shape: Shape | None = None,
        shared: int = 0,
    ) -> None:
        super().__init__()
        if shared < 0:
            raise ValueError(f"shared is {shared}; give the number of frequencies along an axis, 0 or more")
        if not 0 < map_degrees <= 360:
            raise ValueError(f"map_degrees is {map_degrees}; it must be above 0 and at most 360")
        if background not in ("fixed", "fresh"):
            raise ValueError(f"background is {background!r}; it must be 'fixed' or 'fresh'")
        self.seed, self.beta, self.map_degrees = seed, share("beta", beta), map_degrees
        self.background, self.released_rows, self.shared = background, released_rows, shared
        self.fresh = RandomNoise(seed, stream=1)
        self.latent_shape: Shape | None = None
        if latent_shape is not None:
            self.allocate(latent_shape)

    def allocate(self, latent_shape: Shape) -> None:
        """Draws map and background.  Raises ValueError if it has another shape already."""
        if unallocated(self.latent_shape, latent_shape):
            channels, height, width = latent_shape
            generator = seeded(self.seed)
            # Row 0 is what a camera straight above sees first, and `height` more rows than the poles are apart.
            rows = self._half_turn(height) + height
            self.register_buffer("map", draw(generator, channels, rows, int(360 / self.map_degrees * width)))
            self.register_buffer("behind", draw(generator, *latent_shape))
            if self.shared:
                self.register_buffer("common", draw(generator, *latent_shape))
            self.fresh.allocate(latent_shape)
            self.latent_shape = latent_shape

    def forward(
        self,
        cameras: Cameras,
        opacity: Float[Tensor, "b 1 h w"] | None = None,
        depth: Float[Tensor, "b 1 h w"] | None = None,
    ) -> Float[Tensor, "b c hh ww"]:
        """sqrt(beta) [M W(map) + (1 - M) background] + sqrt(1 - beta) fresh noise; low frequencies as `shared` says."""
        check_view(cameras, opacity, depth)
        front = self.window(cameras)
        fixed = front
        if opacity is not None:
            size = allocated(self.latent_shape)[1:]
            solid = adaptive_avg_pool2d(opacity.detach().to(front.dtype), size) >= 0.5
            behind = self.behind if self.background == "fixed" else self.fresh(cameras)
            fixed = torch.where(solid, front, behind)
        if self.shared:
            # In an orthonormal basis any coefficients may be swapped for other normal ones.
            fixed = fixed + low_frequencies(self.common - fixed, self.shared)
        return blend(fixed, self.fresh, self.beta, cameras)

    def window(self, cameras: Cameras) -> Float[Tensor, "b c hh ww"]:
        """The part of the map in front of each camera, W_c(map)."""
        _, height, width = allocated(self.latent_shape)
        turn, half_turn = self.map.shape[2], self._half_turn(height)
        azimuth, elevation = cameras.azimuth_deg, cameras.elevation_deg
        column = _whole(azimuth * (turn / 360)) % turn
        if self.released_rows:
            row = _whole(-elevation * (half_turn / 180)) % max(half_turn, 1)
        else:
            row = _whole((90 - elevation) * (half_turn / 180)).clamp(0, half_turn)
        rows = row[:, None] + torch.arange(height, device=row.device)
        columns = (column[:, None] + torch.arange(width, device=row.device)) % turn
        return self.map[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)

    def _half_turn(self, height: int) -> int:
        """How many latent pixels the window moves from straight above to straight below."""
        return int(180 / self.map_degrees * height)


def low_frequencies(images: Float[Tensor, "*b h w"], count: int) -> Float[Tensor, "*b h w"]:
    """The part of images in the lowest `count` x `count` coefficients of the orthonormal cosine transform (DCT-II)."""
    rows, columns = (cosines(size, count).to(images) for size in images.shape[-2:])
    return rows.T @ (rows @ images @ columns.T) @ columns


def cosines(size: int, count: int) -> Float[Tensor, "count size"]:
    """The first `count` (at most `size`) rows of the orthonormal DCT-II of `size` numbers."""
    number = torch.arange(min(count, size), dtype=torch.float64)[:, None]
    place = torch.arange(size, dtype=torch.float64) + 0.5
    scale = torch.where(number == 0, 1.0, math.sqrt(2.0)) / math.sqrt(size)
    return scale * torch.cos(math.pi / size * number * place)


def blend(
    fixed: Float[Tensor, "b c h w"], fresh: RandomNoise, beta: float, cameras: Cameras
) -> Float[Tensor, "b c h w"]:
    """sqrt(beta) fixed + sqrt(1 - beta) fresh: unit variance, correlation beta between two calls."""
    if beta == 1:
        return fixed
    return math.sqrt(beta) * fixed + math.sqrt(1 - beta) * fresh(cameras).to(fixed)


def seeded(seed: int, stream: int = 0) -> torch.Generator:
    """A generator of its own for every purpose of every seed: seed 0 and seed 1 have no stream in common."""
    return torch.Generator().manual_seed((seed << 8) + stream)


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    """Drawn on the CPU, so that a seed means the same on every device."""
    return torch.randn(*shape, generator=generator)


def check_view(cameras: Cameras, opacity: Tensor | None = None, depth: Tensor | None = None) -> None:
    """Check that opacity and depth are one map per camera. Raises TypeError or ValueError.

    A map without its channel axis would broadcast: each channel of the noise would be masked by another view.
    """
    check_cameras(cameras)
    for name, value in (("opacity", opacity), ("depth", depth)):
        if value is not None:
            hint = f"one map per camera; add a missing axis with {name}[:, None]"
            check_tensor(name, value, "b 1 h w", hint, b=len(cameras))
    check_together(cameras=cameras.c2w, opacity=opacity, depth=depth)


def _whole(places: Tensor) -> Tensor:
    # 90 degrees of a float32 matrix comes back as 89.99999 and must not fall into the pixel before.
    return (places + 1e-4).floor().long()


def share(name: str, value: float) -> float:
    """The value.  Raises ValueError outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; it must be between 0 and 1")
    return value


def unallocated(now: Shape | None, wanted: Shape) -> bool:
    """Whether noise is still to be drawn.  Raises ValueError where it was drawn for another shape."""
    if now not in (None, wanted):
        raise ValueError(
            f"this noise has the latent shape {now} and the prior {wanted}: make one for each prior"
        )
    return now is None


def allocated(shape: Shape | None) -> Shape:
    """The shape.  Raises ValueError where there is none yet."""
    if shape is None:
        raise ValueError(
            "the noise does not know its shape: pass latent_shape=(channels, height, width), or give it to a guidance"
        )
    return shape
