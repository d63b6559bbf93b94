"""Captioned pictures of random objects, as many as one likes: what the embedded priors learn from.

>>> pictures = draw_pictures(1000, seed=0, views=4)
>>> pictures.images.shape, pictures.captions[0]
(torch.Size([1000, 4, 3, 32, 32]), ['a red car, side view', 'a red car', 'a red car, side view', 'a red car'])
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fsd.cameras import Cameras, place, rays
from fsd.priors.view_words import VIEWS, view_index
from fsd.world.captions import caption
from fsd.world.hits import first_hits, normals
from fsd.world.objects import KINDS
from fsd.world.parts import Parts, PartTensors
from fsd.world.renders import AMBIENT, GREY, LIGHT
from fsd.world.words import COLOURS

# Objects lie within this of the origin; cameras stand 2.6 away, give or take.
RADIUS = 0.8
DISTANCE = (2.5, 2.7)
ELEVATION = (0.0, 40.0)
FOV = 40.0
OVERHEAD = (65.0, 85.0)


class Pictures(NamedTuple):
    """Pictures of n objects before the grey ground, with captions (one per view) and what they show."""

    images: UInt8[Tensor, "n views 3 h w"]
    c2w: Float[Tensor, "n views 4 4"]
    fov_deg: Float[Tensor, "n views"]
    captions: list[list[str]]
    kinds: list[str]
    colours: list[str]


class Drawn(NamedTuple):
    """An object: its parts, and what they were made from; `size` is a share of RADIUS."""

    parts: Parts
    kind: str
    colour: str
    size: float


def draw_pictures(
    count: int, seed: int, size: int = 32, views: int = 1, kinds: Sequence[str] = tuple(KINDS)
) -> Pictures:
    """A pure function of its arguments: object k of a seed is the same whatever `count` is.

    `views` of an object are equal steps of azimuth apart at one elevation of 0 to 40 degrees and one distance of 2.5
    to 2.7, 40 degrees wide.  Single views are from above in one of 25, so that "overhead view" means something.
    Raises ValueError for a count, size or number of views below 1.
    """
    for name, number in (("count", count), ("size", size), ("views", views)):
        if number < 1:
            raise ValueError(f"{name}={number}; it must be at least 1")
    rngs = [Random(f"{seed}-{k}") for k in range(count)]
    objects = [draw_object(rng, rng.choice(kinds)) for rng in rngs]
    cameras = _cameras(rngs, views)
    words = [VIEWS[n] for n in view_index(cameras).tolist()]
    captions = [
        caption(rng, one.colour, one.kind, one.size, words[k * views : (k + 1) * views])
        for k, (rng, one) in enumerate(zip(rngs, objects, strict=True))
    ]
    images = render(objects, torch.arange(count).repeat_interleave(views), cameras, size)
    return Pictures(
        images.unflatten(0, (count, views)),
        cameras.c2w.unflatten(0, (count, views)),
        cameras.fov_deg.unflatten(0, (count, views)),
        captions,
        [one.kind for one in objects],
        [one.colour for one in objects],
    )


def draw_object(rng: Random, kind: str, colour: str | None = None) -> Drawn:
    """A random object of a kind, in any colour of the world or a given one.

    Raises ValueError for a kind or colour that the world does not have.
    """
    # Drawn even where given, so that all else stays the same.
    any_colour = rng.choice(list(COLOURS))
    colour = colour or any_colour
    for name, given, known in (("kind", kind, KINDS), ("colour", colour, COLOURS)):
        if given not in known:
            raise ValueError(f"no {name} {given!r} in this world; it has {', '.join(known)}")
    size = rng.uniform(0.78, 1.0)
    light = rng.uniform(-0.03, 0.03)
    main = tuple(min(1.0, max(0.03, c + light + rng.uniform(-0.04, 0.04))) for c in COLOURS[colour])
    parts = Parts()
    KINDS[kind](parts, rng, (main[0], main[1], main[2]))
    return Drawn(parts, kind, colour, size)


@torch.no_grad()
def render(
    objects: Sequence[Drawn],
    owner: Int[Tensor, " v"],
    cameras: Cameras,
    size: int,
    fine: int = 2,
    chunk: int = 16,
) -> UInt8[Tensor, "v 3 h w"]:
    """Pictures of `fine`^2 rays a pixel; view v is of object `owner[v]`.  Shading as in `renders`."""
    images = torch.empty(len(owner), 3, size, size, dtype=torch.uint8)
    # Objects of one kind have much the same parts: together, few rows are empty.
    kinds = torch.tensor([list(KINDS).index(one.kind) for one in objects])[owner]
    for views in kinds.argsort(stable=True).split(chunk):
        seen, local = owner[views].unique(return_inverse=True)
        chosen = [objects[k] for k in seen.tolist()]
        parts = PartTensors([one.parts for one in chosen])
        parts.fit(torch.tensor([one.size * RADIUS for one in chosen]))
        origins, directions = rays(cameras[views], size * fine, size * fine)
        colour = _colours(
            parts, local, origins[:, 0, 0], directions.flatten(1, 2).transpose(1, 2).contiguous()
        )
        pixels = colour.view(len(views), size, fine, size, fine, 3).mean((2, 4))
        images[views] = (pixels * 255 + 0.5).to(torch.uint8).permute(0, 3, 1, 2)
    return images


def _colours(
    parts: PartTensors, owner: Tensor, origins: Tensor, directions: Tensor
) -> Float[Tensor, "v r 3"]:
    depth, winner = first_hits(parts, owner, origins, directions)
    view, ray = depth.isfinite().nonzero(as_tuple=True)
    number, whose = winner[view, ray], owner[view]
    points = origins[view] + depth[view, ray, None] * directions.transpose(1, 2)[view, ray]
    normal = normals(parts, whose, number, points)
    bright = (normal * normal.new_tensor(LIGHT)).sum(1, keepdim=True).clamp(min=0)
    colour = torch.full((*depth.shape, 3), GREY)
    colour[view, ray] = parts.rows[whose, number, 18:] * (AMBIENT + (1 - AMBIENT) * bright)
    return colour


def _cameras(rngs: list[Random], views: int) -> Cameras:
    azimuths, elevations, distances = [], [], []
    for rng in rngs:
        start, above = rng.uniform(0, 360), views == 1 and rng.random() < 0.04
        elevation, distance = rng.uniform(*(OVERHEAD if above else ELEVATION)), rng.uniform(*DISTANCE)
        azimuths += [(start + k * 360 / views) % 360 for k in range(views)]
        elevations += [elevation] * views
        distances += [distance] * views
    return place(torch.tensor(azimuths), torch.tensor(elevations), torch.tensor(distances), FOV)
