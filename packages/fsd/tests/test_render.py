import math

import pytest
import torch
from fsd.cameras import place, rays
from fsd.fields import DenseGrid
from fsd.occupancy import OccupancyGrid
from fsd.render import interval, render_rays
from shared_core.testing import gradients_agree
from torch import Tensor, nn


@pytest.fixture
def grid() -> DenseGrid:
    """A lumpy half-transparent field in float64."""
    torch.manual_seed(0)
    field = DenseGrid(5, radius=1.0, blob_scale=1.0, blob_width=1.0).double()
    nn.init.normal_(field.values)
    return field


def some_rays(count: int = 6) -> tuple[Tensor, Tensor]:
    cameras = place(
        torch.linspace(0, 300, count, dtype=torch.float64), torch.linspace(-30, 50, count), 2.5, 40.0
    )
    origins, directions = (x[:, 3, 5] for x in rays(cameras, 8, 8))
    return origins.contiguous(), directions.contiguous()


def plain_ray(field: DenseGrid, origin: list[float], direction: list[float], samples: int) -> list[float]:
    """Equation 3 of NeRF, one number at a time: red, green, blue, opacity, depth."""
    enter, leave = 0.0, math.inf
    for o, d in zip(origin, direction, strict=True):
        a, b = sorted(((-field.radius - o) / d, (field.radius - o) / d))
        enter, leave = max(enter, a), min(leave, b)
    if leave <= enter:
        return [0.0] * 5
    length = (leave - enter) / samples
    transmittance, color, opacity, depth = 1.0, [0.0] * 3, 0.0, 0.0
    for k in range(samples):
        t = enter + (k + 0.5) * length
        point = torch.tensor(
            [[o + d * t for o, d in zip(origin, direction, strict=True)]], dtype=torch.float64
        )
        density, rgb = field(point)
        alpha = 1 - math.exp(-density.item() * length)
        weight = transmittance * alpha
        color = [c + weight * v for c, v in zip(color, rgb[0].tolist(), strict=True)]
        opacity += weight
        depth += weight * t
        transmittance *= 1 - alpha
    return [*color, opacity, depth / opacity]


def test_a_render_is_that_of_plain_loops(grid: DenseGrid) -> None:
    origins, directions = some_rays()
    found = render_rays(grid, origins, directions, samples=24)
    pairs = zip(origins.tolist(), directions.tolist(), strict=True)
    expected = torch.tensor([plain_ray(grid, o, d, 24) for o, d in pairs], dtype=torch.float64)
    assert expected[:, 3].min() > 0.05
    torch.testing.assert_close(found.color, expected[:, :3], rtol=1e-10, atol=0)
    torch.testing.assert_close(found.opacity, expected[:, 3], rtol=1e-10, atol=0)
    torch.testing.assert_close(found.depth, expected[:, 4], rtol=1e-10, atol=0)
    assert found.normal is None


class Renders(nn.Module):
    """All numbers that come back along the rays, in a row, as a function of the field's parameters."""

    def __init__(self, field: DenseGrid, **options) -> None:
        super().__init__()
        self.field, self.options = field, options

    def forward(self, origins: Tensor, directions: Tensor) -> Tensor:
        found = render_rays(self.field, origins, directions, samples=8, **self.options)
        return torch.cat([x.flatten() for x in found if x is not None])


@pytest.mark.parametrize("options", [{}, {"chunk": 8}, {"bounds": "sphere"}], ids=str)
def test_gradients_are_those_of_finite_differences(grid: DenseGrid, options: dict) -> None:
    model, views = Renders(grid, **options), some_rays(3)
    gradients_agree(lambda v: torch.func.functional_call(model, {"field.values": v}, views), grid.values)


@pytest.mark.parametrize("normals", ["finite", "analytic", "autograd"])
def test_normals_have_gradients_too(grid: DenseGrid, normals: str) -> None:
    model, views = Renders(grid, normals=normals), some_rays(2)
    gradients_agree(lambda v: torch.func.functional_call(model, {"field.values": v}, views), grid.values)


@pytest.mark.parametrize("normals", [None, "finite", "analytic", "autograd"])
@pytest.mark.parametrize("fine", [0, 6])
def test_chunks_change_nothing(grid: DenseGrid, normals: str | None, fine: int) -> None:
    origins, directions = some_rays(7)
    results = []
    for chunk in (10**6, 8 + fine, 3 * (8 + fine)):
        options = {"fine_samples": fine, "normals": normals, "chunk": chunk}
        values = Renders(grid, generator=torch.Generator().manual_seed(1), **options)(origins, directions)
        grid.zero_grad()
        values.square().sum().backward()
        results.append((values.detach(), grid.values.grad))
    for values, gradient in results[1:]:
        torch.testing.assert_close(values, results[0][0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-12, atol=1e-14)


def test_the_three_normals_agree_and_point_outwards() -> None:
    # Of a ball alone, normals are its directions.
    field = DenseGrid(4, blob_width=0.6).double()
    origins, directions = some_rays()
    found = [
        render_rays(field, origins, directions, 64, normals=n) for n in ("finite", "analytic", "autograd")
    ]
    for other in found[1:]:
        torch.testing.assert_close(other.normal, found[0].normal, rtol=1e-3, atol=1e-3)
    normal = found[1].normal
    assert normal is not None
    torch.testing.assert_close(normal.norm(dim=1), found[1].opacity, rtol=1e-6, atol=1e-6)
    hit = origins + directions * found[1].depth[:, None]
    assert (normal * hit).sum(1).min() > 0
    assert (normal * directions).sum(1).max() < 0


def test_hierarchical_samples_are_nearer_to_the_truth() -> None:
    # A thin shell, which few even samples miss or overrate.
    class Shell(nn.Module):
        radius = 1.0

        def density(self, points):
            return 100 * torch.exp(-((points.norm(dim=1) - 0.5) / 0.05).square())

        def forward(self, points):
            return self.density(points), (points + 1) / 2

    origins, directions = some_rays(40)
    truth = render_rays(Shell(), origins, directions, 2000).color
    even = render_rays(Shell(), origins, directions, 32).color
    fine = render_rays(Shell(), origins, directions, 16, fine_samples=16).color
    assert (fine - truth).abs().mean() < 0.5 * (even - truth).abs().mean()


def test_jitter_comes_from_the_generator_alone(grid: DenseGrid) -> None:
    origins, directions = some_rays()

    def color(seed: int | None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return render_rays(grid, origins, directions, 8, generator=generator).color

    before = torch.get_rng_state()
    assert torch.equal(color(0), color(0))
    assert not torch.equal(color(0), color(1))
    assert torch.equal(color(None), color(None))
    assert torch.equal(torch.get_rng_state(), before)


def test_rays_know_where_they_enter_and_leave() -> None:
    origins = torch.tensor(
        [[0.0, 3.0, 0.0], [0.0, 3.0, 2.0], [0.0, 0.0, 0.0], [0.0, -3.0, 0.0], [1.0, 3.0, 0.0]]
    )
    directions = torch.tensor([0.0, -1.0, 0.0]).expand(5, 3)
    near, far = interval(origins, directions, 1.0)
    assert near.tolist()[:4] == [2.0, 0.0, 0.0, 0.0]
    assert far.tolist()[:4] == [4.0, 0.0, 1.0, 0.0]  # through, beside, from within, behind
    assert not torch.isnan(torch.stack([near, far])).any()  # and along a face
    near, far = interval(origins[:1], directions[:1], 1.0, "sphere")
    assert (near.item(), far.item()) == (2.0, 4.0)


def test_nothing_is_asked_where_rays_miss(grid: DenseGrid) -> None:
    asked = []

    class Counts(nn.Module):
        radius = 1.0
        density = staticmethod(grid.density)

        def forward(self, points):
            asked.append(len(points))
            return grid(points)

    origins = torch.tensor([[0.0, 3.0, 5.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
    directions = torch.tensor([[0.0, -1.0, 0.0]] * 2, dtype=torch.float64)
    found = render_rays(Counts(), origins, directions, 10)
    assert asked == [10]
    assert (found.opacity[0], found.depth[0]) == (0, 0)
    assert found.opacity[1] > 0


def test_only_misses_still_have_a_gradient(grid: DenseGrid) -> None:
    origins = torch.tensor([[0.0, 3.0, 5.0]], dtype=torch.float64)
    found = render_rays(
        grid, origins, torch.tensor([[0.0, -1.0, 0.0]], dtype=torch.float64), 10, normals="finite"
    )
    found.color.sum().backward()
    assert grid.values.grad is not None
    assert grid.values.grad.abs().max() == 0


def test_the_occupancy_grid_leaves_the_render_as_it_is() -> None:
    field = DenseGrid(24, blob_scale=30.0)
    torch.manual_seed(0)
    nn.init.normal_(field.values)
    occupancy = OccupancyGrid(32)
    origins, directions = (x.reshape(-1, 3) for x in rays(place([0.0, 70.0]), 24, 24))
    dense = render_rays(field, origins, directions, 64)
    # before the first look, everything counts
    assert torch.equal(render_rays(field, origins, directions, 64, occupancy=occupancy).color, dense.color)
    occupancy.update(field, 0, 2 / 64)
    share = occupancy.occupied.float().mean().item()
    assert 0.01 < share < 0.5
    sparse = render_rays(field, origins, directions, 64, occupancy=occupancy)
    error = (sparse.color - dense.color).square().mean()
    assert 0 < error < 1e-6  # over 60 dB; not the same numbers, or nothing was skipped


def test_the_occupancy_grid_follows_the_field() -> None:
    field, occupancy = DenseGrid(8, blob_scale=30.0), OccupancyGrid(16)
    occupancy.update(field, 0, 0.03)
    far_corner = torch.tensor([[0.9, 0.9, 0.9]])
    assert not occupancy(far_corner)
    with torch.no_grad():
        field.values[0, 0] += 100
    occupancy.update(field, 1, 0.03)
    assert not occupancy(far_corner)  # a look only every 16 steps
    occupancy.update(field, 16, 0.03)
    assert occupancy(far_corner)
    assert not occupancy(torch.tensor([[1.1, 0.0, 0.0]]))
    with torch.no_grad():
        field.values[0, 0] -= 200
        field.values[0, 0, 4, 4, 4] += 300
    for step in range(32, 16 * 400, 16):
        occupancy.update(field, step, 0.03)
    assert not occupancy(far_corner)


def test_thin_fog_is_not_taken_for_nothing() -> None:
    field, occupancy = DenseGrid(8, blob_scale=1.0, offset=-8.0), OccupancyGrid(16)
    occupancy.update(field, 0, 0.03)
    assert field.density(torch.zeros(1, 3)) * 0.03 < occupancy.threshold
    assert occupancy(torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples=0"),
        ({"fine_samples": -1}, "fine_samples=-1"),
        ({"chunk": 0}, "chunk=0"),
        ({"bounds": "ball"}, "'box' or 'sphere'"),
        ({"normals": "exact"}, "finite"),
    ],
)
def test_options_that_mean_nothing_are_refused(grid: DenseGrid, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_rays(grid, *some_rays(), **options)


def test_a_field_without_closed_form_says_so(grid: DenseGrid) -> None:
    class Other(nn.Module):
        radius = 1.0
        density = staticmethod(grid.density)
        forward = staticmethod(grid.forward)

    with pytest.raises(TypeError, match="'autograd' or 'finite' for Other"):
        render_rays(Other(), *some_rays(), normals="analytic")


def test_the_occupancy_grid_refuses_no_cells() -> None:
    with pytest.raises(ValueError, match="resolution=0"):
        OccupancyGrid(0)
