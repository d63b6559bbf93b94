"""Words for the side that a camera sees (DreamFusion, arXiv 2209.14988, section 3.2; thresholds as in threestudio).

Within 45 degrees of azimuth 0 it is the front, within 45 degrees of 180 the back, else a side; above 60 degrees of
elevation it is overhead, whatever the azimuth.

    >>> [VIEWS[n] for n in view_index(cameras)]                         # ['front', 'side', 'back', 'side']
"""

import torch
from jaxtyping import Int
from torch import Tensor

from fsd.cameras import Cameras

VIEWS = ("front", "side", "back", "overhead")


def with_view_word(prompt: str, view: str) -> str:
    """ "a mug" from the back is "a mug, back view"."""
    return f"{prompt}, {view} view"


def in_all_views(prompt: str) -> list[str]:
    """The prompt with the word of each of VIEWS."""
    return [with_view_word(prompt, view) for view in VIEWS]


def view_index(
    cameras: Cameras, front_deg: float = 45.0, back_deg: float = 45.0, overhead_deg: float = 60.0
) -> Int[Tensor, " b"]:
    """Which of VIEWS each camera sees; `front_deg` and `back_deg` are half the width of these sectors."""
    away = from_front(cameras)
    index = torch.full_like(away, VIEWS.index("side"), dtype=torch.long)
    index[away < front_deg] = VIEWS.index("front")
    index[away > 180.0 - back_deg] = VIEWS.index("back")
    index[cameras.elevation_deg > overhead_deg] = VIEWS.index("overhead")
    return index


def from_front(cameras: Cameras) -> Tensor:
    """Degrees of azimuth between the camera and the front, in [0, 180]."""
    azimuth = cameras.azimuth_deg
    return torch.minimum(azimuth, 360.0 - azimuth)
