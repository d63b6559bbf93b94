"""Views that are denoised together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fsd.cameras import orbit, place, turntable
from fsd.priors.diffusers import DiffusersPrior
from fsd.priors.loading import load_pipeline
from fsd.priors.multiview import MultiViewPrior, camera_numbers, open_prior
from tiny_pipelines import tiny_multi_view, tiny_sd3, tiny_stable_diffusion
from torch import Tensor

Load = Callable[..., MultiViewPrior]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    folder = tiny_multi_view(tmp_path_factory.mktemp("multi") / "view")
    return lambda **settings: MultiViewPrior.from_pretrained(folder, **settings)


def noisy(count: int) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def predict(prior: Any, x: Tensor, cameras: Any, scale: float = 3.0) -> Tensor:
    return prior.predict_noise(x, 0.5, prior.condition(prior.encode_text("a mug", "blur"), cameras), scale)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_views_of_an_object_see_each_other_and_no_others(scale: float, load: Load) -> None:
    prior = load(views=4)
    cameras = orbit(8, torch.Generator().manual_seed(0), views=4)
    x = noisy(8)
    before = predict(prior, x, cameras, scale)
    x[1] += 1.0
    change = (predict(prior, x, cameras, scale) - before).abs().amax((1, 2, 3))
    assert (change[:4] > 1e-5).all()
    assert change[4:].max() < 1e-6
    assert prior.calls == 2
    assert (prior.latent_shape, prior.image_size, prior.views) == ((4, 8, 8), 16, 4)


def test_one_view_is_the_network_as_it_is(load: Load) -> None:
    prior = load(views=1)
    joined = predict(prior, noisy(3), turntable(3))
    plain = DiffusersPrior(load_pipeline(load().single.pipeline.name_or_path), view_words=False)
    condition = plain.condition(plain.encode_text("a mug", "blur"), turntable(3))
    condition = condition._replace(extra={"class_labels": camera_numbers(turntable(3))})
    torch.testing.assert_close(
        joined, plain.predict_noise(noisy(3), 0.5, condition, 3.0), rtol=1e-4, atol=1e-5
    )


def test_joined_attention_is_attention_over_all_tokens(load: Load) -> None:
    unet = load(views=2).single.net
    layer = next(module for name, module in unet.named_modules() if name.endswith("attn1"))
    tokens = torch.randn(4, 5, layer.to_q.in_features)
    with torch.no_grad():
        joined = layer(tokens)
        for pair in (slice(0, 2), slice(2, 4)):
            flat = tokens[pair].flatten(0, 1)
            heads = []
            for head in range(layer.heads):
                part = slice(head * flat.shape[1] // layer.heads, (head + 1) * flat.shape[1] // layer.heads)
                q, k, v = (project(flat)[:, part] for project in (layer.to_q, layer.to_k, layer.to_v))
                heads.append(torch.softmax(q @ k.T / q.shape[1] ** 0.5, 1) @ v)
            expected = layer.to_out[0](torch.cat(heads, 1))
            torch.testing.assert_close(joined[pair].flatten(0, 1), expected, rtol=1e-4, atol=1e-5)


def test_the_camera_matters_and_its_distance_does_not(load: Load) -> None:
    prior = load(views=1)
    near, far, aside = (
        predict(prior, noisy(1), place([a], 15.0, d)) for a, d in [(0.0, 2.0), (0.0, 3.0), (60.0, 2.0)]
    )
    torch.testing.assert_close(near, far)
    assert (near - aside).abs().max() > 1e-5


def test_cameras_stand_in_mvdreams_world() -> None:
    numbers = camera_numbers(place([0.0, 90.0, 0.0], [0.0, 0.0, 30.0], 2.5)).view(3, 4, 4)
    # Its azimuth 0 is on +x and 90 on +y; a camera looks along its own -z, so the third column points outwards.
    torch.testing.assert_close(numbers[0, :3, 3], torch.tensor([1.0, 0.0, 0.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(numbers[1, :3, 3], torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(numbers[2, :3, 3], torch.tensor([0.75**0.5, 0.0, 0.5]), rtol=0, atol=1e-6)
    torch.testing.assert_close(numbers[:, :3, 2], numbers[:, :3, 3], rtol=0, atol=1e-6)
    torch.testing.assert_close(numbers[0, :3, 0], torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(numbers[0, :3, 1], torch.tensor([0.0, 0.0, 1.0]), rtol=0, atol=1e-6)
    assert numbers[:, 3].tolist() == [[0.0, 0.0, 0.0, 1.0]] * 3


def test_gradient_text_and_state_pass_through(load: Load) -> None:
    prior = load(views=2, posterior="sample").to(dtype=torch.float64)
    image = torch.rand(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    state = prior.generator.get_state()
    latents = prior.encode_image(image)
    latents.sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    prior.generator.set_state(state)
    assert torch.equal(prior.encode_image(image), latents)
    prompt = prior.encode_text("a mug")
    prior.free_text_encoder()
    assert prior.encode_text("a mug") is prompt
    assert prior.alpha_sigma(0.5) == prior.single.alpha_sigma(0.5)


def test_what_is_no_multi_view_prior(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"takes no cameras: .* use DiffusersPrior"):
        MultiViewPrior.from_pretrained(tiny_stable_diffusion(tmp_path / "sd"))
    with pytest.raises(ValueError, match="the network takes no cameras"):
        MultiViewPrior.from_pretrained(tiny_sd3(tmp_path / "sd3"))
    with pytest.raises(ValueError, match="views is 0"):
        load(views=0)
    prior = load(views=4)
    with pytest.raises(ValueError, match=r"class_embed_type='projection'.*MultiViewPrior or open_prior"):
        DiffusersPrior.from_pretrained(prior.single.pipeline.name_or_path)
    with pytest.raises(ValueError, match=r"6 cameras for a prior of 4 views.*orbit"):
        prior.condition(prior.encode_text("a mug"), turntable(6))


def test_a_folder_is_opened_as_what_its_network_is(load: Load, tmp_path: Path) -> None:
    folder = load().single.pipeline.name_or_path
    assert open_prior(folder).views == 4
    assert open_prior(folder, views=2, view_words=True).views == 2
    plain = open_prior(tiny_stable_diffusion(tmp_path / "sd"), device=torch.device("cpu"), perp_neg=True)
    assert isinstance(plain, DiffusersPrior)
    assert plain.perp_neg
