"""One step of every guidance on a stand-in for a GPU: nothing is left on the CPU, and one value is read back.

Not covered here, as meta tensors have no values: the search for rays that meet the cube (`nonzero` in `fsd.render`: its
length depends on values) with what follows it, nerfacc's kernels, and the networks of diffusers, VSD's LoRA with them.
"""

import math

import pytest
import torch
from fsd import fields, regularizers, shading
from fsd.cameras import Cameras, orbit, place, rays
from fsd.guidance import METHODS
from fsd.noise import ConstantNoise, RandomNoise, WorldMapNoise
from fsd.normals import surface_normals
from fsd.occupancy import OccupancyGrid
from fsd.render import interval
from fsd.schedule import SCHEDULES, schedule_named
from fsd.surface_noise import SurfaceNoise
from shared_core.testing import pretend_device

META = torch.device("meta")
FINITE = "is the prior's answer finite?"
SHAPE = (3, 8, 8)


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


def test_an_occupancy_grid_asks_once_an_update():
    grid, field = OccupancyGrid(4).to(META), fields.DenseGrid(4).to(META)
    with pretend_device(torch.ones_like) as reasons:
        grid.update(field, 1, 0.1)
        assert reasons == []
        grid.update(field, 16, 0.1)
        assert grid(torch.rand(5, 3, device=META)).is_meta
    assert reasons == ["did anybody look into the cells before?"]


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
