"""What guidance asks of a prior.  Any object with these members is one.

Time runs from 1 (noise) to 0 (image) as a plain float, the same for the whole batch: a prior with 1,000 training
steps takes step `round(1000 t)`, a flow-matching one s = t.  Noisy images are x_t = alpha x + sigma noise; priors that
predict something else (v, the sample, a velocity) convert.  There is one convention for guidance,

    noise = noise(negative) + guidance_scale * (noise(prompt) - noise(negative)),

so that 1 is the prompt alone and 0 the negative prompt alone; either needs half the network's work.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from fsd.cameras import Cameras


def wide(x: Tensor) -> torch.dtype:
    """The type for latents, times, sizes and places beside an image: float32, or that of the image if it is wider."""
    return torch.promote_types(x.dtype, torch.float32)


@runtime_checkable
class Prior(Protocol):
    """A frozen model of images given a prompt.

    latent_shape: (channels, height, width) of what it denoises.
    image_size: side in pixels of the images that `encode_image` takes.
    views: how many views of one object it denoises together; 1 if each alone.
    calls: forward passes of the network so far (one with prompt and negative prompt together counts as one).
    """

    latent_shape: tuple[int, int, int]
    image_size: int
    views: int
    calls: int

    def encode_text(self, prompt: str, negative_prompt: str = "") -> Any:
        """The prompt as this prior wants it, once per object.  Raises ValueError for one that it cannot take."""
        ...

    def condition(self, prompt: Any, cameras: Cameras) -> Any:
        """What `predict_noise` needs for these views of an encoded prompt: view words, camera matrices."""
        ...

    def encode_image(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hh ww"]:
        """From pixels in [0, 1] to the space of `latent_shape`, with gradient.

        The guidance draws noise and mixes levels in the type of the result: `wide` has enough digits for both.
        """
        ...

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        """Signal and noise level at time t in (0, 1]; alpha is positive."""
        ...

    def predict_noise(
        self, x_t: Float[Tensor, "b c h w"], t: float, condition: Any, guidance_scale: float
    ) -> Float[Tensor, "b c h w"]:
        """The noise in x_t; no gradient flows."""
        ...
