"""Parts of objects, and where rays meet them: closed forms, so that thousands of pictures cost seconds.

A part is a convex body, or a ring, in its own coordinates u = (x, y, z), placed in the world by p = axes u + at with
orthogonal axes.  There are three shapes, each with up to six numbers:

    quadric   x^2 + y^2 + c2 z^2 + c1 z + c0 <= 0 with low <= z <= high: balls, domes, cylinders, cones
    box       |x| <= ax + bx z and |y| <= ay + by z with low <= z <= high: boxes, wedges, pyramids, roofs
    ring      a torus around z of radius 1 and a given thickness

    >>> parts = Parts(); parts.ball((0, 0, 0), 0.5, colour); parts.tube((0, 0, -1), (0, 0, 0), 0.2, 0.1, colour)
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Vector = Sequence[float]
SHAPES = ("quadric", "box", "ring")
# A part is a row: axes (3 columns of 3), at (3), numbers (6), colour (3).
ROW = 21
# No height, less than no width, no thickness: missed by every ray whatever the shape.
NOTHING = (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0, 0, 0, 0, 0, 0, -1.0, 0, 1.0, 0, 0, 0, 0)


class Parts:
    """The parts of one object, added one by one; `rows` holds them by shape."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[float, ...]]] = {shape: [] for shape in SHAPES}

    def ball(
        self, at: Vector, radii: float | Vector, colour: Vector, low: float = -1.0, high: float = 1.0
    ) -> None:
        """An ellipsoid, or what lies between heights `low` and `high` of it, as parts of the upper radius."""
        a, b, c = (radii,) * 3 if isinstance(radii, (int, float)) else radii
        self._add("quadric", (a, 0, 0, 0, b, 0, 0, 0, c), at, (low, high, 1.0, 0.0, -1.0, 0.0), colour)

    def tube(self, start: Vector, end: Vector, first: float, last: float, colour: Vector) -> None:
        """A cylinder or cone around the line from `start` to `end`, of radius `first` there and `last` here."""
        change = last - first
        numbers = (0.0, 1.0, -(change**2), -2 * first * change, -(first**2), 0.0)
        self._add("quadric", _axes_along(start, end), start, numbers, colour)

    def box(
        self, at: Vector, half: Vector, colour: Vector, top: tuple[float, float] = (1.0, 1.0), tilt: float = 0
    ) -> None:
        """Half sides `half`; the upper face is `top` times the lower one in x and y; `tilt` degrees around x."""
        a, b, c = half
        cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
        axes = (a, 0, 0, 0, b * cos, b * sin, 0, -c * sin, c * cos)
        slopes = [number for s in top for number in ((1 + s) / 2, (s - 1) / 2)]
        self._add("box", axes, at, (-1.0, 1.0, *slopes), colour)

    def fan(
        self,
        start: Vector,
        end: Vector,
        first: tuple[float, float],
        last: tuple[float, float],
        colour: Vector,
    ) -> None:
        """A box along the line from `start` to `end`; `first` and `last` are its half sides, across and upright."""
        x, y, z = (a / 2 for a in _axes_along(start, end)[6:])
        middle = [(a + b) / 2 for a, b in zip(start, end, strict=True)]
        axes = (*_axes_along(start, end)[:6], x, y, z)
        slopes = [n for a, b in zip(first, last, strict=True) for n in ((a + b) / 2, (b - a) / 2)]
        self._add("box", axes, middle, (-1.0, 1.0, *slopes), colour)

    def ring(
        self, at: Vector, radius: float, thickness: float, colour: Vector, axis: Vector = (0, 0, 1)
    ) -> None:
        """A torus; `thickness` is the radius of what is bent round."""
        end = [p + radius * n for p, n in zip(at, axis, strict=True)]
        axes = [radius * x for x in _axes_along(at, end)[:6]] + [radius * n for n in axis]
        self._add("ring", axes, at, (thickness / radius, 0, 0, 0, 0, 0), colour)

    def _add(self, shape: str, axes: Vector, at: Vector, numbers: Vector, colour: Vector) -> None:
        self.rows[shape].append((*axes, *at, *numbers, *colour))


class PartTensors:
    """The parts of n objects: `rows` (n, k, ROW), of each shape as many as the richest object has."""

    def __init__(self, objects: Sequence[Parts]) -> None:
        self.counts = [max(len(one.rows[shape]) for one in objects) for shape in SHAPES]
        rows = []
        for one in objects:
            for shape, count in zip(SHAPES, self.counts, strict=True):
                rows += one.rows[shape] + [NOTHING] * (count - len(one.rows[shape]))
        self.rows = torch.tensor(rows, dtype=torch.float32).view(len(objects), -1, ROW)

    def fit(self, radius: Float[Tensor, " n"]) -> None:
        """Moves each object so that its bounding box is centred, and scales it to lie within `radius`."""
        points, real = self._surface()
        far = torch.where(real, points, torch.inf), torch.where(real, points, -torch.inf)
        middle = (far[0].amin(1) + far[1].amax(1)) / 2
        reach = torch.where(real[..., 0], (points - middle[:, None]).norm(dim=-1), 0.0).amax(1)
        scale = (radius / reach)[:, None, None]
        self.rows[..., 9:12] = (self.rows[..., 9:12] - middle[:, None]) * scale
        self.rows[..., :9] *= scale

    def _surface(self) -> tuple[Float[Tensor, "n s 3"], Tensor]:
        """Points of the surface, and whether they belong to a part that is there."""
        angle = torch.arange(12) * (2 * math.pi / 12)
        circle = torch.stack([angle.cos(), angle.sin(), torch.zeros(12)], 1)
        upward = torch.tensor([0.0, 0.0, 1.0])
        quadric, box, ring = self.rows[..., 12:18].split(self.counts, 1)
        z = quadric[..., :1] + (quadric[..., 1:2] - quadric[..., :1]) * torch.linspace(0, 1, 5)
        wide = -(quadric[..., 2:3] * z**2 + quadric[..., 3:4] * z + quadric[..., 4:5])
        wide = wide.clamp(min=0).sqrt()[..., None, None]
        rounds = (wide * circle + z[..., None, None] * upward).flatten(2, 3)
        corner = torch.tensor([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]).float()
        half = box[..., None, [2, 4]] + box[..., None, [3, 5]] * corner[:, 2:]
        corners = torch.cat([corner[:, :2] * half, corner[:, 2:].expand(*half.shape[:-1], 1)], -1)
        thick = ring[..., :1, None]
        loops = torch.cat([circle * (1 + thick), circle + thick * upward, circle - thick * upward], -2)
        world, real = [], []
        for rows, local in zip(self.rows.split(self.counts, 1), (rounds, corners, loops), strict=True):
            axes = rows[..., :9].unflatten(-1, (3, 3))
            world.append(
                ((local[..., None] * axes[..., None, :, :]).sum(-2) + rows[..., None, 9:12]).flatten(1, 2)
            )
            there = (rows[..., 12] < rows[..., 13]) if local is not loops else rows[..., 12] > 0
            real.append(there[..., None].expand(local.shape[:-1]).flatten(1))
        return torch.cat(world, 1), torch.cat(real, 1)[..., None]


def _axes_along(start: Vector, end: Vector) -> tuple[float, ...]:
    """Two unit axes across, and the line from start to end itself."""
    x, y, z = (b - a for a, b in zip(start, end, strict=True))
    length = math.sqrt(x * x + y * y + z * z)
    # Crossed with the world axis that is farthest from it.
    if abs(z) < 0.9 * length:
        flat = math.hypot(x, y)
        side = (-y / flat, x / flat, 0.0)
    else:
        flat = math.hypot(x, z)
        side = (z / flat, 0.0, -x / flat)
    n = (x / length, y / length, z / length)
    other = (
        n[1] * side[2] - n[2] * side[1],
        n[2] * side[0] - n[0] * side[2],
        n[0] * side[1] - n[1] * side[0],
    )
    return (*side, *other, x, y, z)


def first_hits(
    parts: PartTensors,
    owner: Int[Tensor, " v"],
    origins: Float[Tensor, "v 3"],
    directions: Float[Tensor, "v 3 r"],
) -> tuple[Float[Tensor, "v r"], Int[Tensor, "v r"]]:
    """Distance along each ray to the first part, inf where there is none, and the number of that part.

    View v sees object `owner[v]`; all its rays start at `origins[v]`.  Directions have unit length.
    """
    rows = parts.rows[owner]
    depth = torch.full_like(directions[:, 0], torch.inf)
    winner = torch.zeros(depth.shape, dtype=torch.long)
    number = 0
    for shape, count in zip((_quadric, _box, _ring), parts.counts, strict=True):
        for _ in range(count):
            row = rows[:, number]
            axes = row[:, :9].unflatten(1, (3, 3))
            # The axes are orthogonal: the inverse is the transpose over the squared lengths.
            inward = axes / axes.square().sum(2, keepdim=True)
            start = (inward * (origins - row[:, 9:12])[:, None]).sum(2)
            x, y, z = (
                inward[:, k, :1] * directions[:, 0]
                + inward[:, k, 1:2] * directions[:, 1]
                + inward[:, k, 2:] * directions[:, 2]
                for k in range(3)
            )
            numbers = row[:, 12:18, None].unbind(1)
            along = shape(numbers, start[..., None].unbind(1), (x, y, z))
            nearer = along < depth
            depth = torch.where(nearer, along, depth)
            winner = winner.masked_fill_(nearer, number)
            number += 1
    return depth, winner


def normals(
    parts: PartTensors, owner: Int[Tensor, " m"], number: Int[Tensor, " m"], points: Float[Tensor, "m 3"]
) -> Float[Tensor, "m 3"]:
    """Unit normals at points on the surface of the part `number` of the object `owner`."""
    row = parts.rows[owner, number]
    axes = row[:, :9].unflatten(1, (3, 3))
    inward = axes / axes.square().sum(2, keepdim=True)
    local = (inward * (points - row[:, 9:12])[:, None]).sum(2)
    x, y, z = local.unbind(1)
    low, high, *rest = row[:, 12:18].unbind(1)
    # Quadric: its gradient, or straight up and down on the cuts.
    slope = torch.stack([x, y, rest[0] * z + rest[1] / 2], 1)
    flat = torch.stack(
        [torch.zeros_like(x), torch.zeros_like(x), torch.where(z > (low + high) / 2, 1.0, -1.0)], 1
    )
    cut = torch.minimum((z - low).abs(), (z - high).abs()) < 1e-4
    quadric = torch.where(cut[:, None], flat, slope)
    # Box: the face whose bound is nearest to being broken.
    zero = torch.zeros_like(x)
    sides = torch.stack(
        [
            torch.stack([x.sign(), zero, -rest[1]], 1),
            torch.stack([zero, y.sign(), -rest[3]], 1),
            torch.stack([zero, zero, z.sign()], 1),
        ],
        1,
    )
    over = torch.stack([x.abs() - rest[0] - rest[1] * z, y.abs() - rest[2] - rest[3] * z, z.abs() - 1], 1)
    box = sides.gather(1, over.argmax(1)[:, None, None].expand(-1, 1, 3))[:, 0]
    # Ring: away from the circle.
    across = torch.hypot(x, y).clamp(min=1e-9)
    ring = torch.stack([x - x / across, y - y / across, z], 1)
    first, second = parts.counts[0], parts.counts[0] + parts.counts[1]
    at = number[:, None]
    chosen = torch.where(at < first, quadric, torch.where(at < second, box, ring))
    return torch.nn.functional.normalize((chosen[..., None] * inward).sum(1), dim=1)


Numbers = tuple[Tensor, ...]


def _slab(low: Tensor, high: Tensor, start: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Where low <= start + t step <= high begins and ends."""
    inverse = 1 / _away_from_zero(step)
    a, b = (low - start) * inverse, (high - start) * inverse
    return torch.minimum(a, b), torch.maximum(a, b)


def _quadric(numbers: Numbers, start: Numbers, step: Numbers) -> Tensor:
    low, high, c2, c1, c0, _ = numbers
    (ox, oy, oz), (dx, dy, dz) = start, step
    a = _away_from_zero(dx * dx + dy * dy + c2 * (dz * dz))
    b = ox * dx + oy * dy + (c2 * oz + c1 / 2) * dz
    c = ox * ox + oy * oy + c2 * oz * oz + c1 * oz + c0
    square = b * b - a * c
    root = square.clamp(min=0).sqrt()
    # The form without cancellation: a is near 0 for rays along a cone's side.
    q = _away_from_zero(-(b + torch.where(b < 0, -root, root)))
    one, two = q / a, c / q
    # In the order (-b - root) / a, (-b + root) / a.
    near, far = torch.where(b < 0, two, one), torch.where(b < 0, one, two)
    enter, leave = _slab(low, high, oz, dz)
    # A steep ray (a < 0) is within a cone before `far` and after `near`; the cuts leave one of them.
    before = enter < far
    begin = torch.where((a < 0) & before, enter, torch.maximum(near, enter))
    end = torch.where((a < 0) & ~before, leave, torch.minimum(far, leave))
    return torch.where((square >= 0) & (begin < end), begin, torch.inf)


def _box(numbers: Numbers, start: Numbers, step: Numbers) -> Tensor:
    low, high, ax, bx, ay, by = numbers
    (ox, oy, oz), (dx, dy, dz) = start, step
    begin, end = _slab(low, high, oz, dz)
    for o, d, a, b in ((ox, dx, ax, bx), (oy, dy, ay, by)):
        for sign in (1.0, -1.0):
            # sign (o + t d) - b (oz + t dz) <= a
            rate = _away_from_zero(sign * d - b * dz)
            at = (a - sign * o + b * oz) / rate
            outward = rate > 0
            begin = torch.where(outward, begin, torch.maximum(begin, at))
            end = torch.where(outward, torch.minimum(end, at), end)
    return torch.where(begin < end, begin, torch.inf)


def _ring(numbers: Numbers, start: Numbers, step: Numbers, steps: int = 24) -> Tensor:
    """By sphere tracing, from the ball around the ring."""
    thick = numbers[0]
    (ox, oy, oz), (dx, dy, dz) = start, step
    speed = (dx * dx + dy * dy + dz * dz).sqrt()
    middle = -(ox * dx + oy * dy + oz * dz) / (speed * speed)
    px, py, pz = ox + middle * dx, oy + middle * dy, oz + middle * dz
    reach = (1 + thick) ** 2 - (px * px + py * py + pz * pz)
    alive = ((reach > 0) & (thick > 0)).nonzero(as_tuple=True)
    view = alive[0]
    thick, ox, oy, oz = (value[:, 0][view] for value in (thick, ox, oy, oz))
    dx, dy, dz, speed, middle, half = (
        value[alive] for value in (dx, dy, dz, speed, middle, reach.clamp(min=0).sqrt())
    )
    half = half / speed
    along, end = middle - half, middle + half
    gap = torch.zeros_like(along)
    for _ in range(steps):
        x, y, z = ox + along * dx, oy + along * dy, oz + along * dz
        gap = torch.hypot((x * x + y * y).sqrt() - 1, z) - thick
        along = along + gap / speed
    found = torch.where((gap < 1e-2) & (along < end), along, torch.inf)
    return torch.full(step[0].shape, torch.inf).index_put(alive, found)


def _away_from_zero(values: Tensor) -> Tensor:
    return torch.where(values.abs() < 1e-9, 1e-9, values)
