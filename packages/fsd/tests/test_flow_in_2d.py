"""In two dimensions flow score distillation is DDIM, exactly; with Adam it still keeps the modes apart."""

from functools import partial

import fsd
import pytest
import torch
from diffusers import DDIMScheduler
from fsd.priors.mixture import ALPHAS_CUMPROD
from torch import nn

MODES = 8
WEIGHTS = torch.tensor([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05], dtype=torch.float64)


class OwnNoise(nn.Module):
    """A noise of its own for every image of the batch, as for that many seeds at once."""

    def __init__(self, noise):
        super().__init__()
        self.register_buffer("noise", noise)

    def allocate(self, latent_shape):
        pass

    def forward(self, cameras, opacity=None, depth=None):
        return self.noise


def mixture(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(MODES, 64, generator=generator, dtype=torch.float64)
    return fsd.MixturePrior(means.to(dtype), WEIGHTS.to(dtype))


def noise_of(seeds, dtype=torch.float64):
    return torch.randn(seeds, 64, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )


def ddim_scheduler(steps):
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    scheduler.alphas_cumprod = ALPHAS_CUMPROD
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(steps)
    return scheduler


def ddim(prior, noise, steps):
    """DDIM from x_T = sigma_T noise; every clean variable on the way, and the sample."""
    scheduler = ddim_scheduler(steps)
    x, path = None, []
    for step in scheduler.timesteps:
        alpha, sigma = prior.alpha_sigma(step.item() / 1000)
        x = sigma * noise if x is None else x
        path.append((x - sigma * noise) / alpha)
        x = scheduler.step(prior.predict_noise(x, step.item() / 1000, None, 1.0), step, x).prev_sample
    return x, path


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_sgd_of_step_delta_lambda_is_ddim(dtype, tolerance):
    prior, noise = mixture(dtype), noise_of(16, dtype)
    steps = ddim_scheduler(50).timesteps.tolist()
    sample, path = ddim(prior, noise, 50)
    guide = fsd.FlowScoreDistillation(
        prior,
        OwnNoise(noise),
        lambda progress, generator: steps[round(progress * 50)] / 1000,
        weighting="one",
    )
    image = torch.zeros(16, 64, 1, 1, dtype=dtype, requires_grad=True)
    cameras = fsd.cameras.turntable(16)
    levels = [sigma / alpha for alpha, sigma in (prior.alpha_sigma(step / 1000) for step in steps)] + [0.0]
    for n in range(50):
        assert (image.detach() - path[n]).abs().max() < tolerance * levels[0]
        guide(image, "any", cameras, progress=n / 50).loss.backward()
        with torch.no_grad():
            # The loss is a mean over the batch.
            image -= (levels[n] - levels[n + 1]) * len(image) * image.grad
            image.grad = None
    assert (image.detach() - sample).abs().max() < tolerance


def by_adam(method, seeds, noise=None, steps=1000, **settings):
    """The images that a method makes with Adam, lr times steps of 2.5."""
    prior = mixture(torch.float32)
    guide = method(prior, noise, **settings)
    image = torch.zeros(seeds, 64, 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([image], lr=2.5 / steps, betas=(0.0, 0.99), eps=1e-15)
    cameras = fsd.cameras.turntable(seeds)
    for n in range(steps):
        optimizer.zero_grad()
        guide(image, "any", cameras, progress=n / steps).loss.backward()
        optimizer.step()
    return image.detach().flatten(1)


def modes(images):
    return torch.cdist(images.float(), mixture(torch.float32).means).argmin(1)


def entropy(labels):
    share = torch.bincount(labels, minlength=MODES).double() / len(labels)
    return -(share[share > 0] * share[share > 0].log()).sum().item()


def test_with_adam_flow_keeps_the_modes_and_score_distillation_loses_them():
    truth = -(WEIGHTS * WEIGHTS.log()).sum().item()
    noise = noise_of(256, torch.float32)
    sample, _ = ddim(mixture(torch.float32), noise, 50)
    flow = modes(by_adam(fsd.FlowScoreDistillation, 256, OwnNoise(noise)))
    assert (flow == modes(sample.flatten(1))).float().mean() >= 0.93
    assert abs(entropy(flow) - truth) <= 0.15
    annealed = modes(by_adam(fsd.AnnealedScoreDistillation, 256))
    assert entropy(annealed) < truth / 2


@pytest.mark.parametrize("weighting", ["lambda", "one", "sigma2"])
def test_adam_hardly_sees_the_weighting(weighting):
    noise = noise_of(64, torch.float32)
    flow = modes(
        by_adam(partial(fsd.FlowScoreDistillation, weighting=weighting), 64, OwnNoise(noise), steps=300)
    )
    sample, _ = ddim(mixture(torch.float32), noise, 50)
    assert (flow == modes(sample.flatten(1))).float().mean() >= 0.85
