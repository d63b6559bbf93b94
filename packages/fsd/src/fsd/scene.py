"""A scene: a field, what stands behind it, and how both are rendered.

>>> scene = grid_scene(resolution=32)
>>> view = scene.render(cameras.turntable(4), size=64)       # view.image, view.opacity, view.depth
>>> scene.save("scene.safetensors"); scene = load_scene("scene.safetensors")
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from shared_core.run.atomic import write_bytes, write_json
from torch import Tensor, nn

from fsd.background import BackgroundMap, ConstantBackground, LearnedBackground
from fsd.cameras import Cameras, rays
from fsd.fields import DenseGrid, HashGrid
from fsd.inputs import check_cameras, check_tensor
from fsd.marching import march_rays, obstacle
from fsd.occupancy import OccupancyGrid
from fsd.render import Rays, render_rays
from fsd.shading import draw_shading, light_near, shaded

BACKGROUNDS: dict[str, Callable[..., nn.Module]] = {
    "constant": ConstantBackground,
    "learned": LearnedBackground,
    "map": BackgroundMap,
}


class Render(NamedTuple):
    """Views of a scene."""

    image: Float[Tensor, "b 3 h w"]  # in [0, 1], composited on the background
    opacity: Float[Tensor, "b 1 h w"]
    depth: Float[Tensor, "b 1 h w"]  # expected distance along the ray, divided by opacity; 0 where empty
    normal: Float[Tensor, "b 3 h w"] | None  # world axes, unit length times opacity


class Scene(nn.Module):
    """A field of density and colour in front of a background.

    samples, fine_samples, bounds, chunk: see `fsd.render.render_rays`.
    normals: how normals are found where they are asked for, see `fsd.normals`.
    occupancy: cells a side of the grid that spares questions to the field; 0 for none.
    marching: sample along the rays with nerfacc's CUDA kernels where there are any, see `fsd.marching`; else dense
        samples are taken, and a line on stderr says so.
    shading: light the object in some training steps, more of them as the run goes on, see `fsd.shading`.
    """

    field: Any  # a Field that is an nn.Module, which no type can say
    occupancy: OccupancyGrid | None

    def __init__(
        self,
        field: nn.Module,
        background: nn.Module,
        samples: int = 64,
        fine_samples: int = 0,
        bounds: str = "box",
        normals: str = "finite",
        occupancy: int = 0,
        shading: bool = False,
        marching: bool = False,
        chunk: int = 2**19,
    ) -> None:
        super().__init__()
        if marching and not occupancy:
            raise ValueError(
                "marching goes through the cells of an occupancy grid; give occupancy=32 or so with it"
            )
        self.field, self.background = field, background
        self.occupancy = OccupancyGrid(occupancy, self.field.radius) if occupancy else None
        self.samples, self.fine_samples, self.bounds = samples, fine_samples, bounds
        self.normals, self.shading, self.chunk = normals, shading, chunk
        # None: not known before the first rays show the device.
        self.marching: bool | None = None if marching else False
        # What `save` writes beside the weights; the builder functions fill it in.
        self.arguments: dict[str, Any] = {}

    def render(
        self,
        cameras: Cameras,
        size: int,
        generator: torch.Generator | None = None,
        background: Float[Tensor, "3"] | None = None,
        normals: bool = False,
        progress: float = 1.0,
    ) -> Render:
        """Square views of `size` pixels a side.

        generator: places the samples along the rays, and the light where there is shading, at random, as training
            wants it; None gives the plain picture.
        background: a colour to composite on instead of the scene's own.
        progress: how far training is, from 0 to 1, for the shading.

        Raises ValueError for a size below one.
        """
        if size < 1:
            raise ValueError(f"size={size}; give at least one pixel")
        check_cameras(cameras)
        if background is not None:
            check_tensor("background", background, "3", "one colour: red, green and blue in [0, 1]")
        kind = "albedo"
        if self.shading and generator is not None:
            kind = draw_shading(progress, generator)
        origins, directions = (tensor.reshape(-1, 3) for tensor in rays(cameras, size, size))
        found = self._found(
            origins, directions, generator, self.normals if normals or kind != "albedo" else None
        )
        color = found.color
        if kind != "albedo" and generator is not None and found.normal is not None:
            light = light_near(cameras.position, generator).repeat_interleave(size * size, 0)
            to_light = F.normalize(light - origins - directions * found.depth.detach()[:, None], dim=1)
            color = shaded(kind, color, found.opacity, found.normal, to_light)
        behind = self.background(directions) if background is None else background.to(origins)
        color = color + (1 - found.opacity[:, None]) * behind

        def images(values: Tensor) -> Tensor:
            return values.view(len(cameras), size, size, -1).permute(0, 3, 1, 2)

        normal = images(found.normal) if normals and found.normal is not None else None
        return Render(images(color), images(found.opacity), images(found.depth), normal)

    def _found(
        self, origins: Tensor, directions: Tensor, generator: torch.Generator | None, normals: str | None
    ) -> Rays:
        """What comes back along the rays, in the way that the device allows."""
        if self.marching is None:
            reason = obstacle(origins)
            self.marching = reason is None
            if reason is not None:
                print(f"{reason}; taking dense samples instead", file=sys.stderr)
        if self.marching and self.occupancy is not None:
            step = 2 * self.field.radius / self.samples
            return march_rays(self.field, origins, directions, self.occupancy, step, generator, normals)
        return render_rays(
            self.field, origins, directions, self.samples, self.fine_samples, self.bounds, generator,
            self.occupancy, normals, self.chunk,
        )  # fmt: skip

    def update_occupancy(self, step: int) -> None:
        """To be called in each training step; does nothing without an occupancy grid."""
        if self.occupancy is not None:
            self.occupancy.update(self.field, step, 2 * self.field.radius / self.samples)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes weights to `path` (.safetensors) and the builder's arguments to a .json beside it.

        Raises ValueError for another ending, and for a scene that no builder function of this module made.
        """
        path = _weights_path(path)
        if not self.arguments:
            raise ValueError("this scene was put together by hand; save its state_dict() yourself")
        write_bytes(path, save({name: value.contiguous() for name, value in self.state_dict().items()}))
        write_json(path.with_suffix(".json"), self.arguments)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes weights, arguments and a card into `folder`, as the Hugging Face Hub has them: see `fsd.hub`."""
        from fsd.hub import HubScene

        HubScene.of(self).save_pretrained(Path(os.path.expanduser(folder)))

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:
        """Publishes it on the Hugging Face Hub as `owner/name`; the commit's address.

        `settings` go to `huggingface_hub.ModelHubMixin.push_to_hub`: private, token, branch, commit_message ...
        """
        from fsd.hub import HubScene

        return HubScene.of(self).push_to_hub(repo_id, **settings)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **download: Any) -> "Scene":
        """A folder of `save_pretrained`, or a repository `owner/name`: see `fsd.hub.HubScene.from_pretrained`."""
        from fsd.hub import HubScene

        return HubScene.from_pretrained(source, **download)

    def export_mesh(
        self, path: str | os.PathLike[str], resolution: int = 96, threshold: float | None = None
    ) -> None:
        """Writes a mesh with colours to a .glb, .obj or .ply: see `fsd.mesh`."""
        from fsd.mesh import extract_mesh, write_mesh

        write_mesh(extract_mesh(self, resolution, threshold), path)


def grid_scene(
    resolution: int = 32,
    radius: float = 1.0,
    blob_scale: float = 10.0,
    blob_width: float = 0.5,
    offset: float = 0.0,
    background: str = "constant",
    color: tuple[float, float, float] = (0.5, 0.5, 0.5),
    **rendering: Any,
) -> Scene:
    """A `DenseGrid` before a background "constant", "learned" or "map"; `rendering` as in `Scene`."""
    arguments = {"builder": "grid", **_plain(locals())}
    field = DenseGrid(resolution, radius, blob_scale, blob_width, offset)
    return _built(field, background, color, rendering, arguments)


def hash_scene(
    radius: float = 1.0,
    levels: int = 16,
    features: int = 2,
    log2_size: int = 19,
    base: int = 16,
    finest: int = 2048,
    width: int = 64,
    blob_scale: float = 10.0,
    blob_width: float = 0.5,
    offset: float = 0.0,
    background: str = "constant",
    color: tuple[float, float, float] = (0.5, 0.5, 0.5),
    **rendering: Any,
) -> Scene:
    """A `HashGrid` before a background "constant", "learned" or "map"; `rendering` as in `Scene`."""
    arguments = {"builder": "hash", **_plain(locals())}
    field = HashGrid(radius, levels, features, log2_size, base, finest, width, blob_scale, blob_width, offset)
    return _built(field, background, color, rendering, arguments)


def load_scene(path: str | os.PathLike[str]) -> Scene:
    """What `Scene.save` wrote.  Files hold numbers and text, no code.

    Raises FileNotFoundError if one of the two files is absent, ValueError if they hold no scene.
    """
    path = _weights_path(path)
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is absent; a saved scene is a .safetensors and a .json beside it"
            )
    try:
        arguments = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        builder = BUILDERS[arguments.pop("builder")]
        scene = builder(**{key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()})
        scene.load_state_dict(load_file(path))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} holds no scene that this version knows ({error})") from error
    return scene


BUILDERS: dict[str, Callable[..., Scene]] = {"grid": grid_scene, "hash": hash_scene}


def _built(
    field: nn.Module, background: str, color: tuple[float, float, float], rendering: Any, arguments: Any
) -> Scene:
    if background not in BACKGROUNDS:
        raise ValueError(f"background={background!r}; it is one of {', '.join(BACKGROUNDS)}")
    scene = Scene(field, BACKGROUNDS[background](color), **rendering)
    scene.arguments = arguments
    return scene


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """A builder's arguments as one flat dict."""
    rendering = arguments.pop("rendering")
    return {**arguments, **rendering}


def _weights_path(path: str | os.PathLike[str]) -> Path:
    path = Path(os.path.expanduser(path))
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: a scene is saved under a name that ends in .safetensors")
    return path
