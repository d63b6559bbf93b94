"""The frame and the methods, against their equations on a prior whose noise is known."""

import math

import fsd
import pytest
import torch
from fsd.cameras import turntable
from fsd.guidance import METHODS
from fsd.guidance.directions import invert
from fsd.guidance.frame import WEIGHTINGS, View
from fsd.noise import seeded
from fsd.priors.base import Prior

SHAPE = (3, 8, 8)
BATCH = 4


class LinearPrior:
    """Predicts a multiple of what it sees, more with the prompt than without: everything has a closed form."""

    latent_shape, image_size, views = SHAPE, 8, 1

    def __init__(self):
        self.calls = 0
        self.scales = []

    def encode_text(self, prompt, negative_prompt=""):
        return {"any": 0.5, "bad": 0.3}[prompt]

    def condition(self, prompt, cameras):
        return prompt

    def encode_image(self, image):
        return 2 * image - 1

    def alpha_sigma(self, t):
        return math.cos(t * math.pi / 2 * 0.99), math.sin(t * math.pi / 2 * 0.99)

    def predict_noise(self, x_t, t, condition, guidance_scale):
        self.calls += 1
        self.scales.append(guidance_scale)
        without = 0.1 * x_t
        return without + guidance_scale * (condition * x_t - without)


def call(method, prior=None, **settings):
    prior = prior or LinearPrior()
    guide = method(prior, fsd.ConstantNoise(1), schedule=lambda progress, generator: 0.5, **settings)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(BATCH, *SHAPE, generator=generator).requires_grad_()
    opacity, depth = torch.ones(2, BATCH, 1, 8, 8)
    out = guide(image, prior.encode_text("any"), turntable(BATCH), 0.3, opacity, depth)
    return guide, image, out


def parts(guide, image):
    """x, noise, alpha, sigma and x_t of the call above."""
    x = (2 * image - 1).detach()
    noise = guide.noise.noise.expand_as(x)
    alpha, sigma = guide.prior.alpha_sigma(0.5)
    return x, noise, alpha, sigma, alpha * x + sigma * noise


def test_a_plain_object_is_a_prior():
    assert isinstance(LinearPrior(), Prior)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_gradient_is_weight_times_direction_over_the_batch(weighting):
    guide, image, out = call(fsd.FlowScoreDistillation, weighting=weighting, guidance_scale=3.0)
    out.loss.backward()
    _, noise, alpha, sigma, x_t = parts(guide, image)
    direction = (0.1 + 3 * 0.4) * x_t - noise
    weight = {"lambda": sigma / alpha, "one": 1.0, "sigma2": sigma**2}[weighting]
    assert torch.allclose(out.direction, direction, atol=1e-5)
    # The encoder doubles the image.
    assert torch.allclose(image.grad, 2 * weight * direction / BATCH, atol=1e-5)
    assert out.loss.item() == pytest.approx(
        (weight * direction).square().sum().item() / (2 * BATCH), rel=1e-5
    )


@pytest.mark.parametrize("method", ["sds", "sds-annealed", "fsd", "cfd"])
def test_score_distillation_methods_share_a_direction(method):
    guide, image, out = call(METHODS[method])
    _, noise, _, _, x_t = parts(guide, image)
    assert torch.allclose(out.direction, (0.1 + 7.5 * 0.4) * x_t - noise, atol=1e-5)


def test_flow_makes_no_call_more_than_score_distillation():
    calls = {}
    for name in ("sds", "fsd", "cfd"):
        guide, _, _ = call(METHODS[name])
        calls[name] = guide.prior.calls
    assert calls == {"sds": 1, "fsd": 1, "cfd": 1}


def test_classifier_score_is_the_difference_that_the_prompt_makes():
    guide, image, out = call(fsd.ClassifierScoreDistillation)
    assert torch.allclose(out.direction, 0.4 * parts(guide, image)[-1], atol=1e-6)
    assert sorted(guide.prior.scales) == [0.0, 1.0]


def test_noise_free_score():
    prior = LinearPrior()
    guide, image, out = call(fsd.NoiseFreeScoreDistillation, prior, negative=prior.encode_text("bad"))
    x_t = parts(guide, image)[-1]
    assert torch.allclose(out.direction, (0.1 - 0.3) * x_t + 7.5 * 0.4 * x_t, atol=1e-5)


def test_noise_free_score_below_the_threshold_leaves_the_unconditional_part():
    prior = LinearPrior()
    guide = fsd.NoiseFreeScoreDistillation(prior, fsd.ConstantNoise(1), schedule=lambda p, g: 0.1)
    image = torch.rand(1, *SHAPE)
    out = guide(image, 0.5, turntable(1), 0.9)
    alpha, sigma = prior.alpha_sigma(0.1)
    x_t = alpha * (2 * image - 1) + sigma * guide.noise.noise
    assert torch.allclose(out.direction, 0.1 * x_t + 7.5 * 0.4 * x_t, atol=1e-5)


def test_inversion_score_against_a_plain_loop():
    _, image, out = call(fsd.InversionScoreDistillation, steps=4)
    prior = LinearPrior()
    x = (2 * image - 1).detach()
    # A generator of the guidance's own draws the share eta of the noise.
    generator = seeded(0, stream=2)
    now, y = 0.0, x
    for step in range(4):
        after = 0.02 + (0.5 - 0.02) * (step + 1) / 4
        noise = prior.predict_noise(y, max(now, 0.02), 0.5, -7.5)
        alpha, sigma = prior.alpha_sigma(now) if now else (1.0, 0.0)
        clean = (y - sigma * noise) / alpha
        fresh = torch.randn(*y.shape, generator=generator)
        noise = math.sqrt(1 - 0.09) * noise + 0.3 * fresh
        alpha, sigma = prior.alpha_sigma(after)
        y, now = alpha * clean + sigma * noise, after
    alpha, sigma = prior.alpha_sigma(0.5)
    clean = (y - sigma * prior.predict_noise(y, 0.5, 0.5, 7.5)) / alpha
    assert torch.allclose(out.direction, x - clean, rtol=1e-4, atol=1e-4)


def test_interval_score_against_a_plain_loop():
    _, image, out = call(fsd.IntervalScoreMatching)
    prior = LinearPrior()
    y, now, s = (2 * image - 1).detach(), 0.0, 0.45
    for step in range(3):
        after = 0.02 + (s - 0.02) * (step + 1) / 3
        noise = prior.predict_noise(y, max(now, 0.02), 0.5, 0.0)
        alpha, sigma = prior.alpha_sigma(now) if now else (1.0, 0.0)
        clean = (y - sigma * noise) / alpha
        alpha, sigma = prior.alpha_sigma(after)
        y, now = alpha * clean + sigma * noise, after
    at_s = prior.predict_noise(y, s, 0.5, 0.0)
    alpha, sigma = prior.alpha_sigma(s)
    clean = (y - sigma * at_s) / alpha
    alpha, sigma = prior.alpha_sigma(0.5)
    x_t = alpha * clean + sigma * at_s
    assert torch.allclose(out.direction, prior.predict_noise(x_t, 0.5, 0.5, 7.5) - at_s, atol=1e-4)


def test_inversion_and_ddim_undo_each_other():
    """On a prior of one Gaussian mode DDIM is invertible in the limit of small steps."""
    prior = fsd.MixturePrior(torch.zeros(1, 16, dtype=torch.float64), std=0.5)
    x = torch.randn(2, 16, 1, 1, dtype=torch.float64)
    view = View(prior, x, 0.6, torch.zeros_like(x), None, 1.0, turntable(2), torch.Generator())
    there, _ = invert(view, 0.6, 600, 1.0, start=0.001)
    # The flow of a Gaussian scales by the ratio of the widths.
    alpha, sigma = prior.alpha_sigma(0.6)
    wanted = x * math.sqrt(alpha**2 * 0.25 + sigma**2) / 0.5
    assert (there - wanted).abs().max() < 0.05


@pytest.mark.parametrize("name", [name for name in METHODS if name != "vsd"])  # which trains a network
def test_every_method_runs_repeats_and_keeps_its_state(name):
    def straight(steps, state=None):
        prior = LinearPrior()
        guide = METHODS[name](prior, seed=3)
        if state is not None:
            guide.load_state_dict(state)
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(BATCH, *SHAPE, generator=generator)
        opacity, depth = torch.ones(2, BATCH, 1, 8, 8)
        drawn = [guide(image, 0.5, turntable(BATCH), 0.4, opacity, depth).direction for _ in range(steps)]
        return guide, drawn

    _, wanted = straight(4)
    half, _ = straight(2)
    _, rest = straight(2, half.state_dict())
    assert torch.equal(rest[0], wanted[2])
    assert torch.equal(rest[1], wanted[3])


def test_no_gradient_reaches_through_the_direction():
    prior = LinearPrior()
    guide = fsd.ScoreDistillation(prior)
    image = torch.rand(1, *SHAPE, requires_grad=True)
    out = guide(image, 0.5, turntable(1), 0.0)
    assert not out.direction.requires_grad
    assert not out.noise.requires_grad


def test_bf16_images_are_guided_too():
    prior = LinearPrior()
    guide = fsd.FlowScoreDistillation(prior)
    image = torch.rand(1, *SHAPE, dtype=torch.bfloat16, requires_grad=True)
    guide(image, 0.5, turntable(1), 0.5).loss.backward()
    assert image.grad is not None
    assert bool(torch.isfinite(image.grad).all())


def test_the_priors_weights_are_not_in_the_state():
    class Net(torch.nn.Module, LinearPrior):
        def __init__(self):
            torch.nn.Module.__init__(self)
            LinearPrior.__init__(self)
            self.layer = torch.nn.Linear(2, 2)

    guide = fsd.FlowScoreDistillation(Net())
    assert not any("layer" in name for name in guide.state_dict())
    assert list(guide.parameters()) == []


def test_numbers_that_are_not_finite_are_named():
    prior = LinearPrior()
    prior.encode_text = lambda *a: float("nan")
    with pytest.raises(FloatingPointError, match=r"LinearPrior gave numbers that are not finite at t=0\.500"):
        call(fsd.ScoreDistillation, prior)


def test_an_unknown_weighting_is_named():
    with pytest.raises(ValueError, match="weighting 'sigma': choose one of lambda, one, sigma2"):
        fsd.ScoreDistillation(LinearPrior(), weighting="sigma")


def test_images_cameras_and_views_must_fit():
    prior = LinearPrior()
    guide = fsd.ScoreDistillation(prior)
    with pytest.raises(ValueError, match="2 images, 3 cameras"):
        guide(torch.rand(2, *SHAPE), 0.5, turntable(3), 0.0)
    prior.views = 4
    with pytest.raises(ValueError, match="a prior of 4 views"):
        guide(torch.rand(2, *SHAPE), 0.5, turntable(2), 0.0)
