"""Light on the object, so that its shape shows where its colours alone would hide it (DreamFusion, section 3.1).

Everything is done on what the rays brought back, not at each sample: the mean normal of a pixel is lit once.

    >>> kind = draw_shading(progress, generator)
    >>> color = shaded(kind, rays.color, rays.opacity, rays.normal, to_light)
"""

from hashlib import sha256

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fsd.inputs import check_tensor

KINDS = ("albedo", "lambertian", "textureless")


def shaded(
    kind: str,
    color: Float[Tensor, "n 3"],
    opacity: Float[Tensor, " n"],
    normal: Float[Tensor, "n 3"],
    to_light: Float[Tensor, "n 3"],
    ambient: float = 0.8,
    diffuse: float = 0.2,
) -> Float[Tensor, "n 3"]:
    """Colour times ambient + diffuse max(0, normal · light); "textureless" takes white for the colour.

    `color` and `normal` are those of `fsd.render.Rays`: their length goes with the opacity, and so does the result.
    `to_light` are unit directions from the surface to the light.  Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"shading={kind!r}; it is one of {', '.join(KINDS)}")
    check_tensor("color", color, "n 3")
    check_tensor("opacity", opacity, "n", "one number per ray", n=len(color))
    check_tensor("normal", normal, "n 3", "one vector per ray", n=len(color))
    check_tensor("to_light", to_light, "n 3", "one vector per ray", n=len(color))
    if kind == "albedo":
        return color
    facing = (normal * to_light).sum(1) / opacity.clamp_min(1e-6)
    light = ambient + diffuse * facing.clamp(0, 1)
    surface = color if kind == "lambertian" else opacity[:, None].expand(-1, 3)
    return surface * light[:, None]


def draw_shading(
    progress: float, generator: torch.Generator, start: float = 0.2, textureless: float = 0.25
) -> str:
    """Which kind a training step takes: "albedo" until `start` of the run, then more and more light.

    The share of lit steps grows linearly from `start` to the end, where all are lit; of these, `textureless` are
    without colours.  Draws once at every step, so that generators stay in step whatever comes out.
    """
    drawn = _uniform(generator)
    lit = max(0.0, (progress - start) / (1 - start)) if start < 1 else 0.0
    if drawn >= lit:
        return "albedo"
    return "textureless" if drawn < lit * textureless else "lambertian"


def _uniform(generator: torch.Generator) -> float:
    """A number in [0, 1).  A generator on a GPU gives it from its state, which the CPU knows: nothing waits."""
    if generator.device.type == "cpu":
        return float(torch.rand((), generator=generator))
    drawn = from_state(generator.get_state())
    torch.rand((), generator=generator, device=generator.device)  # the state goes on
    return drawn


def from_state(state: UInt8[Tensor, " bytes"]) -> float:
    """A number in [0, 1) that depends on all bytes of a generator's state."""
    seed = int.from_bytes(sha256(state.numpy().tobytes()).digest()[:8], "little")
    return float(torch.rand((), generator=torch.Generator().manual_seed(seed)))


def light_near(
    positions: Float[Tensor, "b 3"], generator: torch.Generator, spread: float = 0.5
) -> Float[Tensor, "b 3"]:
    """Places of point lights, one near each camera: `spread` of the camera's distance away from it on average."""
    check_tensor("positions", positions, "b 3", "one place per camera: cameras.position")
    distance = positions.norm(dim=1, keepdim=True)
    offset = torch.randn(positions.shape, generator=generator, device=generator.device).to(positions)
    return positions + spread * distance * offset / 3**0.5
