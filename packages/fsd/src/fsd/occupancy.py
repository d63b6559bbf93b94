"""A coarse lattice of cells that may hold something, so that the field need not be asked about the rest.

Works on any device in plain torch.  A cell counts as occupied if the largest density seen in it of late, or in a
neighbour of it, absorbs `threshold` of the light over one step of the ray, or as much as in the mean cell.  No random
numbers: the places where the cells are looked at go round with the step, so that a run that is resumed goes on bit
for bit.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from shared_core.ops.host import read_back
from torch import Tensor, nn

from fsd.fields import Field
from fsd.inputs import check_tensor


class OccupancyGrid(nn.Module):
    """`resolution`^3 cells over [-radius, radius]^3; all are occupied until the first `update`."""

    seen: Tensor
    occupied: Tensor

    def __init__(
        self,
        resolution: int = 32,
        radius: float = 1.0,
        every: int = 16,
        decay: float = 0.95,
        threshold: float = 0.01,
    ) -> None:
        super().__init__()
        if resolution < 1 or every < 1:
            raise ValueError(f"resolution={resolution}, every={every}; both must be at least 1")
        self.resolution, self.radius = resolution, radius
        self.every, self.decay, self.threshold = every, decay, threshold
        size = (resolution,) * 3
        self.register_buffer("seen", torch.zeros(size))
        self.register_buffer("occupied", torch.ones(size, dtype=torch.bool))
        # Known here, so that no update has to ask the device; in a checkpoint `seen` says it.
        self._looked = False
        self.register_load_state_dict_post_hook(_look_again)

    @torch.no_grad()
    def update(self, field: Field, step: int, step_length: float) -> None:
        """Looks again, every so many steps.  `step_length`: the distance between samples along a ray."""
        if step % self.every:
            return
        # The first look is at all eight places of a cell, a later one at the next of them.
        places = range(8) if not self._looked else [step // self.every % 8]
        self.seen *= self.decay
        for place in places:
            found = torch.cat([field.density(chunk) for chunk in self._points(place).split(2**18)])
            self.seen.copy_(torch.maximum(self.seen, found.view_as(self.seen)))
        # Above zero, as a sign that somebody looked; too little to absorb anything.
        self.seen.clamp_(min=torch.finfo(self.seen.dtype).tiny)
        self._looked = True
        absorbed = 1 - torch.exp(-self.seen * step_length)
        # In thin fog, as at the start, the upper part counts: else nothing would be seen and nothing could grow.
        limit = absorbed.mean().clamp(max=self.threshold)
        grown = F.max_pool3d((absorbed >= limit).float()[None, None], 3, 1, 1)
        self.occupied.copy_(grown[0, 0] > 0)

    def forward(self, points: Float[Tensor, "n 3"]) -> Bool[Tensor, " n"]:
        """Which points lie in an occupied cell; outside the cube none do."""
        check_tensor("points", points, "n 3", "one point per row")
        scaled = (points / self.radius + 1) / 2 * self.resolution
        inside = ((scaled >= 0) & (scaled <= self.resolution)).all(1)
        x, y, z = scaled.long().clamp(0, self.resolution - 1).unbind(1)
        return inside & self.occupied[x, y, z]

    def _points(self, place: int) -> Float[Tensor, "n 3"]:
        """One point of each cell, at one corner of its inner half."""
        cells = torch.arange(self.resolution, device=self.seen.device)
        corner = [0.25 + 0.5 * (place >> bit & 1) for bit in range(3)]
        axes = [((cells + part) / self.resolution * 2 - 1) * self.radius for part in corner]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 3)


def _look_again(grid: OccupancyGrid, _keys: object) -> None:
    """After loading: one read of the device, and none in the updates."""
    grid._looked = bool(read_back(grid.seen.any(), "did anybody look into the cells before?"))
