"""A user's pipeline stays as it was: modes, flags, processors, types, devices, parts, and no gradient arrives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsd
import pytest
import torch
from fsd.cameras import orbit, turntable
from fsd.guidance import METHODS
from fsd.priors.diffusers import DiffusersPrior
from fsd.priors.loading import load_pipeline
from fsd.priors.multiview import MultiViewPrior
from tiny_pipelines import FAMILIES, tiny_multi_view, tiny_sdxl, tiny_stable_diffusion

PLACES = {**FAMILIES, "multi-view": tiny_multi_view}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    folder = tmp_path_factory.mktemp("own")

    def loaded(name: str) -> Any:
        """A pipeline in the middle of being trained: a mixture of modes and flags."""
        place = folder / name
        pipeline = load_pipeline(place if place.exists() else PLACES[name](place))
        for number, part in enumerate(nets(pipeline).values()):
            part.train(number % 2 == 0)
            for place_, parameter in enumerate(part.parameters()):
                parameter.requires_grad_(place_ % 3 != 0)
        return pipeline

    return loaded


def nets(pipeline: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def state(pipeline: Any) -> dict[str, Any]:
    """All that a user can see of a pipeline."""
    found: dict[str, Any] = {"parts": {name: id(part) for name, part in pipeline.components.items()}}
    found["config"] = dict(pipeline.config)
    found["own"] = {key: id(value) for key, value in vars(pipeline).items()}
    for name, part in nets(pipeline).items():
        found[f"{name}.modules"] = [(key, id(m), m.training) for key, m in part.named_modules()]
        found[f"{name}.attributes"] = {
            f"{key}.{attribute}": id(value)
            for key, module in part.named_modules()
            for attribute, value in vars(module).items()
        }
        found[f"{name}.hooks"] = [
            {kind: list(hooks) for kind, hooks in vars(module).items() if kind.endswith("_hooks")}
            for module in part.modules()
        ]
        found[f"{name}.tensors"] = {
            key: (id(p), p.data_ptr(), p.dtype, p.device, p.requires_grad, p._version, p.grad is None)
            for key, p in [*part.named_parameters(), *part.named_buffers()]
        }
    for name, part in pipeline.components.items():
        if name.startswith("tokenizer"):
            found[f"{name}.length"] = part.model_max_length
    return found


def use(prior: Any, vsd: bool) -> None:
    """Everything that one can do with a prior."""
    prompt = prior.encode_text("a red mug")
    for name in ("fsd", "vsd") if vsd else ("fsd",):
        guide = METHODS[name](prior, guidance_scale=1.0)
        cameras = orbit(4, torch.Generator().manual_seed(0), prior.views)
        image = torch.rand(4, 3, prior.image_size, prior.image_size, requires_grad=True)
        guide(image, prompt, cameras, 0.5).loss.backward()
        assert image.grad is not None
    prior.to(dtype=torch.float64)
    prior.free_text_encoder()


@pytest.mark.parametrize("name", PLACES)
def test_a_users_pipeline_stays_as_it_was(name: str, load: Callable[[str], Any]) -> None:
    pipeline = load(name)
    before = state(pipeline)
    unet = name in ("stable-diffusion", "sdxl", "multi-view")
    if name == "multi-view":
        use(MultiViewPrior(pipeline, views=2, slicing=True), vsd=True)
    else:
        use(DiffusersPrior(pipeline, slicing=name != "deepfloyd"), vsd=unet)
    assert state(pipeline) == before


@pytest.mark.parametrize("name", ["stable-diffusion", "multi-view"])
def test_after_an_exception_too(name: str, load: Callable[[str], Any]) -> None:
    pipeline = load(name)
    before = state(pipeline)
    make = MultiViewPrior if name == "multi-view" else DiffusersPrior
    for settings in ({"image_size": 15}, {"posterior": "other"}, {"perp_neg": True, "view_words": False}):
        with pytest.raises(ValueError, match=r"image_size|posterior|Perp-Neg"):
            make(pipeline, **settings)
    prior = make(pipeline)
    with pytest.raises(ValueError, match="reads 77"):
        prior.encode_text("a mug " * 60)
    with torch.no_grad():
        prior.net.conv_in.bias = torch.nn.Parameter(torch.full((8,), torch.nan))
    image = torch.rand(4, 3, 16, 16, requires_grad=True)
    with pytest.raises(FloatingPointError, match="not finite"):
        fsd.FlowScoreDistillation(prior)(image, prior.encode_text("a mug"), turntable(4), 0.5)
    assert state(pipeline) == before


def test_the_copy_is_frozen_and_takes_no_memory_for_weights(load: Callable[[str], Any]) -> None:
    pipeline = load("sdxl")
    prior = DiffusersPrior(pipeline)
    own = nets(prior.pipeline)
    assert list(own) == list(nets(pipeline))
    for name, part in nets(pipeline).items():
        assert not any(module.training for module in own[name].modules())
        for theirs, ours in zip(part.parameters(), own[name].parameters(), strict=True):
            assert theirs.data_ptr() == ours.data_ptr()
            assert not ours.requires_grad


def test_weights_that_are_trained_in_place_are_seen(load: Callable[[str], Any]) -> None:
    pipeline = load("stable-diffusion")
    prior = DiffusersPrior(pipeline)
    condition = prior.condition(prior.encode_text("a mug"), turntable(1))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    before = prior.predict_noise(x, 0.5, condition, 1.0)
    with torch.no_grad():
        pipeline.unet.conv_out.bias.add_(1.0)
    torch.testing.assert_close(prior.predict_noise(x, 0.5, condition, 1.0), before + 1)


def test_priors_of_one_pipeline_do_not_disturb_each_other(load: Callable[[str], Any]) -> None:
    pipeline = load("multi-view")
    cameras = orbit(4, torch.Generator().manual_seed(0), 4)
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def noise(prior: MultiViewPrior) -> torch.Tensor:
        return prior.predict_noise(x, 0.5, prior.condition(prior.encode_text("a mug"), cameras), 1.0)

    four = MultiViewPrior(pipeline, views=4)
    before = noise(four)
    two = MultiViewPrior(pipeline, views=2)
    assert not torch.equal(noise(two), before)
    assert torch.equal(noise(four), before)


def test_tied_weights_stay_tied(load: Callable[[str], Any]) -> None:
    pipeline = load("stable-diffusion")
    pipeline.text_encoder.extra = pipeline.text_encoder.get_input_embeddings()
    own = DiffusersPrior(pipeline).pipeline.text_encoder
    assert own.extra is own.get_input_embeddings()
    assert own.extra.weight is own.get_input_embeddings().weight


def test_a_net_with_hooks_for_offloading_is_refused_with_the_remedy(load: Callable[[str], Any]) -> None:
    pipeline = load("stable-diffusion")
    cpu = torch.device("cpu")
    pipeline.unet.enable_group_offload(cpu, cpu, offload_type="leaf_level")
    with pytest.raises(
        ValueError, match=r"the unet .* cannot be copied .*from_pretrained\(\.\.\., offload=True"
    ):
        DiffusersPrior(pipeline)


def test_a_net_that_is_compiled_in_place_is_warned_of(tmp_path: Path) -> None:
    pipeline = load_pipeline(tiny_stable_diffusion(tmp_path / "sd"))
    pipeline.unet.compile(backend="eager")
    with pytest.warns(UserWarning, match=r"the unet .* compiled in place.*torch\.compile\(pipeline\.unet\)"):
        DiffusersPrior(pipeline)
    assert pipeline.unet._compiled_call_impl is not None


def test_a_user_who_trains_beside_the_prior_gets_gradients(tmp_path: Path) -> None:
    pipeline = load_pipeline(tiny_sdxl(tmp_path / "xl"))
    prior = DiffusersPrior(pipeline)
    pipeline.vae.requires_grad_(True)
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    prior.encode_image(image).sum().backward()
    assert all(p.grad is None for p in pipeline.vae.parameters())
    pipeline.vae.encode(image).latent_dist.mean.sum().backward()
    assert any(p.grad is not None for p in pipeline.vae.parameters())
