"""Half types: times, sizes and places reach a network as those of float32 do, and noise levels are not rounded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fsd
import pytest
import torch
from fsd.cameras import turntable
from fsd.config import GenerateConfig
from fsd.guidance import METHODS
from fsd.priors.diffusers import DiffusersPrior
from fsd.priors.families import times
from fsd.priors.multiview import MultiViewPrior
from pydantic import ValidationError
from tiny_pipelines import FAMILIES, tiny_multi_view
from torch import Tensor

HALVES = [torch.bfloat16, torch.float16]
PLACES = {**FAMILIES, "multi-view": tiny_multi_view}
# Between what bf16 has: steps 137.1, 499.5 and 998.9.
TIMES = (0.1371, 0.4995, 0.9989)
TOLD = ("timestep", "guidance", "time_ids", "resolution", "aspect_ratio", "img_ids", "txt_ids")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    folder = tmp_path_factory.mktemp("half")

    def loaded(name: str) -> Any:
        place = folder / name
        place = place if place.exists() else PLACES[name](place)
        if name == "multi-view":
            return MultiViewPrior.from_pretrained(place, views=2)
        return DiffusersPrior.from_pretrained(place)

    return loaded


@contextmanager
def heard(net: Any) -> Iterator[list[tuple[str, Any]]]:
    """What a network is told beside the image and the text, and what it makes of times and sizes first."""
    found: list[tuple[str, Any]] = []

    def told(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        for name, value in {**kwargs, **(kwargs.get("added_cond_kwargs") or {})}.items():
            if name in TOLD:
                found.append((name, value))
        found.extend(("step", value) for value in args[1:2])

    hooks = [net.register_forward_pre_hook(told, with_kwargs=True)]
    for name, module in net.named_modules():
        if name.endswith(("time_proj", "additional_condition_proj")):
            hooks.append(module.register_forward_hook(lambda m, a, out, name=name: found.append((name, out))))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def listen(prior: Any) -> list[tuple[str, Any]]:
    condition = prior.condition(prior.encode_text("a mug"), turntable(2))
    with heard(prior.net) as found:
        for t in TIMES:
            x = torch.zeros(2, *prior.latent_shape)
            prior.predict_noise(
                x, t, condition, 1.0 if prior.net.config.get("guidance_embeds") is False else 2.3
            )
    return found


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", PLACES)
def test_a_half_network_is_told_the_times_of_float32(
    name: str, dtype: torch.dtype, load: Callable[[str], Any]
) -> None:
    wanted, found = listen(load(name)), listen(load(name).to(dtype=dtype))
    assert [key for key, _ in wanted] == [key for key, _ in found]
    assert len(wanted) >= len(TIMES)
    for (key, value), (_, other) in zip(wanted, found, strict=True):
        if name == "flux" and key.endswith("time_proj"):
            continue  # the network itself rounds what it is told
        if isinstance(value, Tensor):
            assert value.dtype == other.dtype
            assert torch.equal(value, other), key
        else:
            assert value == other


def test_times_of_half_images() -> None:
    for dtype in HALVES:
        found = times(torch.zeros(2, 1, dtype=dtype), 499.5)
        assert found.dtype == torch.float32
        assert found.tolist() == [499.5, 499.5]
    assert times(torch.zeros(1, dtype=torch.float64), 0.1).item() == 0.1
    assert times(torch.zeros(1), 999).dtype == torch.int64


def make_mixture() -> Any:
    means = torch.randn(4, 3 * 64, generator=torch.Generator().manual_seed(0)).double()
    return fsd.MixturePrior(means, latent_shape=(3, 8, 8))


IMAGES: dict[str, Callable[[Callable[[str], Any]], Any]] = {
    **{name: (lambda load, name=name: load(name)) for name in ("stable-diffusion", "deepfloyd", "sd3")},
    "mixture": lambda load: make_mixture(),
    "bank": lambda load: fsd.RenderBank(joint=False, size=8, azimuths=12),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", IMAGES)
def test_a_half_image_is_guided_as_its_float32(
    name: str, dtype: torch.dtype, load: Callable[[str], Any]
) -> None:
    """The image has few digits; noise, levels and times have all of them."""
    prior, found = IMAGES[name](load), []
    shape = (2, 3, prior.image_size, prior.image_size)
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for image in (pixels.float(), pixels.clone()):
        image.requires_grad_()
        guide = METHODS["fsd"](prior, seed=1)
        out = guide(image, prior.encode_text("a mug"), turntable(2), 0.3)
        out.loss.backward()
        assert image.grad is not None
        assert out.noise.dtype == torch.float32
        assert image.grad.dtype == image.dtype
        found.append((out.direction, out.noise, image.grad.float()))
    (direction, noise, gradient), (half_direction, half_noise, half_gradient) = found
    assert torch.equal(noise, half_noise)
    torch.testing.assert_close(half_direction, direction, rtol=0.02, atol=0.02)
    torch.testing.assert_close(half_gradient, gradient, rtol=0.02, atol=0.02 * gradient.abs().max().item())


def test_latents_of_half_images_are_float32(load: Callable[[str], Any]) -> None:
    for name in ("stable-diffusion", "sd3", "deepfloyd", "multi-view"):
        prior = load(name)
        for dtype in HALVES:
            size = prior.image_size
            assert prior.encode_image(torch.rand(1, 3, size, size, dtype=dtype)).dtype == torch.float32


def test_vsd_is_refused_in_float16(load: Callable[[str], Any]) -> None:
    for name in ("stable-diffusion", "multi-view"):
        with pytest.raises(ValueError, match="underflow in float16; use precision bf16 or fp32"):
            METHODS["vsd"](load(name).to(dtype=torch.float16))
        prior = load(name)
        guide = METHODS["vsd"](prior)
        prior.to(dtype=torch.float16)
        with pytest.raises(ValueError, match="underflow in float16"):
            guide(torch.rand(2, 3, 16, 16), prior.encode_text("a mug"), turntable(2), 0.5)
    with pytest.raises(
        ValidationError, match="guidance vsd trains through the network, where fp16 underflows"
    ):
        GenerateConfig(prior="p", prompts=["a mug"], guidance=["vsd"], precision="fp16")
