"""A guidance that is copied or pickled in the middle of a run goes on bit for bit, and leaves the first one alone."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsd
import pytest
import torch
from fsd.cameras import orbit
from fsd.guidance import METHODS
from fsd.guidance.frame import WEIGHTINGS, Guidance
from fsd.noise import ConstantNoise, RandomNoise, WorldMapNoise
from fsd.priors.diffusers import DiffusersPrior
from fsd.priors.multiview import open_prior
from fsd.schedule import SCHEDULES, schedule_named
from fsd.surface_noise import SurfaceNoise
from tiny_pipelines import tiny_multi_view, tiny_stable_diffusion
from torch import Tensor


def pickled(guide: Guidance) -> Guidance:
    return pickle.loads(pickle.dumps(guide))  # noqa: S301 - our own


def saved_whole(guide: Guidance) -> Guidance:
    file = io.BytesIO()
    torch.save(guide, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # noqa: TID251 - our own


WAYS = {"deepcopy": copy.deepcopy, "pickle": pickled, "torch.save": saved_whole}


def mixture() -> fsd.MixturePrior:
    means = torch.randn(5, 3 * 16 * 16, generator=torch.Generator().manual_seed(5))
    return fsd.MixturePrior(means, latent_shape=(3, 16, 16))


CASES: dict[str, Callable[[], Guidance]] = {
    **{name: partial(METHODS[name], seed=3) for name in METHODS if name != "vsd"},
    **{f"weighting {name}": partial(METHODS["fsd"], weighting=name) for name in WEIGHTINGS},
    **{f"schedule {name}": partial(METHODS["fsd"], schedule=schedule_named(name)) for name in SCHEDULES},
    **{
        f"noise {type(noise).__name__}": partial(METHODS["sds"], noise=noise)
        for noise in (RandomNoise(1), ConstantNoise(1, 0.5), WorldMapNoise(1, 0.5), SurfaceNoise(1, refresh=0.1))
    },
}  # fmt: skip


def steps(guide: Guidance, first: int, count: int = 2) -> list[Tensor]:
    """The gradients that images and cameras get, which are a function of the step."""
    prompt, gradients = guide.prior.encode_text("a mug"), []
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(step)
        image = torch.rand(4, 3, 16, 16, generator=generator).requires_grad_()
        opacity, depth = torch.rand(2, 4, 1, 16, 16, generator=generator)
        guide(image, prompt, orbit(4, generator, guide.prior.views), step / 8, opacity, depth).loss.backward()
        assert image.grad is not None
        gradients.append(image.grad)
    return gradients


def goes_on(guide: Guidance, way: Callable[[Guidance], Guidance]) -> None:
    steps(guide, 0)
    other = way(guide)
    theirs = steps(other, 2)
    # The first one has not moved with the copy.
    for mine, wanted in zip(steps(guide, 2), theirs, strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_a_copy_goes_on_bit_for_bit(name: str, way: str) -> None:
    goes_on(copy.deepcopy(CASES[name])(mixture()), WAYS[way])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("copies")
    tiny_stable_diffusion(place / "single")
    tiny_multi_view(place / "joint")
    return place


PRIORS: dict[str, Callable[[Path], Any]] = {
    "single, drawn posterior": lambda folder: DiffusersPrior.from_pretrained(
        folder / "single", posterior="sample"
    ),
    "joint": lambda folder: open_prior(folder / "joint", views=2),
    "embedded": lambda folder: fsd.EmbeddedPrior(views=2),
    "bank": lambda folder: fsd.RenderBank(size=8, azimuths=12),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prior", ["single, drawn posterior", "joint", "embedded", "bank"])
def test_with_its_prior(prior: str, way: str, folder: Path) -> None:
    goes_on(METHODS["fsd"](PRIORS[prior](folder), seed=1), WAYS[way])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prior", ["single, drawn posterior", "joint"])
def test_vsd_with_the_network_that_it_trains(prior: str, way: str, folder: Path) -> None:
    guide = METHODS["vsd"](PRIORS[prior](folder), learning_rate=1e-2)
    goes_on(guide, WAYS[way])
    other = WAYS[way](guide)
    before = [p.clone() for p in guide.direction._learned()]
    steps(other, 4)
    assert all(torch.equal(p, kept) for p, kept in zip(guide.direction._learned(), before, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(other.direction._learned(), before, strict=True))
    # Its optimizer moves the parameters of its own network.
    held = {id(p) for group in other.direction.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in other.direction._learned()}
    single = getattr(other.prior, "single", other.prior)
    assert all(any(p is q for q in single.net.parameters()) for p in other.direction._lora.values())
