"""A Gaussian mixture as a prior: its score is known exactly, so what a method makes of it can be judged.

    p(x) = sum_k w_k N(x; mean_k, std^2)
    e(x_t) = sigma_t sum_k r_k(x_t) (x_t - alpha_t mean_k) / (alpha_t^2 std^2 + sigma_t^2)

with r_k the posterior of mode k given x_t: the closed form of the noise that a perfect denoiser predicts.

    >>> prior = MixturePrior(torch.randn(8, 64), weights=torch.ones(8) / 8)
    >>> noise = prior.predict_noise(x_t, t=0.5, condition=prior.condition(prior.encode_text("any"), cameras), ...)
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fsd.cameras import Cameras
from fsd.inputs import check_tensor
from fsd.priors.base import wide

# Stable Diffusion's table of noise levels ("scaled linear", 0.00085 to 0.012 in 1,000 steps).
ALPHAS_CUMPROD = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)


def alpha_sigma(t: float) -> tuple[float, float]:
    """Signal and noise level of Stable Diffusion's step `round(1000 t)`, from 0 to 999."""
    squared = ALPHAS_CUMPROD[min(round(1000 * t), 999)].item()
    return squared**0.5, (1 - squared) ** 0.5


def mixture_noise(
    x_t: Float[Tensor, "b d"],
    means: Float[Tensor, "k d"],
    log_weights: Float[Tensor, "*b k"],
    std: float,
    alpha: float,
    sigma: float,
) -> Float[Tensor, "b d"]:
    """The exact noise prediction of a mixture with modes of equal width."""
    variance = alpha**2 * std**2 + sigma**2
    posterior = (log_weights + log_likelihood(x_t, means, variance, alpha)).softmax(-1)
    return sigma / variance * (x_t - alpha * (posterior @ means))


def log_likelihood(
    x_t: Float[Tensor, "b d"], means: Float[Tensor, "k d"], variance: float, alpha: float
) -> Float[Tensor, "b k"]:
    """log N(x_t; alpha mean_k, variance), up to what all modes share."""
    return (alpha * (x_t @ means.T) - 0.5 * alpha**2 * means.square().sum(-1)) / variance


class MixturePrior:
    """Modes with means `(k, d)`, in a space of latent shape (d, 1, 1) unless given; one prompt, which is ignored."""

    def __init__(
        self,
        means: Float[Tensor, "k d"],
        weights: Float[Tensor, " k"] | None = None,
        std: float = 0.25,
        latent_shape: tuple[int, int, int] | None = None,
    ) -> None:
        check_tensor("means", means, "k d", "one mode per row")
        if weights is None:
            weights = torch.full((len(means),), 1 / len(means), dtype=means.dtype)
        if len(weights) != len(means) or bool((weights <= 0).any()):
            raise ValueError(
                f"{len(means)} means and weights {weights.tolist()}: give a positive weight to each"
            )
        if std <= 0:
            raise ValueError(f"std is {std}; it must be positive")
        self.means, self.std = means, std
        self.log_weights = (weights / weights.sum()).log()
        self.latent_shape = latent_shape or (means.shape[1], 1, 1)
        self.image_size = self.latent_shape[1]
        self.views, self.calls = 1, 0

    def encode_text(self, prompt: str, negative_prompt: str = "") -> str:
        """The prompt as it is."""
        return prompt

    def condition(self, prompt: str, cameras: Cameras) -> None:
        """Nothing: all prompts and views are alike."""

    def encode_image(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The image itself, of the latent shape, in float32 or wider."""
        _, height, width = self.latent_shape
        check_tensor("image", image, "b c h w", c=self.latent_shape[0], h=height, w=width)
        return image.to(wide(image))

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """Stable Diffusion's."""
        return alpha_sigma(t)

    @torch.no_grad()
    def predict_noise(
        self, x_t: Float[Tensor, "b c h w"], t: float, condition: Any, guidance_scale: float
    ) -> Float[Tensor, "b c h w"]:
        """Exact; the guidance scale has nothing to scale."""
        channels, height, width = self.latent_shape
        check_tensor("x_t", x_t, "b c h w", c=channels, h=height, w=width)
        self.calls += 1
        means, weights = self.means.to(x_t), self.log_weights.to(x_t)
        return mixture_noise(x_t.flatten(1), means, weights, self.std, *alpha_sigma(t)).view_as(x_t)
