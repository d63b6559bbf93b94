"""No sample at all is an ordinary case: rays that miss the cube, or a grid whose cells are all empty."""

import fsd
import pytest
import torch
from fsd.fields import DenseGrid, HashGrid
from fsd.normals import surface_normals
from fsd.regularizers import binary_entropy, sparsity
from fsd.render import render_rays
from fsd.scene import grid_scene, hash_scene
from fsd.shading import shaded

FIELDS = {
    "dense": lambda: DenseGrid(8),
    "hash": lambda: HashGrid(levels=2, log2_size=8, finest=32),
}
SCENES = {
    "dense": lambda **settings: grid_scene(8, **settings),
    "hash": lambda **s: hash_scene(log2_size=8, **s),
}
NOWHERE = torch.zeros(0, 3)


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_has_nothing_to_say_of_no_points(name):
    field = FIELDS[name]()
    density, color = field(NOWHERE)
    assert (density.shape, color.shape) == ((0,), (0, 3))
    assert field.density(NOWHERE).shape == (0,)
    (density.sum() + color.sum()).backward()
    assert all(not p.grad.any() for p in field.parameters() if p.grad is not None)
    density, _ = field(NOWHERE.clone().requires_grad_())
    assert density.shape == (0,)


@pytest.mark.parametrize(
    ("name", "how"), [(n, h) for n in FIELDS for h in ("autograd", "finite")] + [("dense", "analytic")]
)
def test_no_points_have_no_normals(name, how):
    assert surface_normals(FIELDS[name](), NOWHERE, how).shape == (0, 3)


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("shading", [False, True])
def test_a_render_of_nothing_is_the_background_and_can_be_trained_through(name, shading):
    scene = SCENES[name](samples=8, occupancy=8, shading=shading)
    scene.occupancy.occupied.zero_()
    cameras = fsd.cameras.orbit(batch=2, generator=torch.Generator().manual_seed(0))
    view = scene.render(cameras, 8, torch.Generator().manual_seed(0), background=torch.full((3,), 0.25))
    assert not view.opacity.any()
    assert torch.allclose(view.image, torch.tensor(0.25))
    view.image.sum().backward()


@pytest.mark.parametrize("name", SCENES)
def test_rays_that_all_miss_render_the_background(name):
    scene = SCENES[name](samples=8)
    camera = fsd.cameras.place([0.0], distance=1000.0, fov_deg=60.0)
    view = scene.render(camera, 2, background=torch.full((3,), 0.25))
    assert torch.allclose(view.image, torch.tensor(0.25), atol=1e-3)


def past_the_object(rays: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[0.0, 0.0, 9.0]]).expand(rays, 3), torch.tensor([[0.0, 1.0, 0.0]]).expand(rays, 3)


NOTHING = {
    "missed": lambda: (*past_the_object(5), {}),
    "missed, fine": lambda: (*past_the_object(5), {"fine_samples": 4}),
    "missed, in chunks": lambda: (*past_the_object(5), {"chunk": 8}),
    "emptied": lambda: (
        torch.zeros(5, 3),
        torch.eye(3)[[0, 1, 2, 0, 1]],
        {"occupancy": lambda points: torch.zeros(len(points), dtype=torch.bool), "fine_samples": 4},
    ),
    "no rays": lambda: (NOWHERE, NOWHERE, {"fine_samples": 4}),
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("normals", [None, "finite", "autograd"])
@pytest.mark.parametrize("case", NOTHING)
def test_rays_that_meet_nothing_give_zero_and_a_gradient_of_zero(name, normals, case):
    field, (origins, directions, settings) = FIELDS[name](), NOTHING[case]()
    found = render_rays(field, origins, directions, 8, normals=normals, **settings)
    assert found.color.shape == (len(origins), 3)
    for value in (found.color, found.opacity, found.depth, found.normal):
        assert value is None or not value.any()
    assert (found.normal is None) == (normals is None)
    (found.color.sum() + found.opacity.sum()).backward()
    assert all(not p.grad.any() for p in field.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("shading", [False, True])
def test_a_view_of_nothing_trains_the_background_alone(name, shading):
    scene = SCENES[name](samples=8, background="learned", occupancy=4, shading=shading)
    scene.occupancy.occupied.zero_()
    view = scene.render(fsd.cameras.turntable(2), 8, torch.Generator().manual_seed(0), normals=True)
    assert torch.equal(view.image, scene.background(torch.zeros(1, 3)).view(1, 3, 1, 1).expand(2, 3, 8, 8))
    (view.image.sum() + sparsity(view.opacity) + binary_entropy(view.opacity)).backward()
    assert scene.background.logit.grad.isfinite().all()
    assert all(not p.grad.any() for p in scene.field.parameters() if p.grad is not None)


def test_chunks_of_rays_that_miss_among_others_that_hit():
    """As at the upper edge of a large image from a distance."""
    scene = hash_scene(log2_size=8, samples=8, chunk=2**9)
    with torch.no_grad():
        view = scene.render(fsd.cameras.place([0.0], 0.0, 9.0), 64)
    assert not view.opacity[:, :, 0].any()
    assert view.opacity.max() > 0.5
    assert view.image.isfinite().all()


def test_no_rays_have_no_light():
    assert shaded("lambertian", NOWHERE, torch.zeros(0), NOWHERE, NOWHERE).shape == (0, 3)
