"""Renderers and guidances on a stand-in for a GPU: nothing is left on the CPU, and READS lists what is read back.

Not covered here, as meta tensors have no values: nerfacc's CUDA kernels, which count what they sample by themselves.
"""

import math
import re
from pathlib import Path

import fsd
import pytest
import torch
from fsd import fields, regularizers, shading
from fsd.cameras import Cameras, orbit, place, rays
from fsd.guidance import METHODS
from fsd.noise import ConstantNoise, RandomNoise, WorldMapNoise
from fsd.normals import surface_normals
from fsd.occupancy import OccupancyGrid
from fsd.render import interval, places_of, render_rays
from fsd.schedule import SCHEDULES, schedule_named
from fsd.surface_noise import SurfaceNoise
from shared_core.testing import pretend_device

META = torch.device("meta")
FINITE = "is the prior's answer finite?"
COUNT = "how many samples lie in occupied cells?"
READS = {
    FINITE: "a guidance in somebody's own loop, once a step",
    COUNT: "a render with an occupancy grid: once, and once more with fine samples",
    "did anybody look into the cells before?": "loading an occupancy grid",
    "are the samples finite?": "pictures from a prior, once for all of them",
    "core-seconds of all processes": "a line of train-prior's log, with several processes",
}
"""What fsd reads back, beside the guard of `shared_core` ("is the step finite?", once a step) and the log."""
SHAPE = (3, 8, 8)


def test_the_list_of_reads_is_whole():
    source = Path(fsd.__file__).parent
    found = [
        reason
        for path in source.rglob("*.py")
        for reason in re.findall(r'read_back\([^"]*"([^"]+)"', path.read_text(encoding="utf-8"))
    ]
    assert sorted(found) == sorted(READS)


class ConvolutionPrior:
    """A network on the device; its prompt is a number."""

    latent_shape, image_size, views = SHAPE, 8, 1

    def __init__(self, device=META):
        self.calls, self.net = 0, torch.nn.Conv2d(3, 3, 1, device=device)

    def encode_text(self, prompt, negative_prompt=""):
        return 0.5

    def condition(self, prompt, cameras):
        return prompt * cameras.azimuth_deg[:, None, None, None] / 360

    def encode_image(self, image):
        return 2 * image - 1

    def alpha_sigma(self, t):
        return math.cos(t * 1.5), math.sin(t * 1.5)

    def predict_noise(self, x_t, t, condition, guidance_scale):
        self.calls += 1
        return self.net(x_t) + guidance_scale * condition


def step(method, **settings):
    prior = ConvolutionPrior()
    guide = METHODS[method](prior, **settings).to(META)
    image = torch.rand(2, 3, 8, 8, device=META, requires_grad=True)
    opacity, depth = (torch.rand(2, 1, 8, 8, device=META) for _ in range(2))
    with pretend_device() as reasons:
        # Cameras are drawn on the CPU; the guidance takes them to the image.
        cameras = orbit(2, torch.Generator())
        out = guide(image, prior.encode_text("any"), cameras, 0.5, opacity, depth)
        out.loss.backward()
    assert image.grad.is_meta
    assert out.direction.is_meta
    assert isinstance(out.t, float)
    return reasons


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"vsd"}))
def test_a_step_waits_once_for_whether_the_prior_is_finite(method):
    assert step(method) == [FINITE]


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_no_schedule_asks_the_device(schedule):
    assert step("fsd", schedule=schedule_named(schedule)) == [FINITE]


@pytest.mark.parametrize(
    "noise",
    [RandomNoise(), ConstantNoise(beta=0.5), WorldMapNoise(beta=0.5, shared=2), SurfaceNoise(refresh=0.1)],
    ids=lambda noise: type(noise).__name__,
)
def test_no_noise_asks_the_device(noise):
    assert step("sds", noise=noise) == [FINITE]


def hash_grid():
    return fields.HashGrid(levels=2, log2_size=6, base=4, finest=8, width=4)


@pytest.mark.parametrize("build", [lambda: fields.DenseGrid(8), hash_grid], ids=["dense", "hash"])
@pytest.mark.parametrize("normals", ["autograd", "finite", "analytic"])
def test_fields_normals_and_shading_stay_on_the_device(build, normals):
    field = build().to(META)
    if normals == "analytic" and not isinstance(field, fields.DenseGrid):
        pytest.skip("the closed form is that of a dense grid")
    points = torch.rand(6, 3, device=META)
    with pretend_device() as reasons:
        density, color = field(points)
        normal = surface_normals(field, points, normals)
        seen = shading.shaded("lambertian", color, density, normal, normal)
        (seen.sum() + density.sum()).backward()
    assert reasons == []
    assert all(p.grad is not None and p.grad.is_meta for p in field.parameters())


def test_rays_and_regularizers_stay_on_the_device():
    cameras = place([0.0, 90.0]).to(META)
    with pretend_device() as reasons:
        origins, directions = (x.reshape(-1, 3) for x in rays(cameras, 4, 4))
        for bounds in ("box", "sphere"):
            assert interval(origins, directions, 1.0, bounds)[0].is_meta
        opacity = torch.rand(2, 1, 4, 4, device=META)
        assert (regularizers.sparsity(opacity) + regularizers.binary_entropy(opacity)).is_meta
        assert shading.light_near(cameras.position, torch.Generator()).is_meta
    assert reasons == []


def test_an_occupancy_grid_asks_when_it_is_loaded_alone():
    grid, field = OccupancyGrid(4).to(META), fields.DenseGrid(4).to(META)
    with pretend_device(torch.ones_like) as reasons:
        for step in (0, 1, 16):
            grid.update(field, step, 0.1)
        assert grid(torch.rand(5, 3, device=META)).is_meta
        assert reasons == []
        grid.load_state_dict(grid.state_dict())
    assert reasons == ["did anybody look into the cells before?"]


SCENES = {
    "dense": lambda **settings: fsd.grid_scene(8, **settings),
    "hash": lambda **settings: fsd.hash_scene(levels=2, log2_size=6, base=4, finest=8, width=4, **settings),
}


@pytest.mark.parametrize("build", SCENES)
@pytest.mark.parametrize("normals", [None, "autograd", "finite", "analytic"])
@pytest.mark.parametrize("fine", [0, 4])
@pytest.mark.parametrize("occupancy", [0, 4])
def test_a_render_waits_for_its_count_of_samples_alone(build, normals, fine, occupancy):
    if (build, normals) == ("hash", "analytic"):
        pytest.skip("the closed form is that of a dense grid")
    looks = (2 if fine else 1) if occupancy else 0
    for chunk in (2**19, 2**7):
        scene = SCENES[build](
            samples=8, fine_samples=fine, occupancy=occupancy, chunk=chunk, normals=normals or "finite",
            shading=normals is not None, background="map", bounds="sphere" if fine else "box",
        ).to(META)  # fmt: skip
        # Once with nothing in any occupied cell, once with something.
        for found in (torch.zeros_like, torch.ones_like):
            with pretend_device(found) as reasons:
                view = scene.render(
                    place([0.0, 90.0]).to(META), 8, torch.Generator(), normals=normals is not None
                )
                total = view.image.sum() + view.opacity.sum() + view.depth.sum()
                (total if view.normal is None else total + view.normal.sum()).backward()
                scene.update_occupancy(16)
            assert reasons == [COUNT] * looks
            assert all(p.grad is not None and p.grad.is_meta for p in scene.parameters())


@pytest.mark.parametrize("occupied", [None, "sphere", "nothing"])
@pytest.mark.parametrize("fine", [0, 4])
@pytest.mark.parametrize("chunk", [2**19, 2**7])
def test_what_a_gpu_does_instead_of_looking_gives_the_same_picture(occupied, fine, chunk, monkeypatch):
    """On the CPU, as if it were worth not to wait there."""
    cells = {
        None: None,
        "sphere": lambda points: points.norm(dim=1) < 0.8,
        "nothing": lambda points: points[:, 0] > 9,
    }[occupied]
    field = fields.DenseGrid(6)
    torch.nn.init.normal_(field.values, generator=torch.Generator().manual_seed(0))
    origins, directions = (x.reshape(-1, 3) for x in rays(place([20.0], distance=3.0, fov_deg=60.0), 9, 9))
    found = []
    for waits in (False, True):
        monkeypatch.setattr("fsd.render._costs_a_wait", lambda _device, waits=waits: waits)
        field.zero_grad()
        seen = render_rays(
            field, origins, directions, 8, fine, occupancy=cells, normals="finite", chunk=chunk
        )
        (seen.color.sum() + seen.depth.sum() + seen.normal.sum()).backward()
        found.append([*seen, field.values.grad.clone()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert (found[0][1] == 0).any()


def test_rays_that_miss_from_far_away_have_no_colour_where_none_is_left_out(monkeypatch):
    monkeypatch.setattr("fsd.render._costs_a_wait", lambda _device: True)
    field = hash_grid()
    origins, directions = (x.reshape(-1, 3) for x in rays(place([0.0], distance=1e6, fov_deg=90.0), 4, 4))
    seen = render_rays(field, origins, directions, 8, normals="autograd")
    (seen.color.sum() + seen.normal.sum()).backward()
    assert not seen.color.any()
    assert all(not p.grad.any() for p in field.parameters() if p.grad is not None)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_places_are_those_of_nonzero(share):
    wanted = torch.rand(100, generator=torch.Generator().manual_seed(0)) < share
    assert torch.equal(places_of(wanted, int(wanted.sum())), wanted.nonzero()[:, 0])


def test_the_kind_of_light_comes_from_the_state_of_a_gpus_generator():
    states = [torch.tensor([1] * 8 + [n] + [0] * 7, dtype=torch.uint8) for n in range(200)]
    drawn = [shading.from_state(state) for state in states]
    assert drawn[0] == shading.from_state(states[0].clone())
    assert all(0 <= number < 1 for number in drawn)
    assert 0.4 < sum(drawn) / len(drawn) < 0.6
    assert len(set(drawn)) == len(drawn)


def test_cameras_move_as_a_whole():
    cameras = place([0.0]).to(META)
    assert isinstance(cameras, Cameras)
    assert cameras.c2w.is_meta
    assert cameras.fov_deg.is_meta


def test_a_prior_that_is_not_finite_is_still_refused():
    prior = ConvolutionPrior("cpu")
    prior.net.weight.data.fill_(float("nan"))
    image = torch.rand(2, 3, 8, 8)
    with pytest.raises(FloatingPointError, match="not finite"):
        METHODS["fsd"](prior)(image, 0.5, place([0.0, 90.0]), 0.5)
