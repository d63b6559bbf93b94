"""A pipeline whose network is compiled is a prior as any other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fsd.cameras import orbit
from fsd.guidance import METHODS
from fsd.priors.diffusers import DiffusersPrior
from fsd.priors.loading import load_pipeline
from fsd.priors.multiview import MultiViewPrior
from shared_core.testing import assert_same_state
from tiny_pipelines import tiny_multi_view, tiny_sd3, tiny_stable_diffusion

FOLDERS = {"stable-diffusion": tiny_stable_diffusion, "multi-view": tiny_multi_view, "sd3": tiny_sd3}


@pytest.fixture(autouse=True)
def _forget() -> None:
    torch.compiler.reset()


def prior_of(pipeline: Any, name: str) -> Any:
    return MultiViewPrior(pipeline, views=2) if name == "multi-view" else DiffusersPrior(pipeline)


def gradients(prior: Any, method: str) -> tuple[list[torch.Tensor], dict[str, Any]]:
    guide = METHODS[method](prior, seed=1)
    prompt, found = prior.encode_text("a mug"), []
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        image = torch.rand(4, 3, 16, 16, generator=generator).requires_grad_()
        guide(image, prompt, orbit(4, generator, prior.views), step / 3).loss.backward()
        assert image.grad is not None
        found.append(image.grad)
    return found, guide.state_dict()


@pytest.mark.compile
@pytest.mark.parametrize(
    ("name", "method", "backend"),
    [
        # Dynamo's part of the way, without a compiler.
        ("stable-diffusion", "fsd", "eager"),
        ("multi-view", "fsd", "eager"),
        ("sd3", "fsd", "eager"),
        pytest.param("stable-diffusion", "vsd", "eager", marks=pytest.mark.slow),  # three graphs
        pytest.param("multi-view", "vsd", "eager", marks=pytest.mark.slow),
        pytest.param("stable-diffusion", "fsd", "inductor", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_network_guides_as_it_does_uncompiled(
    name: str, method: str, backend: str, tmp_path: Path
) -> None:
    folder = FOLDERS[name](tmp_path / name)
    wanted, state = gradients(prior_of(load_pipeline(folder), name), method)
    pipeline = load_pipeline(folder)
    part = "transformer" if name == "sd3" else "unet"
    compiled = torch.compile(getattr(pipeline, part), backend=backend)
    setattr(pipeline, part, compiled)
    before = {key: id(value) for key, value in compiled.named_parameters()}
    prior = prior_of(pipeline, name)
    assert type(prior.net) is type(compiled)
    found, learned = gradients(prior, method)
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
    # The user's network is the same object as before, with the same parameters.
    assert getattr(pipeline, part) is compiled
    assert {key: id(value) for key, value in compiled.named_parameters()} == before
    # A run that began compiled goes on uncompiled, and the other way round.
    assert_same_names(learned, state)


@pytest.mark.compile
def test_another_time_is_no_reason_to_compile_again(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    pipeline = load_pipeline(tiny_stable_diffusion(tmp_path / "sd"))
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    prior = DiffusersPrior(pipeline)
    condition = prior.condition(prior.encode_text("a mug"), orbit(2, torch.Generator()))
    counters.clear()
    for t in (0.9, 0.5, 0.1):
        prior.predict_noise(torch.zeros(2, 4, 8, 8), t, condition, 3.0)
    assert counters["stats"]["unique_graphs"] == 1


def assert_same_names(one: Any, other: Any) -> None:
    def names(value: Any) -> Any:
        return {key: names(inner) for key, inner in value.items()} if isinstance(value, dict) else None

    assert_same_state(names(one), names(other))
