"""Solids are distances, pictures of them are where they are, and prompts are understood."""

import math

import pytest
import torch
from fsd.cameras import place, rays, turntable
from fsd.world.renders import AMBIENT, GREY, LIGHT, paint, trace
from fsd.world.solids import KINDS, ball, box, polygon, prism, ring, turned, union
from fsd.world.words import COLOURS, FILLERS, Asked, understand
from hypothesis import given, settings
from hypothesis import strategies as st

# An arrow head: not convex, with a horizontal edge and a corner that looks inwards.
ARROW = [(-0.5, -0.4), (0.5, -0.4), (0.3, 0.0), (0.6, 0.5), (0.0, 0.1)]
# Mirrored at the axis, as a half section has to be.
SPOOL = [(-0.5, -0.4), (0.5, -0.4), (0.2, 0.0), (0.5, 0.4), (-0.5, 0.4), (-0.2, 0.0)]

coordinate = st.floats(-1.2, 1.2, allow_subnormal=False)
point = st.tuples(coordinate, coordinate, coordinate)


def points(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, generator=generator, dtype=torch.float64) * 2.4 - 1.2


def along(corners: list[tuple[float, float]], count: int = 4000) -> torch.Tensor:
    """Points on the outline, `count` to an edge."""
    share = torch.linspace(0, 1, count, dtype=torch.float64)[:, None]
    ends = torch.tensor(corners, dtype=torch.float64)
    edges = zip(ends, ends.roll(-1, 0), strict=True)
    return torch.cat([start + share * (end - start) for start, end in edges])


def winding(u: float, v: float, corners: list[tuple[float, float]]) -> bool:
    """Inside, by the sum of the angles under which the edges are seen."""
    angles = [math.atan2(b - v, a - u) for a, b in corners]
    turns = [
        math.remainder(after - angle, math.tau)
        for angle, after in zip(angles, [*angles[1:], angles[0]], strict=True)
    ]
    return abs(sum(turns)) > math.pi


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=200)
@given(one=point, other=point)
def test_no_solid_overstates_a_distance(kind, one, other):
    """A distance changes by no more than the way between two points, or sphere tracing would step through."""
    pair = torch.tensor([one, other], dtype=torch.float64)
    first, second = KINDS[kind](pair)
    assert abs(first - second) <= (pair[0] - pair[1]).norm() + 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_at_most_one_and_mostly_one(kind):
    places = points(20000).requires_grad_()
    KINDS[kind](places).sum().backward()
    assert places.grad is not None
    length = places.grad.norm(dim=1)
    assert length.max() <= 1 + 1e-9
    assert length.median() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_solids_fit_the_world(kind):
    """All of it within 0.85 of the origin (`trace` looks as far as 0.95), and something of it there."""
    distance = KINDS[kind](places := points(50000))
    assert (distance[places.norm(dim=1) > 0.85] > 0).all()
    assert (distance < 0).sum() > 100


@settings(deadline=None, max_examples=100)
@given(point, st.floats(0.1, 0.6))
def test_ball(place_, radius):
    here = torch.tensor(place_, dtype=torch.float64)
    assert ball(here, radius) == pytest.approx(math.hypot(*place_) - radius, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(point)
def test_box_against_its_surface(place_):
    half, at = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.1, -0.2, 0.3])
    steps = torch.linspace(-1, 1, 161, dtype=torch.float64)
    a, b = (t.flatten() for t in torch.meshgrid(steps, steps, indexing="ij"))
    faces = [
        torch.stack([a, b, torch.full_like(a, side)], 1).roll(axis, 1)
        for axis in range(3)
        for side in (-1.0, 1.0)
    ]
    surface = torch.cat(faces) * half + at
    here = torch.tensor(place_, dtype=torch.float64)
    inside = bool(((here - at).abs() < half).all())
    expected = (surface - here).norm(dim=1).min() * (-1 if inside else 1)
    # The grid on the faces is 0.006 wide at most.
    assert box(here, half.tolist(), at.tolist()) == pytest.approx(expected.item(), abs=0.007)


@settings(deadline=None, max_examples=60)
@given(point)
def test_ring_against_its_surface(place_):
    circle = torch.linspace(0, math.tau, 721, dtype=torch.float64)
    around, tube = (t.flatten() for t in torch.meshgrid(circle, circle[::4], indexing="ij"))
    away = 0.5 + 0.2 * tube.cos()
    surface = torch.stack([away * around.cos(), away * around.sin(), 0.2 * tube.sin()], 1)
    here = torch.tensor(place_, dtype=torch.float64)
    inside = math.hypot(math.hypot(place_[0], place_[1]) - 0.5, place_[2]) < 0.2
    expected = (surface - here).norm(dim=1).min() * (-1 if inside else 1)
    assert ring(here, 0.5, 0.2) == pytest.approx(expected.item(), abs=0.005)


@pytest.mark.parametrize("corners", [ARROW, SPOOL, ARROW[::-1]])
@settings(deadline=None, max_examples=150)
@given(u=coordinate, v=coordinate)
def test_polygon_against_its_outline(corners, u, v):
    here = torch.tensor([u, v], dtype=torch.float64)
    distance = (along(corners) - here).norm(dim=1).min().item()
    found = polygon(here[0], here[1], corners).item()
    assert abs(found) == pytest.approx(distance, abs=3e-4)
    # On the outline itself, which is sampled every 3e-4, either side is right.
    if distance > 3e-4:
        assert (found < 0) == winding(u, v, corners)


@settings(deadline=None, max_examples=100)
@given(place_=point)
def test_turned_and_prism_are_their_outlines(place_):
    x, y, z = (torch.tensor(c, dtype=torch.float64) for c in place_)
    here = torch.stack([x, y, z])
    assert turned(here, SPOOL) == polygon(torch.hypot(x, y), z, SPOOL)
    # In the middle plane of a long prism the ends are far away.
    flat = torch.stack([x, torch.zeros_like(x), z])
    assert prism(flat, ARROW, 5.0).item() == pytest.approx(polygon(x, z, ARROW).item(), abs=1e-12)
    # A prism of a square is a box.
    square = [(-0.4, -0.3), (0.4, -0.3), (0.4, 0.3), (-0.4, 0.3)]
    assert prism(here, square, 0.2).item() == pytest.approx(box(here, (0.4, 0.2, 0.3)).item(), abs=1e-12)


def test_union_is_inside_where_any_part_is():
    places = points(1000)
    one, two = box(places, (0.3, 0.3, 0.3), (0.4, 0.0, 0.0)), ball(places, 0.4)
    assert torch.equal(union(one, two) < 0, (one < 0) | (two < 0))
    assert torch.equal(union(one), one)


def test_inside_and_outside_of_the_kinds():
    """Places that one would point at: the hole of the donut, the mug's inside, the air under the table."""
    places = {
        "cube": ((0.41, 0.41, 0.41), (0.43, 0.0, 0.0)),
        "cylinder": ((0.37, 0.0, 0.49), (0.3, 0.3, 0.0)),
        "cone": ((0.0, 0.0, 0.55), (0.3, 0.0, 0.3)),
        "donut": ((0.42, 0.0, 0.0), (0.0, 0.0, 0.0)),
        "mug": ((0.64, 0.0, 0.0), (0.0, 0.0, 0.2)),
        "table": ((0.48, 0.32, -0.4), (0.0, 0.0, 0.0)),
        "house": ((0.3, -0.1, 0.6), (-0.3, -0.1, 0.6)),
    }
    for kind, (inside, outside) in places.items():
        first, second = KINDS[kind](torch.tensor([inside, outside]))
        assert first < 0 < second, kind


@pytest.mark.parametrize("radius", [0.3, 0.55])
def test_a_traced_ball_is_the_analytic_one(radius):
    cameras = place([0.0, 75.0, 200.0], [0.0, 30.0, -40.0])
    shading, mask = trace(lambda p: ball(p, radius), cameras, 32, fine=1)
    origins, directions = rays(cameras, 32, 32)
    middle = -(origins * directions).sum(-1)
    missed_by = (origins + middle[..., None] * directions).norm(dim=-1)
    expected = (missed_by < radius)[:, None]
    assert ((mask > 0) & expected).sum() / ((mask > 0) | expected).sum() > 0.99
    # Where the ray clearly hits, its light is that of the analytic normal.
    reach = radius**2 - missed_by**2
    hit = reach > 0.02
    normal = (origins + (middle - reach.clamp(min=0).sqrt())[..., None] * directions) / radius
    bright = (normal * torch.tensor(LIGHT)).sum(-1).clamp(min=0)
    expected_light = AMBIENT + (1 - AMBIENT) * bright
    assert (shading[:, 0] - expected_light)[hit].abs().max() < 0.02


def test_tracing_against_small_steps():
    """Of every kind: what is hit is what a plain march of 400 steps along each ray finds."""
    cameras = place([20.0, 130.0, 250.0], [10.0, 40.0, 25.0])
    origins, directions = rays(cameras, 32, 32)
    steps = torch.linspace(2.6 - 0.95, 2.6 + 0.95, 400)
    for kind, solid in KINDS.items():
        _, mask = trace(solid, cameras, 32, fine=1)
        slow = torch.stack([solid(origins + step * directions) < 0 for step in steps]).any(0)[:, None]
        found = mask > 0
        assert (found & slow).sum() / (found | slow).sum() > 0.97, kind


def test_chunks_and_rays_of_a_pixel():
    cameras = turntable(5)
    whole = trace(KINDS["mug"], cameras, 8)
    cut = trace(KINDS["mug"], cameras, 8, chunk=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))
    _, coarse = trace(KINDS["mug"], cameras, 16, fine=1)
    # Four rays a pixel: the mean of the picture of twice the size.
    assert torch.equal(whole[1], torch.nn.functional.avg_pool2d(coarse, 2))
    assert set((whole[1] * 4).unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_objects_face_the_front():
    """The mug's handle is at +x, which the camera in front of it, at azimuth 0, has to its left."""
    _, mask = trace(KINDS["mug"], place([0.0, 180.0], 0.0), 32)
    width = mask.amax(2)[:, 0]
    assert width[0, :16].sum() > width[0, 16:].sum()
    assert width[1, :16].sum() < width[1, 16:].sum()


def test_paint():
    shading, mask = (
        torch.tensor([0.0, 0.3, 0.9]).view(1, 1, 1, 3),
        torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3),
    )
    image = paint(shading, mask, (1.0, 0.5, 0.0))
    # Nothing, half covered, all covered: c s + (1 - m) grey.
    assert image[0, :, 0, 0].tolist() == [GREY] * 3
    assert image[0, :, 0, 1].tolist() == pytest.approx([0.3 + 0.25, 0.15 + 0.25, 0.25])
    assert image[0, :, 0, 2].tolist() == pytest.approx([0.9, 0.45, 0.0])
    assert paint(shading, mask, (1.0, 1.0, 1.0), background=0.0)[0, 0, 0].tolist() == pytest.approx(
        [0.0, 0.3, 0.9]
    )


def test_paintings_are_pictures():
    for colour in COLOURS.values():
        image = paint(*trace(KINDS["house"], turntable(3), 16), colour)
        assert image.shape == (3, 3, 16, 16)
        assert image.min() >= 0
        assert image.max() <= 1


@pytest.mark.parametrize(
    ("prompt", "colours", "kinds"),
    [
        ("a red mug", ("red",), ("mug",)),
        ("A RED Mug!", ("red",), ("mug",)),
        ("  any   blue, object... ", ("blue",), tuple(KINDS)),
        ("the house", tuple(COLOURS), ("house",)),
        ("an object", tuple(COLOURS), tuple(KINDS)),
        ("object", tuple(COLOURS), tuple(KINDS)),
        ("mug;red", ("red",), ("mug",)),
        # Several words of one sort leave the choice among them, in the world's order.
        ("blue red mug cube", ("red", "blue"), ("cube", "mug")),
    ],
)
def test_understood(prompt, colours, kinds):
    assert understand(prompt) == Asked(colours, kinds)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([*COLOURS, *KINDS, *FILLERS]), min_size=1),
    st.sampled_from([" ", ", ", "  ", "-", "!"]),
    st.sampled_from([str.lower, str.upper, str.title]),
)
def test_any_known_words_in_any_order(words, between, written):
    asked = understand(written(between.join(words)))
    assert set(asked.colours) == ({*words} & {*COLOURS} or {*COLOURS})
    assert set(asked.kinds) == ({*words} & {*KINDS} or {*KINDS})


@pytest.mark.parametrize("prompt", ["", "   ", "!?", "42"])
def test_empty_prompts(prompt):
    with pytest.raises(ValueError, match="the prompt is empty; say for example 'a red mug'"):
        understand(prompt)


@pytest.mark.parametrize(
    ("prompt", "words"), [("a red mushroom", "'mushroom'"), ("pink Mug räder", "'pink', 'räder'")]
)
def test_unknown_words_are_named_with_what_is_known(prompt, words):
    with pytest.raises(ValueError, match=f"does not know {words}; it knows red, .*mug.*--prior"):
        understand(prompt)
