"""The noise of a Gaussian mixture is its score, found by autograd from the density itself."""

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from fsd.cameras import turntable
from fsd.priors.base import Prior
from fsd.priors.mixture import ALPHAS_CUMPROD, MixturePrior, alpha_sigma, mixture_noise
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

CAMERAS = turntable(3)


def prior(modes: int = 5, size: int = 3, std: float = 0.3, weights: bool = True) -> MixturePrior:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(modes, size, generator=generator, dtype=torch.float64)
    chosen = torch.rand(modes, generator=generator, dtype=torch.float64) + 0.1 if weights else None
    return MixturePrior(means, chosen, std)


def predicted(prior: MixturePrior, x: torch.Tensor, t: float, scale: float = 1.0) -> torch.Tensor:
    condition = prior.condition(prior.encode_text("any"), turntable(len(x)))
    return prior.predict_noise(x[:, :, None, None], t, condition, scale)[:, :, 0, 0]


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("t", [0.001, 0.02, 0.3, 0.7, 0.98, 1.0])
def test_noise_is_minus_sigma_times_the_score(t, weights):
    p = prior(weights=weights)
    alpha, sigma = alpha_sigma(t)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64).requires_grad_()
    # The density at time t, built by torch.distributions: modes at alpha mean, as wide as both noises together.
    width = math.sqrt(alpha**2 * p.std**2 + sigma**2)
    logits = p.log_weights if weights else torch.zeros(5, dtype=torch.float64)
    modes = Independent(Normal(alpha * p.means, torch.tensor(width, dtype=torch.float64)), 1)
    density = MixtureSameFamily(Categorical(logits=logits), modes)
    (score,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    torch.testing.assert_close(predicted(p, x.detach(), t), -sigma * score, rtol=1e-9, atol=1e-9)


def test_one_mode_has_the_posterior_mean_of_linear_regression():
    """E[noise | x_t] of one Gaussian is sigma (x_t - alpha mean) / variance, whatever the weights."""
    p = MixturePrior(torch.tensor([[1.0, -2.0]]), torch.tensor([3.0]), std=0.5)
    alpha, sigma = alpha_sigma(0.4)
    x = torch.tensor([[0.3, 0.8]])
    expected = sigma * (x - alpha * p.means) / (alpha**2 * 0.25 + sigma**2)
    torch.testing.assert_close(predicted(p, x, 0.4), expected)


def test_weights_of_each_row():
    """`mixture_noise` takes weights of all rows or of each."""
    p = prior()
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    own = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    both = mixture_noise(x, p.means, own, 0.3, 0.8, 0.6)
    for row in range(2):
        alone = mixture_noise(x[row : row + 1], p.means, own[row], 0.3, 0.8, 0.6)
        torch.testing.assert_close(both[row : row + 1], alone)


def test_levels_are_those_of_stable_diffusion():
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    torch.testing.assert_close(ALPHAS_CUMPROD.float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)
    for t, index in ((0.001, 1), (0.5, 500), (0.9994, 999), (1.0, 999)):
        alpha, sigma = alpha_sigma(t)
        assert alpha**2 == pytest.approx(ALPHAS_CUMPROD[index].item())
        assert alpha**2 + sigma**2 == pytest.approx(1, abs=1e-12)


def test_the_guidance_scale_has_nothing_to_scale():
    p = prior()
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(predicted(p, x, 0.5, 1.0), predicted(p, x, 0.5, 100.0))


def test_calls_shapes_and_gradients():
    p = MixturePrior(torch.randn(4, 12, generator=torch.Generator().manual_seed(0)), latent_shape=(3, 2, 2))
    assert isinstance(p, Prior)
    assert p.latent_shape == (3, 2, 2)
    assert (p.image_size, p.views, p.calls) == (2, 1, 0)
    x = torch.randn(3, 3, 2, 2, requires_grad=True)
    assert p.encode_image(x) is x
    for calls in (1, 2):
        noise = p.predict_noise(x, 0.5, None, 1.0)
        assert p.calls == calls
    assert noise.shape == x.shape
    assert not noise.requires_grad
    assert noise.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_answers_in_the_type_it_is_asked_in(dtype):
    p = MixturePrior(torch.zeros(1, 2))
    noise = p.predict_noise(torch.ones(1, 2, 1, 1, dtype=dtype), 0.98, None, 1.0)
    assert noise.dtype == dtype
    assert noise.flatten().tolist() == pytest.approx([1.0, 1.0], abs=0.01)


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -1.0]])
def test_weights_that_are_none(weights):
    with pytest.raises(ValueError, match=r"2 means and weights .*give a positive weight to each"):
        MixturePrior(torch.zeros(2, 2), torch.tensor(weights))


@pytest.mark.parametrize("std", [0.0, -1.0])
def test_widths_that_are_none(std):
    with pytest.raises(ValueError, match=r"std is .*; it must be positive"):
        MixturePrior(torch.zeros(2, 2), std=std)


def test_images_of_another_shape():
    with pytest.raises(ValueError, match=r"image has shape \(1, 3, 4, 4\); it must be \(b, c=2, h=1, w=1\)"):
        MixturePrior(torch.zeros(2, 2)).encode_image(torch.zeros(1, 3, 4, 4))
