"""Two processes that share the views of a step equal one, within 1e-9 in float64 over 20 steps, for every method."""

from pathlib import Path

import fsd
import pytest
import torch
import torch.distributed as dist
from fsd.cameras import orbit
from fsd.config import GenerateConfig
from fsd.generate import generate
from fsd.guidance import METHODS
from fsd.priors.diffusers import DiffusersPrior
from fsd.priors.loading import load_pipeline
from fsd.priors.multiview import open_prior
from fsd.processes import alone, draw_views, mine
from safetensors.torch import load_file
from shared_core.ops.gradients import average_gradients
from shared_core.testing import run_ranks
from tiny_pipelines import tiny_multi_view, tiny_stable_diffusion
from torch import Tensor

VIEWS, STEPS, SIZE = 4, 20, 8


class PromptedMixture(fsd.MixturePrior):
    """A mixture in which the prompt matters."""

    def predict_noise(self, x_t, t, condition, guidance_scale):
        return (1 + guidance_scale / 50) * super().predict_noise(x_t, t, condition, guidance_scale)


def mixture():
    means = torch.randn(5, 3 * SIZE * SIZE, generator=torch.Generator().manual_seed(5)).double()
    return PromptedMixture(means, latent_shape=(3, SIZE, SIZE))


CASES = {
    **{
        name: (lambda folder, name=name: METHODS[name](mixture(), seed=1))
        for name in METHODS
        if name != "vsd"
    },
    "fsd, half fresh, fresh background": lambda folder: METHODS["fsd"](
        mixture(), fsd.WorldMapNoise(1, beta=0.5, background="fresh", shared=2), seed=1
    ),
    "cfd, much renewed": lambda folder: METHODS["cfd"](mixture(), fsd.SurfaceNoise(1, refresh=0.2), seed=1),
    "sds, a posterior that is drawn from": lambda folder: METHODS["sds"](
        DiffusersPrior(load_pipeline(f"{folder}/single"), posterior="sample").to(dtype=torch.float64), seed=1
    ),
    "vsd": lambda folder: METHODS["vsd"](
        open_prior(f"{folder}/single").to(dtype=torch.float64), seed=1, learning_rate=1e-2
    ),
    "vsd, two views an object": lambda folder: METHODS["vsd"](
        open_prior(f"{folder}/joint", views=2).to(dtype=torch.float64), seed=1, learning_rate=1e-2
    ),
}


def twenty_steps(names: list[str], folder: str) -> dict[str, dict[str, Tensor]]:
    """The scene and the guidance after twenty steps of a user's own loop, on this process's views of each step."""
    states = {}
    for name in names:
        guide = CASES[name](folder)
        scene = fsd.grid_scene(6, samples=8).double()
        optimizer = torch.optim.SGD(scene.parameters(), 0.05)
        prompt, views = guide.prior.encode_text("a mug"), torch.Generator().manual_seed(2)
        for step in range(STEPS):
            cameras = mine(orbit(VIEWS, views, guide.prior.views)).to(torch.float64)
            view = scene.render(cameras, SIZE)
            out = guide(view.image, prompt, cameras, step / STEPS, view.opacity, view.depth)
            optimizer.zero_grad()
            out.loss.backward()
            average_gradients(scene)
            optimizer.step()
        states[name] = {key: value.clone() for key, value in {**scene.state_dict(), **lora_of(guide)}.items()}
    return states


def lora_of(guide) -> dict[str, Tensor]:
    """What VSD has learned."""
    if not hasattr(guide.direction, "switched_on"):
        return {}
    return {**guide.direction.get_extra_state()["lora"], **dict(guide.named_parameters())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("priors")
    tiny_stable_diffusion(place / "single")
    tiny_multi_view(place / "joint")
    return str(place)


@pytest.fixture(scope="module")
def two_processes(folder: str) -> list[dict[str, dict[str, Tensor]]]:
    return run_ranks(twenty_steps, 2, list(CASES), folder, timeout=300.0)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(name, folder, two_processes):
    one = twenty_steps([name], folder)[name]
    start = fsd.grid_scene(6, samples=8).double().state_dict()
    assert max((one[key] - value).abs().max() for key, value in start.items() if value.numel()) > 1e-3
    for states in two_processes:
        for key, value in one.items():
            torch.testing.assert_close(
                states[name][key], value, rtol=0, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
            )


def drawn() -> tuple[Tensor, Tensor, Tensor, str]:
    cameras = orbit(4, torch.Generator().manual_seed(0))
    noise = fsd.RandomNoise(3, (1, 4, 4))
    together = noise(mine(cameras))
    with alone():
        apart = noise(cameras)
        kept = mine(cameras).c2w
    try:
        mine(torch.zeros(3))
    except ValueError as error:
        return together, apart, kept, str(error)
    return together, apart, kept, ""


def test_noise_is_that_of_a_views_place_among_all():
    cameras, noise = orbit(4, torch.Generator().manual_seed(0)), fsd.RandomNoise(3, (1, 4, 4))
    wanted, after = noise(cameras), noise(cameras)
    (first, *rest), (second, *others) = run_ranks(drawn)
    assert torch.equal(torch.cat([first, second]), wanted)
    # Alone with it, a process draws as if there were no other.
    assert torch.equal(rest[0], after)
    assert torch.equal(others[0], after)
    assert torch.equal(rest[1], cameras.c2w)
    assert "3 views cannot be shared evenly by 2 processes; give a multiple of 2" in rest[2]


def test_one_process_draws_as_torch_does():
    one, other = (torch.Generator().manual_seed(7) for _ in range(2))
    assert torch.equal(draw_views(one, 3, 2, 5), torch.randn(3, 2, 5, generator=other))
    assert torch.equal(one.get_state(), other.get_state())


def unlike(folder: str) -> list[str]:
    said = []
    for seeds, counts in (((0, 1), (2, 2)), ((0, 0), (2, 1))):
        rank = dist.get_rank()
        guide = METHODS["vsd"](open_prior(f"{folder}/single"), seed=seeds[rank])
        cameras = orbit(counts[rank], torch.Generator())
        try:
            guide(torch.rand(counts[rank], 3, 16, 16), guide.prior.encode_text("a mug"), cameras, 0.5)
        except ValueError as error:
            said.append(str(error))
    return said


def test_vsd_refuses_processes_that_differ(folder):
    for said in run_ranks(unlike, 2, folder):
        assert len(said) == 2
        assert "2 in process 0, 2 in process 1, or their seeds differ" in said[0]
        assert "2 in process 0, 1 in process 1" in said[1]
        assert "wrap the loop in fsd.processes.alone()" in said[1]


def an_object(folder: str) -> None:
    rank = dist.get_rank() if dist.is_initialized() else 2
    config = GenerateConfig.model_validate(
        {"prompts": ["a red object"], "steps": 3, "size": 16, "threads": 1, "device": "cpu", "frames": 2,
         "mesh_resolution": 8, "batch_size": 2, "field": {"resolution": 8, "samples": 4}}
    )  # fmt: skip
    prior = fsd.RenderBank(joint=False, size=8, azimuths=12)
    generate(config, "a red object", "sds", 0, prior, f"{folder}/{rank}")


def test_objects_of_fsd_generate_do_not_depend_on_other_processes(tmp_path: Path):
    run_ranks(an_object, 2, str(tmp_path))
    an_object(str(tmp_path))
    made = [load_file(tmp_path / name / "scene.safetensors") for name in "012"]
    for other in made[1:]:
        assert all(torch.equal(other[key], value) for key, value in made[0].items())
