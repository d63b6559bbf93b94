"""Volume rendering of a field along rays, on any device, with memory bounded by chunks.

Quadrature of Max (1995) as in NeRF (Mildenhall et al. 2020, equation 3), by nerfacc's functions for dense samples,
which need no compiler.  Along a ray with intervals of length delta_i, density s_i and colour c_i

    weight_i = exp(-sum_{j<i} s_j delta_j) (1 - exp(-s_i delta_i)),    color = sum weight_i c_i.

    >>> rays = render_rays(field, origins, directions, samples=64)
    >>> image = rays.color + (1 - rays.opacity[:, None]) * background
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from shared_core.ops.host import read_back
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fsd.fields import Field
from fsd.inputs import check_tensor, check_together
from fsd.normals import surface_normals

with warnings.catch_warnings():
    # Python warns of escapes in nerfacc's docstrings whenever it compiles them.
    warnings.simplefilter("ignore")
    import nerfacc as nerfacc  # for the other modules, too


class Rays(NamedTuple):
    """What came back along each ray.  Nothing stands behind the object yet."""

    color: Float[Tensor, "n 3"]  # of the object, times opacity
    opacity: Float[Tensor, " n"]
    depth: Float[Tensor, " n"]  # expected distance divided by opacity; 0 where there is nothing
    normal: Float[Tensor, "n 3"] | None  # world axes; its length is the opacity


def render_rays(
    field: Field,
    origins: Float[Tensor, "n 3"],
    directions: Float[Tensor, "n 3"],
    samples: int = 64,
    fine_samples: int = 0,
    bounds: str = "box",
    generator: torch.Generator | None = None,
    occupancy: Callable[[Float[Tensor, "m 3"]], Bool[Tensor, " m"]] | None = None,
    normals: str | None = None,
    chunk: int = 2**19,
) -> Rays:
    """Sends rays with unit directions through a field.

    samples: intervals of equal length between entering and leaving the `bounds`: "box" or "sphere".
    fine_samples: further intervals, where a first look at the density alone expects something (NeRF, section 5.2).
    generator: draws the place of the sample in each interval; None takes the middle.
    occupancy: says for points which are worth asking the field about; the others count as empty.
    normals: "autograd", "finite" or "analytic" (see `fsd.normals`); None leaves them out.
    chunk: samples at a time.  Above it the backward pass computes each chunk again, so that memory is bounded;
        the numbers stay the same but for rounding.

    On a GPU the CPU waits once for a render with `occupancy`, and once more with `fine_samples`, to learn how many
    samples the field is asked about; without `occupancy` it does not wait, and the field is asked about all.

    Raises ValueError for sizes below one and unknown bounds.
    """
    if samples < 1 or fine_samples < 0 or chunk < 1:
        raise ValueError(
            f"samples={samples}, fine_samples={fine_samples}, chunk={chunk}; samples and chunk must be at least 1, "
            "fine_samples at least 0"
        )
    check_rays(origins, directions)
    near, far = interval(origins, directions, field.radius, bounds)
    # Drawn before the chunks: neither their size nor the second pass over them changes a number.
    first, second = (
        _places(len(origins), count, generator, origins) for count in (samples, samples + fine_samples)
    )
    edges = _between(near, far, samples)
    rows = max(1, chunk // (samples + fine_samples))
    looks = _cut(rows, origins, directions, edges, first)
    if fine_samples:
        with torch.no_grad():
            counts = _counts(looks, occupancy)
            finer = [
                _finer(field, look, occupancy, fine_samples, n) for look, n in zip(looks, counts, strict=True)
            ]
        edges = torch.cat(finer)
    looks = _cut(rows, origins, directions, edges, second)
    counts = _counts(looks, occupancy)

    def march(count: int | None, *look: Tensor) -> Rays:
        return _march(field, _Look(*look), occupancy, normals, count)

    recompute = torch.is_grad_enabled() and len(looks) > 1
    parts = [
        Rays(*checkpoint(march, count, *look, use_reentrant=False, preserve_rng_state=False))
        if recompute
        else march(count, *look)
        for look, count in zip(looks, counts, strict=True)
    ]
    return parts[0] if len(parts) == 1 else Rays(*(_joined(column) for column in zip(*parts, strict=True)))


def interval(
    origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"], radius: float, bounds: str = "box"
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Distances at which rays enter and leave the cube [-radius, radius]^3 or the sphere; both 0 where they miss.

    Only what lies in front of the origin counts.  Raises ValueError for other bounds.
    """
    if bounds == "box":
        # A ray along a face has no quotient; a step aside by less than rounding gives it one.
        slope = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
        sides = torch.stack([(-radius - origins) / slope, (radius - origins) / slope])
        near, far = sides.amin(0).amax(1), sides.amax(0).amin(1)
    elif bounds == "sphere":
        along = -(origins * directions).sum(1)
        half = radius**2 - (origins.square().sum(1) - along.square())
        root = half.clamp_min(0).sqrt()
        near, far = along - root, along + root
    else:
        raise ValueError(f"bounds={bounds!r}; they are 'box' or 'sphere'")
    near = near.clamp_min(0)
    hit = far > near
    zero = torch.zeros_like(near)
    return torch.where(hit, near, zero), torch.where(hit, far, zero)


def check_rays(origins: Tensor, directions: Tensor) -> None:
    """Check that these are rays, one direction per origin. Raises TypeError or ValueError."""
    check_tensor("origins", origins, "n 3", "one ray per row; flatten those of images with .reshape(-1, 3)")
    check_tensor("directions", directions, "n 3", "one per origin", n=len(origins))
    check_together(origins=origins, directions=directions)


class _Look(NamedTuple):
    """One sample in each interval of some rays."""

    origins: Tensor  # (n, 3)
    directions: Tensor  # (n, 3)
    edges: Tensor  # (n, s + 1) distances
    places: Tensor  # (n, s) where in its interval each sample lies, in [0, 1)

    def distances(self) -> Tensor:
        return self.edges[:, :-1] + (self.edges[:, 1:] - self.edges[:, :-1]) * self.places

    def points(self, t: Tensor) -> Tensor:
        return (self.origins[:, None] + self.directions[:, None] * t[..., None]).view(-1, 3)

    def wanted(self, points: Tensor, occupancy: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Which samples the field is asked about: those of rays that hit, in cells that are not empty."""
        hit = (self.edges[:, -1:] > self.edges[:, :1]).expand_as(self.places).flatten()
        return hit if occupancy is None else hit & occupancy(points)


def _cut(rows: int, *tensors: Tensor) -> list[_Look]:
    return [_Look(*pieces) for pieces in zip(*(tensor.split(rows) for tensor in tensors), strict=True)]


def _between(near: Tensor, far: Tensor, count: int) -> Tensor:
    steps = torch.linspace(0, 1, count + 1, dtype=near.dtype, device=near.device)
    return near[:, None] + (far - near)[:, None] * steps


def _march(
    field: Field,
    look: _Look,
    occupancy: Callable[[Tensor], Tensor] | None,
    normals: str | None,
    count: int | None,
) -> Rays:
    """One chunk."""
    edges, rays = look.edges, len(look.origins)
    sampled = _sample(field, look, occupancy, count)
    weights, _, _ = nerfacc.render_weight_from_density(edges[:, :-1], edges[:, 1:], sampled.density)
    opacity = weights.sum(1)
    depth = (weights * sampled.t).sum(1) / opacity.clamp_min(torch.finfo(opacity.dtype).eps)
    # Colours and normals exist at the asked points alone; what is nowhere has no weight.
    index = sampled.asked
    weights = weights.flatten()[index]
    ray = index // sampled.t.shape[1]
    color = nerfacc.accumulate_along_rays(weights, sampled.color, ray, rays)
    normal = None
    if normals is not None:
        outward = surface_normals(field, sampled.points, normals)
        mean = nerfacc.accumulate_along_rays(weights, outward, ray, rays)
        length = (mean.square().sum(1, keepdim=True) + 1e-12).sqrt()
        normal = mean / length * opacity[:, None]
    return Rays(color, opacity, depth, normal)


class _Sampled(NamedTuple):
    t: Tensor  # (n, s) distances
    density: Tensor  # (n, s)
    asked: Tensor  # (m,) which of the n s samples the field was asked about
    points: Tensor  # (m, 3)
    color: Any  # (m, 3); None if the field gives the density alone


def _sample(
    ask: Callable[[Tensor], Any], look: _Look, occupancy: Callable[[Tensor], Tensor] | None, count: int | None
) -> _Sampled:
    """Asks the field about one point in each interval, but for rays that miss and cells that are empty."""
    t = look.distances()
    points = look.points(t)
    wanted = look.wanted(points, occupancy)
    if count is not None:
        asked = places_of(wanted, count)
    elif _costs_a_wait(t.device):
        # All are asked about.  Intervals of rays that miss have no length, so that what is there has no weight; but
        # they lie where the camera is, which may be far outside the field.
        asked, points = torch.arange(t.numel(), device=t.device), torch.where(wanted[:, None], points, 0)
    else:
        asked = wanted.nonzero()[:, 0]
    points = points[asked]
    answer = ask(points)
    density, color = answer if isinstance(answer, tuple) else (answer, None)
    dense = torch.zeros(t.numel(), dtype=density.dtype, device=t.device).index_copy(0, asked, density)
    return _Sampled(t, dense.view_as(t), asked, points, color)


@torch.no_grad()
def _counts(looks: list[_Look], occupancy: Callable[[Tensor], Tensor] | None) -> list[int | None]:
    """How many samples of each chunk lie in occupied cells; None where nobody has to know before.

    The only thing that a render reads back, for all chunks together.
    """
    if occupancy is None or not _costs_a_wait(looks[0].edges.device):
        return [None] * len(looks)
    counts = [look.wanted(look.points(look.distances()), occupancy).sum() for look in looks]
    return read_back(torch.stack(counts), "how many samples lie in occupied cells?").tolist()


def _costs_a_wait(device: torch.device) -> bool:
    """Whether the CPU would wait for the device to learn how many samples are wanted."""
    return device.type != "cpu"


def places_of(wanted: Bool[Tensor, " n"], count: int) -> Int[Tensor, " count"]:
    """Where `wanted` is true, in order; as `nonzero`, if it is true `count` times, but no device is waited for."""
    place = wanted.cumsum(0) - 1
    found = torch.zeros(count + 1, dtype=torch.long, device=wanted.device)
    # What is not wanted lands behind the last place.
    found.scatter_(0, torch.where(wanted, place, count), torch.arange(len(wanted), device=wanted.device))
    return found[:count]


def _finer(
    field: Field, look: _Look, occupancy: Callable[[Tensor], Tensor] | None, more: int, count: int | None
) -> Tensor:
    """The edges with `more` among them, where a look at the density expects something."""
    sampled = _sample(field.density, look, occupancy, count)
    weights, _, _ = nerfacc.render_weight_from_density(look.edges[:, :-1], look.edges[:, 1:], sampled.density)
    return torch.cat([look.edges, _resample(look.edges, weights, more)], 1).sort(1).values


def _resample(edges: Tensor, weights: Tensor, count: int) -> Tensor:
    """`count` edges at equal steps of the weights' distribution (inverse transform); even where there is none."""
    weights = weights + 1e-5
    total = weights.cumsum(1)
    distribution = torch.cat([torch.zeros_like(total[:, :1]), total / total[:, -1:]], 1)
    wanted = (torch.arange(count, dtype=edges.dtype, device=edges.device) + 0.5) / count
    wanted = wanted.expand(len(edges), count).contiguous()
    upper = torch.searchsorted(distribution, wanted).clamp(1, edges.shape[1] - 1)
    low, high = distribution.gather(1, upper - 1), distribution.gather(1, upper)
    start, end = edges.gather(1, upper - 1), edges.gather(1, upper)
    return start + (end - start) * (wanted - low) / (high - low)


def _places(rays: int, count: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Where in its interval each sample lies, in [0, 1)."""
    if generator is None:
        return torch.full((1, 1), 0.5, dtype=like.dtype, device=like.device).expand(rays, count)
    return torch.rand(rays, count, generator=generator, device=generator.device, dtype=like.dtype).to(
        like.device
    )


def _joined(column: tuple[Any, ...]) -> Any:
    return None if column[0] is None else torch.cat(column)
