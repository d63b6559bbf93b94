"""Where rays meet the parts of objects: closed forms, so that thousands of pictures cost seconds.

All pictures of a batch meet their first part together, then their second, and so on; the nearest hit stays.

    >>> depth, number = first_hits(parts, owner, origins, directions)     # (v, r), inf where nothing is hit
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from fsd.world.parts import PartTensors

Numbers = tuple[Tensor, ...]


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
    return normalize((chosen[..., None] * inward).sum(1), dim=1)


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
