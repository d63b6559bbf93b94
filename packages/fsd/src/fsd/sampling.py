"""Pictures from a prior by DDIM (arXiv 2010.02502, equation 12 with sigma 0), for looking at priors and judging them.

>>> condition = several(prior, ["a red mug", "a car"], turntable(4))     # four views of each
>>> images = ddim(prior, condition, noise, steps=50, guidance_scale=3.0)
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from shared_core.ops.host import read_back
from torch import Tensor

from fsd.cameras import Cameras
from fsd.inputs import check_tensor


@torch.no_grad()
def ddim(
    prior: Any,
    condition: Any,
    noise: Float[Tensor, "b c h w"],
    steps: int = 50,
    guidance_scale: float = 3.0,
    t_max: float = 1.0,
) -> Float[Tensor, "b c h w"]:
    """From noise at `t_max` to t = 0 in equal steps of time; pixels in [0, 1] for a prior of pixels, else latents.

    Raises ValueError for fewer than one step, FloatingPointError where the prior gives numbers that are not finite.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; give at least 1")
    channels, height, width = prior.latent_shape
    check_tensor("noise", noise, "b c h w", "the prior's latent shape", c=channels, h=height, w=width)
    times = [t_max * (1 - step / steps) for step in range(steps)]
    alpha, sigma = prior.alpha_sigma(times[0])
    x = noise * sigma
    clean = x
    for step, t in enumerate(times):
        predicted = prior.predict_noise(x, t, condition, guidance_scale)
        clean = (x - sigma * predicted) / alpha
        if step + 1 < steps:
            alpha, sigma = prior.alpha_sigma(times[step + 1])
            x = alpha * clean + sigma * predicted
    if not bool(read_back(torch.isfinite(clean).all(), "are the samples finite?")):
        raise FloatingPointError(
            f"the prior {type(prior).__name__} gave numbers that are not finite: its weights hold some, or fp16 "
            "overflowed (use precision bf16 or fp32)"
        )
    return (clean / 2 + 0.5).clamp(0, 1) if _of_pixels(prior) else clean


def several(prior: Any, prompts: Sequence[str], cameras: Cameras) -> Any:
    """The condition for all of `cameras` with the first prompt, then with the second, and so on (diffusers priors)."""
    parts = [prior.condition(prior.encode_text(prompt), cameras) for prompt in prompts]

    def joined(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    return parts[0]._replace(
        positive=joined([part.positive for part in parts]),
        negative=joined([part.negative for part in parts]),
        extra=joined([part.extra for part in parts]),
    )


def _of_pixels(prior: Any) -> bool:
    return prior.latent_shape[1] == prior.image_size
