"""Where rays meet parts, against a slow walk along each ray."""

import math

import pytest
import torch
from fsd.world.hits import first_hits, normals
from fsd.world.parts import Parts, PartTensors

BLUE = (0.1, 0.2, 0.8)


def _ball(parts: Parts) -> None:
    parts.ball((0.1, -0.2, 0.05), (0.5, 0.7, 0.3), BLUE)


def _dome(parts: Parts) -> None:
    parts.ball((0, 0, -0.1), 0.6, BLUE, low=0.0)


def _cone(parts: Parts) -> None:
    parts.tube((0.1, -0.3, -0.5), (-0.2, 0.4, 0.5), 0.5, 0.0, BLUE)


def _cylinder(parts: Parts) -> None:
    parts.tube((-0.5, 0.1, 0), (0.5, 0.1, 0.1), 0.3, 0.3, BLUE)


def _wedge(parts: Parts) -> None:
    parts.box((0, 0.1, 0), (0.5, 0.4, 0.3), BLUE, top=(0.0, 1.2), tilt=25)


def _fan(parts: Parts) -> None:
    parts.fan((0, -0.4, 0), (0.2, 0.5, 0.2), (0.1, 0.1), (0.3, 0.5), BLUE)


def _ring(parts: Parts) -> None:
    parts.ring((0, 0, 0.1), 0.5, 0.2, BLUE, axis=(0, 1, 0))


SHAPES = {build.__name__[1:]: build for build in (_ball, _dome, _cone, _cylinder, _wedge, _fan, _ring)}


def _inside(parts: Parts, points: torch.Tensor) -> torch.Tensor:
    """By the definitions in the docstring of `parts`, with a general inverse, in float64."""
    within = torch.zeros(points.shape[:-1], dtype=torch.bool)
    for shape, rows in parts.rows.items():
        for row in torch.tensor(rows, dtype=torch.float64):
            columns = row[:9].view(3, 3).T
            x, y, z = ((points - row[9:12]) @ torch.linalg.inv(columns).T).unbind(-1)
            low, high, *n = row[12:18].tolist()
            between = (z >= low) & (z <= high)
            if shape == "quadric":
                within |= between & (x**2 + y**2 + n[0] * z**2 + n[1] * z + n[2] <= 0)
            elif shape == "box":
                within |= between & (x.abs() <= n[0] + n[1] * z) & (y.abs() <= n[2] + n[3] * z)
            else:
                within |= torch.hypot(torch.hypot(x, y) - 1, z) <= low
    return within


def _rays(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    origin = torch.tensor([[1.2, 1.7, 0.9]])
    aims = (torch.rand(1, count, 3, generator=generator) - 0.5) * 1.6
    away = aims - origin[:, None]
    return origin, (away / away.norm(dim=-1, keepdim=True)).transpose(1, 2)


@pytest.mark.parametrize("name", SHAPES)
def test_hits_are_where_a_walk_enters(name: str) -> None:
    parts = Parts()
    SHAPES[name](parts)
    origin, directions = _rays(300)
    depth, _ = first_hits(PartTensors([parts]), torch.tensor([0]), origin, directions)
    step = 1e-3
    along = torch.arange(0.8, 4.0, step, dtype=torch.float64)
    points = origin.double() + along[:, None, None] * directions[0].T.double()
    within = _inside(parts, points)
    walked = torch.where(within.any(0), along[within.to(torch.uint8).argmax(0)], torch.inf)
    hit = depth[0].isfinite()
    # Rays that graze are shorter inside than a step, or than the tolerance of tracing a ring.
    agree = hit == walked.isfinite()
    assert 30 < hit.sum() < 270
    assert agree.double().mean() > 0.98
    both = hit & walked.isfinite()
    assert (depth[0][both] - walked[both]).abs().max() < (0.02 if name == "ring" else 1.5 * step)


@pytest.mark.parametrize("name", SHAPES)
def test_normals_point_out_of_the_surface(name: str) -> None:
    parts = Parts()
    SHAPES[name](parts)
    tensors = PartTensors([parts])
    origin, directions = _rays(400)
    depth, number = first_hits(tensors, torch.tensor([0]), origin, directions)
    ray = depth[0].isfinite().nonzero()[:, 0]
    points = origin + depth[0, ray, None] * directions[0].T[ray]
    found = normals(tensors, torch.zeros_like(ray), number[0, ray], points)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(ray)))
    # Seen surfaces face the eye, and a little way along the normal is outside, against it inside.
    facing = (found * directions[0].T[ray]).sum(1) < 1e-3
    out = ~_inside(parts, (points + 0.03 * found).double())
    back = _inside(parts, (points - 0.03 * found).double())
    assert facing.float().mean() > 0.98
    assert (out & back).float().mean() > 0.93


def test_the_nearer_part_hides_the_farther() -> None:
    parts = Parts()
    parts.ball((0, 0, 0), 0.5, BLUE)
    parts.box((0, 1.0, 0), (0.2, 0.2, 0.2), BLUE)
    straight = torch.tensor([[[0.0], [-1.0], [0.0]]])
    depth, number = first_hits(
        PartTensors([parts]), torch.tensor([0]), torch.tensor([[0.0, 3.0, 0.0]]), straight
    )
    assert depth.item() == pytest.approx(1.8)
    assert number.item() == 1


def test_what_an_object_lacks_beside_others_is_hit_by_no_ray() -> None:
    poor, rich = Parts(), Parts()
    poor.ball((0, 0, 0), 0.1, BLUE)
    for build in SHAPES.values():
        build(rich)
    # Rays through the origin and along the axes, where empty rows would lie.
    origins = torch.tensor([[0.0, 2.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    directions = -origins[:, :, None] / 2
    tensors = PartTensors([rich, poor])
    depth, _ = first_hits(tensors, torch.tensor([1, 1, 1]), origins, directions)
    torch.testing.assert_close(depth, torch.full((3, 1), 1.9))
    sideways = (
        origins
        + torch.tensor([0.0, 0.0, 0.2]) * (origins[:, 2:] == 0)
        + torch.tensor([0.2, 0, 0]) * (origins[:, 2:] != 0)
    )
    missed, _ = first_hits(tensors, torch.tensor([1, 1, 1]), sideways, directions)
    assert missed.isinf().all()


def test_rays_along_a_cones_side_are_not_lost_in_rounding() -> None:
    parts = Parts()
    parts.tube((0, 0, 0), (0, 0, 1), 1, 0, BLUE)
    # Parallel to the side that faces +y, 0.1 inside it: enters through the floor, or leaves through the far side.
    slope = torch.tensor([[0.0], [1.0], [-1.0]]) / math.sqrt(2)
    origin = torch.tensor([[0.0, -3.0, 3.9]])
    depth, _ = first_hits(PartTensors([parts]), torch.tensor([0]), origin, slope[None])
    point = origin[0] + depth[0, 0] * slope[:, 0]
    # y + z = 0.9 along the ray; it meets z = 1 + y, the other side, at y = -0.05.
    torch.testing.assert_close(point, torch.tensor([0.0, -0.05, 0.95]), atol=1e-4, rtol=0)


def test_fitted_objects_are_centred_and_as_large_as_asked() -> None:
    parts = Parts()
    parts.box((3, 2, 1), (1, 2, 0.5), BLUE)
    tensors = PartTensors([parts])
    tensors.fit(torch.tensor([0.8]))
    row = tensors.rows[0, 0]
    torch.testing.assert_close(row[9:12], torch.zeros(3), atol=1e-6, rtol=0)
    half = row[[0, 4, 8]]
    assert half.norm().item() == pytest.approx(0.8)
    torch.testing.assert_close(half / half[0], torch.tensor([1.0, 2.0, 0.5]))
