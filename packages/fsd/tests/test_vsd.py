"""Variational score distillation: a LoRA that learns the renders, inside a prior that stays as it is."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fsd.cameras import orbit
from fsd.guidance.frame import Guidance, View
from fsd.guidance.vsd import LoraDirection, VariationalScoreDistillation
from fsd.priors.mixture import MixturePrior
from fsd.priors.multiview import open_prior
from shared_core.run import checkpoint
from shared_core.testing import assert_same_state
from tiny_pipelines import tiny_multi_view, tiny_sd3, tiny_sdxl, tiny_stable_diffusion
from torch import Tensor

SAVED: dict[str, Callable[[Path], Path]] = {
    "stable-diffusion": tiny_stable_diffusion,
    "sdxl": tiny_sdxl,
    "multi-view": tiny_multi_view,
}


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    folder = tmp_path_factory.mktemp("vsd")

    def loaded(name: str = "stable-diffusion", **settings: Any) -> Any:
        place = folder / name
        return open_prior(place if place.exists() else SAVED[name](place), **settings)

    return loaded


def steps(guide: Guidance, count: int, first: int = 0) -> list[Tensor]:
    """Directions of `count` steps on images and cameras that are a function of the step."""
    prompt = guide.prior.encode_text("a mug")
    directions = []
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(step)
        cameras = orbit(4, generator, views=guide.prior.views)
        image = torch.rand(4, 3, 16, 16, generator=generator)
        directions.append(guide(image, prompt, cameras, step / 10).direction)
    return directions


@pytest.mark.parametrize("name", SAVED)
def test_at_first_the_lora_is_the_prior_so_nothing_moves_without_guidance(
    name: str, load: Callable[..., Any]
) -> None:
    prior = load(name)
    guide = VariationalScoreDistillation(prior, guidance_scale=1.0, learning_rate=1e-2)
    first, second = steps(guide, 2)
    assert first.abs().max() < 1e-5
    # Once it has learned, the renders are no longer what the prior expects.
    assert second.abs().max() > 1e-4
    assert prior.calls == 6


@pytest.mark.parametrize("name", SAVED)
def test_the_prior_stays_as_it_is(name: str, load: Callable[..., Any]) -> None:
    prior = load(name)
    single = getattr(prior, "single", prior)
    weights = {key: value.clone() for key, value in single.net.state_dict().items()}
    cameras = orbit(4, torch.Generator().manual_seed(0), views=prior.views)
    condition = prior.condition(prior.encode_text("a mug"), cameras)
    x = torch.randn(4, *prior.latent_shape)
    before = prior.predict_noise(x, 0.5, condition, 3.0)
    guide = VariationalScoreDistillation(prior, learning_rate=1e-2)
    steps(guide, 3)
    assert torch.equal(prior.predict_noise(x, 0.5, condition, 3.0), before)
    after = {
        key.replace(".base_layer", ""): value
        for key, value in single.net.state_dict().items()
        if "lora_" not in key
    }
    assert_same_state(after, weights)
    assert not any(p.requires_grad for key, p in single.net.named_parameters() if "lora_" not in key)


def test_the_lora_learns_what_it_is_shown(load: Callable[..., Any]) -> None:
    prior = load()
    direction = LoraDirection(prior, learning_rate=1e-2)
    cameras = orbit(4, torch.Generator().manual_seed(0))
    condition = prior.condition(prior.encode_text("a mug"), cameras)
    x = torch.randn(4, 4, 8, 8)
    losses = []
    for _ in range(25):
        # The same noise at the same time each step, so that the loss says what was learned and not what was drawn.
        generator = torch.Generator().manual_seed(5)
        view = View(prior, x, 0.5, torch.zeros_like(x), condition, 1.0, cameras, generator)
        losses.append(direction.learn(view).item())
    assert losses[-1] < 0.9 * losses[0]
    # That of random weights without the LoRA, to begin with.
    generator = torch.Generator().manual_seed(5)
    s = 0.02 + 0.96 * torch.rand(2, generator=generator)[0].item()
    noise = torch.randn(x.shape, generator=generator)
    alpha, sigma = prior.alpha_sigma(s)
    plain = prior.predict_noise(alpha * x + sigma * noise, s, condition, 1.0)
    assert losses[0] == pytest.approx((plain - noise).square().mean().item(), rel=1e-5)


def _noise_and_schedule() -> tuple[Any, Any]:
    from fsd.noise import RandomNoise
    from fsd.schedule import random

    return RandomNoise(0), random


def test_the_camera_is_learned_from(load: Callable[..., Any]) -> None:
    prior = load()
    direction = LoraDirection(prior, learning_rate=1e-2)
    guide = Guidance(prior, direction, *_noise_and_schedule())
    steps(guide, 4)
    cameras = orbit(2, torch.Generator().manual_seed(0))
    condition = prior.condition(prior.encode_text("a mug"), cameras)._replace(extra={})
    x = torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1)
    same_text = condition._replace(positive={k: v[:1].repeat(2, 1, 1) for k, v in condition.positive.items()})
    with direction.switched_on(cameras) as own:
        one, other = direction.noise_of(x, 0.5, same_text, own).detach()
    assert (one - other).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["stable-diffusion", "multi-view"])
def test_resumed_it_goes_on_bit_for_bit(name: str, load: Callable[..., Any], tmp_path: Path) -> None:
    guide = VariationalScoreDistillation(load(name), seed=3)
    steps(guide, 2)
    checkpoint.save(tmp_path, 2, {"guide": guide})
    expected = steps(guide, 2, first=2)
    again = VariationalScoreDistillation(load(name), seed=4)
    again.load_state_dict(checkpoint.load(tmp_path).tensors["guide"])
    for a, b in zip(steps(again, 2, first=2), expected, strict=True):
        assert torch.equal(a, b)
    assert_same_state(again.state_dict(), guide.state_dict())


def test_a_seed_is_a_lora_and_the_random_state_is_left_alone(load: Callable[..., Any]) -> None:
    state = torch.get_rng_state()
    one, same, other = (VariationalScoreDistillation(load(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_state(one.state_dict(), same.state_dict())
    with pytest.raises(AssertionError):
        assert_same_state(one.state_dict(), other.state_dict())


def test_a_later_guidance_takes_the_place(load: Callable[..., Any]) -> None:
    prior = load()
    count = len(list(prior.net.parameters()))
    earlier = VariationalScoreDistillation(prior)
    added = len(list(prior.net.parameters())) - count
    assert added > 0
    later = VariationalScoreDistillation(prior)
    assert len(list(prior.net.parameters())) == count + added
    assert torch.isfinite(steps(later, 1)[0]).all()
    with pytest.raises(RuntimeError, match="another VSD guidance was made with this prior"):
        steps(earlier, 1)


def test_bf16_learns_in_float32(load: Callable[..., Any]) -> None:
    prior = load(precision="bf16")
    guide = VariationalScoreDistillation(prior)
    assert torch.isfinite(torch.stack(steps(guide, 2))).all()
    lora = [p for name, p in prior.net.named_parameters() if "lora_" in name]
    assert {p.dtype for p in lora} == {torch.float32}


def test_what_cannot_be_done(
    load: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="MixturePrior has none here"):
        VariationalScoreDistillation(MixturePrior(torch.randn(2, 64), torch.ones(2) / 2))
    with pytest.raises(ValueError, match="trains a LoRA inside a UNet of diffusers"):
        VariationalScoreDistillation(open_prior(tiny_sd3(tmp_path / "sd3")))
    with pytest.raises(ValueError, match="rank is 0"):
        VariationalScoreDistillation(load(), rank=0)
    small, large = VariationalScoreDistillation(load(), rank=2), VariationalScoreDistillation(load(), rank=4)
    with pytest.raises(ValueError, match="belongs to another network or rank"):
        large.load_state_dict(small.state_dict())
    prior = load()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"install fsd\[vsd\]"):
        VariationalScoreDistillation(prior)
