"""The frame that all score distillation methods share.

    x = encode(image);  t = schedule(progress);  e = noise(cameras)
    loss = |x - stop(x - w(t) d)|^2 / (2 B),  so that d loss / d x = w(t) d / B

A method is a direction d(view): see `directions`.  Nothing here knows of renderers, optimisers or files.

    >>> guide = FlowScoreDistillation(prior, noise=WorldMapNoise(seed=0))
    >>> out = guide(view.image, prompt, cameras, progress=step / steps, opacity=view.opacity)
    >>> out.loss.backward()
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from shared_core.ops.host import read_back
from torch import Tensor, nn

from fsd.cameras import Cameras
from fsd.inputs import check_cameras, check_tensor
from fsd.noise import check_view, seeded
from fsd.priors.base import Prior
from fsd.schedule import Schedule

ADVICE = "look at the rendered image, lower the guidance scale, or use precision fp32 or bf16"


class View(NamedTuple):
    """What a direction is computed from: latents x (without gradient), time, noise, and the encoded prompt."""

    prior: Prior
    x: Float[Tensor, "b c h w"]
    t: float
    noise: Float[Tensor, "b c h w"]
    condition: Any
    guidance_scale: float
    cameras: Cameras
    generator: torch.Generator

    def noisy(self) -> Float[Tensor, "b c h w"]:
        """x_t = alpha x + sigma noise."""
        alpha, sigma = self.prior.alpha_sigma(self.t)
        return alpha * self.x + sigma * self.noise


class Guided(NamedTuple):
    """The loss to call backward on, and what it was made of (without gradient).

    `judged`: what has to be finite for this step to be of use, by name: the direction, and what a direction that
    learns has learned from (VSD's network).
    """

    loss: Float[Tensor, ""]
    t: float
    direction: Float[Tensor, "b c h w"]
    noise: Float[Tensor, "b c h w"]
    judged: dict[str, Tensor]


Direction = Callable[[View], Float[Tensor, "b c h w"]]


def flow_step(alpha: float, sigma: float) -> float:
    """lambda = sigma / alpha, which flow matching reads as the step of the flow (FSD, proposition 1)."""
    return sigma / alpha


def one(alpha: float, sigma: float) -> float:
    """The same weight at all times."""
    return 1.0


def noise_variance(alpha: float, sigma: float) -> float:
    """sigma^2 (DreamFusion)."""
    return sigma**2


# w(t) from (alpha, sigma); an optimiser that divides by the gradient's size, such as Adam, hardly sees the difference.
# Named functions, so that a guidance can be pickled.
WEIGHTINGS: dict[str, Callable[[float, float], float]] = {
    "lambda": flow_step,
    "one": one,
    "sigma2": noise_variance,
}


class Guidance(nn.Module):
    """A direction, a noise and a schedule around a prior.  The methods are functions that return one.

    `state_dict()` holds the noise and the generator, so a resumed run goes on as the interrupted one would have.
    Raises ValueError for an unknown weighting.
    """

    def __init__(
        self,
        prior: Prior,
        direction: Direction,
        noise: nn.Module,
        schedule: Schedule,
        weighting: str = "lambda",
        guidance_scale: float = 7.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting {weighting!r}: choose one of {', '.join(WEIGHTINGS)}")
        # Kept out of the submodules: a prior's weights are in no checkpoint of a scene.
        self._prior = [prior]
        self.direction, self.schedule = direction, schedule
        noise.allocate(prior.latent_shape)
        self.noise = noise
        self.weight = WEIGHTINGS[weighting]
        self.guidance_scale = guidance_scale
        self.generator = seeded(seed, stream=2)

    @property
    def prior(self) -> Prior:
        """The prior it was made with."""
        return self._prior[0]

    def forward(
        self,
        image: Float[Tensor, "b channels h w"],
        prompt: Any,
        cameras: Cameras,
        progress: float,
        opacity: Float[Tensor, "b 1 h w"] | None = None,
        depth: Float[Tensor, "b 1 h w"] | None = None,
        check: bool = True,
    ) -> Guided:
        """One batch of rendered images in [0, 1], from `cameras`; `prompt` comes from `prior.encode_text`.

        `progress` in [0, 1] is the share of the run that is done.  `opacity` and `depth` are asked for by noise that
        depends on the surface.  The loss is a mean over the batch and a sum over the latent's elements.
        `check` waits for the device to see whether all of `judged` is finite; False is for a loop that judges it,
        together with its loss and gradients.
        Raises ValueError for a number of images that is not that of the cameras or no multiple of the prior's views,
        FloatingPointError where the prior gives numbers that are not finite and `check` is set.
        """
        check_tensor(
            "image", image, "b channels h w", "one rendered image per camera, channels before height"
        )
        check_cameras(cameras)
        cameras = cameras.to(image.device)
        check_view(cameras, opacity, depth)
        _check_home(self.noise, image)
        if len(image) != len(cameras) or len(image) % self.prior.views:
            raise ValueError(
                f"{len(image)} images, {len(cameras)} cameras, and a prior of {self.prior.views} views an object: "
                "give one camera per image, and all views of an object together"
            )
        x = self.prior.encode_image(image)
        channels, height, width = self.prior.latent_shape
        latent = {"b": len(image), "c": channels, "h": height, "w": width}
        check_tensor("what the prior encodes", x, "b c h w", "the prior's latent_shape says so", **latent)
        with torch.no_grad():
            t = self.schedule(progress, self.generator)
            noise = self.noise(cameras, opacity, depth).to(x)
            check_tensor("the noise", noise, "b c h w", "one latent of noise per camera", **latent)
            condition = self.prior.condition(prompt, cameras)
            view = View(
                self.prior, x.detach(), t, noise, condition, self.guidance_scale, cameras, self.generator
            )
            direction = self.direction(view)
            judged = {"prior": direction, **getattr(self.direction, "judged", dict)()}
            if check:
                self._refuse(judged, t)
            target = x - self.weight(*self.prior.alpha_sigma(t)) * direction
        loss = (x - target).square().sum() / (2 * len(x))
        return Guided(loss, t, direction, noise, judged)

    def _refuse(self, judged: dict[str, Tensor], t: float) -> None:
        """All that a step waits for on a GPU."""
        bad = torch.stack([~torch.isfinite(value).all() for value in judged.values()])
        for name, found in zip(judged, read_back(bad, "is the prior's answer finite?").tolist(), strict=True):
            if found:
                what = f"the prior {type(self.prior).__name__}" if name == "prior" else name
                raise FloatingPointError(f"{what} gave numbers that are not finite at t={t:.3f}: {ADVICE}")

    def get_extra_state(self) -> dict[str, Tensor]:
        """The generator's state."""
        return {"generator": self.generator.get_state()}

    def set_extra_state(self, state: Any) -> None:
        """Puts it back."""
        self.generator.set_state(state["generator"].cpu())


def _check_home(noise: nn.Module, image: Tensor) -> None:
    home = next(noise.buffers(), image).device
    if home != image.device:
        raise ValueError(
            f"the guidance is on {home} and the image on {image.device}; move it with guide.to(image.device)"
        )
