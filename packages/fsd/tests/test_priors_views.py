"""What is said of each view: words, and the texts that Perp-Neg stays away from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fsd.cameras import place
from fsd.priors.diffusers import DiffusersPrior
from fsd.priors.perp_neg import combine, mix_views, perpendicular
from fsd.priors.prompts import blend
from fsd.priors.view_words import VIEWS, view_index, with_view_word
from tiny_pipelines import tiny_pixart, tiny_stable_diffusion


def words(azimuth: list[float], elevation: float = 0.0, **degrees: float) -> list[str]:
    return [VIEWS[n] for n in view_index(place(azimuth, elevation), **degrees)]


def test_sectors() -> None:
    assert words([0.0, 44.0, 46.0, 134.0, 136.0, 180.0]) == ["front", "front", "side", "side", "back", "back"]
    assert words([316.0, 314.0, 226.0, 224.0]) == ["front", "side", "side", "back"]
    assert words([0.0, 90.0, 180.0], 59.0) == ["front", "side", "back"]
    assert words([0.0, 90.0, 180.0], 61.0) == ["overhead"] * 3
    assert words([30.0, 150.0], front_deg=20.0, back_deg=20.0) == ["side", "side"]
    assert words([0.0], 40.0, overhead_deg=30.0) == ["overhead"]
    assert with_view_word("a mug", "back") == "a mug, back view"


def test_the_component_along_the_prompt_is_removed_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64, generator=generator)
    across = perpendicular(x, y)
    torch.testing.assert_close((across * y).sum((1, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(perpendicular(across, y), across, rtol=0, atol=1e-12)
    torch.testing.assert_close(perpendicular(x + 5 * y, y), across, rtol=0, atol=1e-12)
    assert perpendicular(3 * y, y).abs().max() < 1e-14
    assert torch.equal(perpendicular(x, torch.zeros_like(y)), x)


def test_guided_noise_against_a_plain_loop() -> None:
    base, prompt, *against = torch.randn(4, 2, 3, 4, 4, dtype=torch.float64)
    weight = torch.rand(2, 2, dtype=torch.float64)
    result = combine(base, prompt, torch.stack(against), weight, 7.5)
    for image in range(2):
        towards = (prompt - base)[image].flatten()
        step = towards.clone()
        for negative, w in zip(against, weight[:, image], strict=True):
            away = (negative - base)[image].flatten()
            step -= w * (away - away.dot(towards) / towards.dot(towards) * towards)
        expected = base[image].flatten() + 7.5 * step
        torch.testing.assert_close(result[image].flatten(), expected, rtol=0, atol=1e-12)


def test_the_mix_of_views_runs_from_front_to_back_without_a_jump() -> None:
    mix = mix_views(place([0.0, 45.0, 90.0, 135.0, 180.0]))
    front, side, back, _ = mix.prompt.unbind(1)
    torch.testing.assert_close(front, torch.tensor([1.0, 0.5, 0.0, 0.0, 0.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(side, torch.tensor([0.0, 0.5, 1.0, 0.5, 0.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(back, torch.tensor([0.0, 0.0, 0.0, 0.5, 1.0]), rtol=0, atol=1e-5)
    every = mix_views(place(torch.arange(0.0, 360.0, 0.5).tolist()))
    weight = every.weight
    assert (weight.roll(1, 1) - weight).abs().max() < 0.02
    # Front is not held against itself, is at the side, and most at the back.
    assert weight[0, 0].abs() < 1e-5
    assert weight[0, 180] == pytest.approx(4 * (1 - torch.e**-0.5), abs=1e-4)
    assert weight[0].argmax() == 360
    assert (weight > -1e-5).all()
    torch.testing.assert_close(every.prompt.sum(1), torch.ones(720))
    torch.testing.assert_close(weight[:, 1:], weight[:, 1:].flip(1), rtol=0, atol=1e-4)
    above = mix_views(place([10.0, 170.0], 75.0))
    assert above.prompt.tolist() == [[0.0, 0.0, 0.0, 1.0]] * 2
    assert above.weight.abs().max() == 0


@pytest.mark.parametrize("save", [tiny_stable_diffusion, tiny_pixart])
def test_perp_neg_in_a_prior(save: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "pipeline")
    prior = DiffusersPrior.from_pretrained(folder, perp_neg=True)
    x = torch.randn(3, *prior.latent_shape)
    cameras = place([0.0, 90.0, 200.0], [10.0, 20.0, 80.0])
    prompt = prior.encode_text("a mug", "blur")
    condition = prior.condition(prompt, cameras)
    noise = prior.predict_noise(x, 0.5, condition, 7.5)
    assert prior.calls == 1
    rows = prompt.rows
    apart = [prior.noise_of(x, 0.5, {name: value[[n] * 3] for name, value in rows.items()}) for n in range(6)]
    base, _, front, side, back, overhead = apart
    # At whole views the texts are the views' own; the third camera is overhead and stays away from nothing.
    truth = torch.stack([front[0], side[1], overhead[2]])
    expected = combine(base, truth, torch.stack([front, side]), mix_views(cameras).weight, 7.5)
    torch.testing.assert_close(noise, expected, rtol=1e-3, atol=1e-4)
    plain = DiffusersPrior.from_pretrained(folder)
    usual = plain.predict_noise(x, 0.5, plain.condition(prompt, cameras), 7.5)
    torch.testing.assert_close(usual[2], noise[2], rtol=1e-3, atol=1e-4)
    assert (usual[:2] - noise[:2]).abs().max() > 1e-3
    assert (back - front).abs().max() > 1e-6
    nothing = prior.predict_noise(x, 0.5, condition, 0.0)
    torch.testing.assert_close(nothing, base, rtol=1e-4, atol=1e-5)


def test_masks_are_joined() -> None:
    rows = {"mask": torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]]), "text": torch.eye(3)}
    mixed = blend(rows, torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    assert mixed["mask"].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert mixed["text"].tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]
