"""The exact denoiser of a set of captioned renders: a prior that needs no training and knows the truth.

It is a Gaussian mixture (`priors.mixture`) whose modes are the pictures of every object from every view of a grid,
weighted by how near the view is to the camera asked for.  Alone, each view chooses its object by itself, as an
image model does; jointly, one posterior over objects is shared by all views of a batch, as in a multi-view model
such as MVDream (arXiv 2308.16512).

    >>> prior = RenderBank(joint=True)
    >>> prompt = prior.encode_text("a red object")
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from fsd.cameras import Cameras, place
from fsd.inputs import check_cameras, check_tensor
from fsd.priors.base import wide
from fsd.priors.mixture import alpha_sigma
from fsd.world.renders import paint, trace
from fsd.world.solids import KINDS
from fsd.world.words import COLOURS, Asked, understand

DISTANCE, FOV_DEG = 2.6, 40.0
# Half of what a camera sees at the origin.
WIDTH = DISTANCE * math.tan(math.radians(FOV_DEG) / 2)
ELEVATIONS = (0.0, 10.0, 20.0, 30.0, 40.0)
# Views further away than this many widths of the kernel play no part.
REACH = 3.0


class BankCondition(NamedTuple):
    """Which objects fit, and for each camera the views near it with the logarithm of their weight."""

    fits: Float[Tensor, " objects"]
    views: list[Tensor]
    log_kernel: list[Tensor]


class RenderBank:
    """64 objects, seen from `azimuths` directions at five elevations up to 40 degrees, distance 2.6, 40 degrees wide.

    `views` 4 with `joint`; `std` is the width of a mode in pixel values; the kernel's widths are in degrees.
    Raises ValueError for views so far apart that a camera between them would have none near.
    """

    def __init__(
        self,
        joint: bool = True,
        size: int = 32,
        azimuths: int = 36,
        std: float = 0.05,
        azimuth_width: float = 10.0,
        elevation_width: float = 7.0,
    ) -> None:
        # The worst place is in the middle of four views.
        away = math.hypot(180 / azimuths / azimuth_width, ELEVATIONS[1] / 2 / elevation_width)
        if away >= REACH:
            raise ValueError(
                f"azimuths={azimuths} with kernels of {azimuth_width:g} and {elevation_width:g} deg: a camera can be "
                f"{away:.1f} widths from every view, and only those within {REACH:g} count; give more azimuths or "
                "wider kernels"
            )
        self.joint, self.std = joint, std
        self.widths = (azimuth_width, elevation_width)
        self.image_size, self.latent_shape = size, (3, size, size)
        self.views, self.calls = (4 if joint else 1), 0
        azimuth = torch.arange(azimuths).repeat(len(ELEVATIONS)) * (360 / azimuths)
        elevation = torch.tensor(ELEVATIONS).repeat_interleave(azimuths)
        self.azimuth, self.elevation = azimuth, elevation
        cameras = place(azimuth, elevation, DISTANCE, FOV_DEG)
        self.names = [(colour, kind) for kind in KINDS for colour in COLOURS]
        traced = [trace(solid, cameras, size) for solid in KINDS.values()]
        painted = [paint(*parts, colour) for parts in traced for colour in COLOURS.values()]
        # In [-1, 1], as diffusion models want images: (objects, views, pixels).
        self.means = torch.stack(painted).flatten(2) * 2 - 1
        self.squares = self.means.square().sum(-1)

    def encode_text(self, prompt: str, negative_prompt: str = "") -> Asked:
        """What the prompt asks for.  Raises ValueError for words it does not know, and for a negative prompt."""
        if negative_prompt:
            raise ValueError("the render bank takes no negative prompt: its other side is any object")
        return understand(prompt)

    def condition(self, prompt: Asked, cameras: Cameras) -> BankCondition:
        """The views of the bank near each camera.

        Raises ValueError for a camera above or below all of them, or one that sees objects larger or smaller.
        """
        check_cameras(cameras)
        width = cameras.distance * torch.tan(torch.deg2rad(cameras.fov_deg) / 2)
        if bool((width / WIDTH - 1).abs().max() > 0.1):
            raise ValueError(
                f"a camera at distance {cameras.distance[0].item():.2f} with {cameras.fov_deg[0].item():.0f} deg, but "
                f"the render bank has views from {DISTANCE} with {FOV_DEG:g} deg: keep cameras there"
            )
        fits = torch.tensor([c in prompt.colours and k in prompt.kinds for c, k in self.names])
        views, kernels = [], []
        for azimuth, elevation in zip(
            cameras.azimuth_deg.tolist(), cameras.elevation_deg.tolist(), strict=True
        ):
            turn = (self.azimuth - azimuth + 180) % 360 - 180
            log = -0.5 * ((turn / self.widths[0]) ** 2 + ((self.elevation - elevation) / self.widths[1]) ** 2)
            near = (log > -0.5 * REACH**2).nonzero()[:, 0]
            if len(near) == 0:
                raise ValueError(
                    f"a camera at elevation {elevation:.0f} deg, but the render bank has views from "
                    f"{ELEVATIONS[0]:g} to {ELEVATIONS[-1]:g}: keep cameras there"
                )
            views.append(near)
            kernels.append(log[near])
        return BankCondition(torch.where(fits, 0.0, -torch.inf), views, kernels)

    def encode_image(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 hh ww"]:
        """To [-1, 1] and to the bank's size, in float32 or wider."""
        check_tensor("image", image, "b 3 h w", "images of three colours, channels before height")
        image = image.to(wide(image))
        if image.shape[-2:] != (self.image_size, self.image_size):
            side = (self.image_size, self.image_size)
            image = interpolate(image, side, mode="bilinear", antialias=True, align_corners=False)
        return image * 2 - 1

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """Stable Diffusion's."""
        return alpha_sigma(t)

    @torch.no_grad()
    def predict_noise(
        self, x_t: Float[Tensor, "b c h w"], t: float, condition: BankCondition, guidance_scale: float
    ) -> Float[Tensor, "b c h w"]:
        """Exact.  Guided against any object; an open prompt has nothing to guide."""
        check_tensor("x_t", x_t, "b 3 h w", b=len(condition.views), h=self.image_size, w=self.image_size)
        self.calls += 1
        flat = x_t.flatten(1)
        alpha, sigma = alpha_sigma(t)
        variance = alpha**2 * self.std**2 + sigma**2
        means = [self.means[:, views].to(flat) for views in condition.views]
        logs = [
            self._log_views(*view, alpha, variance)
            for view in zip(flat, means, condition.views, condition.log_kernel, strict=True)
        ]
        clean = self._clean(means, logs, condition.fits.to(flat), len(x_t))
        if guidance_scale != 1 and bool(condition.fits.isinf().any()):
            anything = self._clean(means, logs, torch.zeros_like(condition.fits).to(flat), len(x_t))
            clean = anything + guidance_scale * (clean - anything)
        return (sigma / variance * (flat - alpha * clean)).view_as(x_t)

    def describe(
        self, images: Float[Tensor, "b 3 h w"], cameras: Cameras
    ) -> tuple[list[str], Float[Tensor, " b"]]:
        """The object that each image resembles most ("red mug"), and its distance: RMSE of pixels in [0, 1]."""
        flat = self.encode_image(images).flatten(1)
        near = self.condition(understand("object"), cameras).views
        labels, distances = [], []
        for pixels, views in zip(flat, near, strict=True):
            error = (self.means[:, views].to(pixels) - pixels).square().mean(-1).amin(1)
            best = int(error.argmin())
            labels.append(" ".join(self.names[best]))
            distances.append(error[best].sqrt() / 2)
        return labels, torch.stack(distances)

    def _log_views(
        self, pixels: Tensor, means: Tensor, views: Tensor, log_kernel: Tensor, alpha: float, variance: float
    ) -> Tensor:
        """(objects, views near): how well each picture explains one noisy view."""
        squares = self.squares[:, views].to(pixels)
        return log_kernel.to(pixels) + (alpha * (means @ pixels) - 0.5 * alpha**2 * squares) / variance

    def _clean(self, means: list[Tensor], logs: list[Tensor], fits: Tensor, batch: int) -> Tensor:
        """Posterior mean of every view: of its own object, or of the one that all views of an object share."""
        objects = torch.stack([log.logsumexp(1) for log in logs])
        if self.joint:
            groups = objects.view(-1, self.views, objects.shape[1]).sum(1)
            objects = groups.repeat_interleave(self.views, 0)
        chosen = (objects + fits).softmax(1)
        return torch.stack(
            [
                torch.einsum("o,ov,ovd->d", weight, log.softmax(1), mean)
                for weight, log, mean in zip(chosen, logs, means, strict=True)
            ]
        )
