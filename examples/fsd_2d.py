"""In two dimensions the method is exact: gradient descent by delta lambda is DDIM, number for number.

python examples/fsd_2d.py [STEPS]
"""

import sys
from itertools import pairwise

import fsd
import torch
from fsd.guidance.directions import noise_residual
from fsd.guidance.frame import View

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 50
generator = torch.Generator().manual_seed(0)
prior = fsd.MixturePrior(
    3 * torch.randn(8, 2, generator=generator, dtype=torch.float64)
)  # eight modes in a plane
camera = fsd.cameras.turntable(1)
condition = prior.condition(prior.encode_text("any"), camera)
times = torch.linspace(0.999, 0.0, steps + 1).tolist()
noise = torch.randn(256, *prior.latent_shape, generator=generator, dtype=torch.float64)


def ratio(t: float) -> float:
    """lambda: noise over signal."""
    alpha, sigma = prior.alpha_sigma(t)
    return sigma / alpha


# The sampler: 256 samples, each from a noise of its own.
alpha, sigma = prior.alpha_sigma(times[0])
sample = sigma * noise
for now, after in pairwise(times):
    predicted = prior.predict_noise(sample, now, condition, guidance_scale=1.0)
    clean = (sample - prior.alpha_sigma(now)[1] * predicted) / prior.alpha_sigma(now)[0]
    alpha, sigma = prior.alpha_sigma(after)
    sample = alpha * clean + sigma * predicted

# The guidance: 256 "images", each pulled along its direction; the noise of an image never changes.
image = torch.zeros_like(noise)
for now, after in pairwise(times):
    view = View(prior, image, now, noise, condition, 1.0, camera, generator)
    image = image + (ratio(after) - ratio(now)) * noise_residual(view)

alpha, sigma = prior.alpha_sigma(times[-1])
error = (alpha * image + sigma * noise - sample).abs().max().item()
modes = torch.cdist(image.flatten(1), prior.means).argmin(1).bincount(minlength=8)
print(f"largest difference {error:.1e}; samples at each of the eight modes: {modes.tolist()}")
assert error < 1e-9
