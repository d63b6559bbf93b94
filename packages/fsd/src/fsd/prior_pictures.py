"""Pictures of the procedural world for training, drawn in chunks that are kept in a folder.

A chunk is a function of seed and number alone, so runs that share the folder see the same pictures.

    >>> album = Album("pictures", seed=0, size=32, objects=1024, views=4)
    >>> chunk = album[3]                                                 # 1,024 objects, four views each
"""

import io
import os
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from shared_core.run.atomic import write_bytes
from torch import Tensor

from fsd.cameras import Cameras
from fsd.priors.multiview import camera_numbers
from fsd.world.pictures import draw_pictures


class Chunk(NamedTuple):
    """Pictures of n objects, the 16 numbers of each view's camera, and each view's caption."""

    images: UInt8[Tensor, "n views 3 h w"]
    cameras: Float[Tensor, "n views 16"]
    captions: list[list[str]]


class Album:
    """Chunks by number; `folder` may be shared by runs of the same seed and sizes, at the same time too.

    Of several views the captions name none: the network is told the cameras.
    """

    def __init__(
        self, folder: str | os.PathLike[str], seed: int, size: int, objects: int, views: int
    ) -> None:
        self.folder, self.seed, self.size, self.objects, self.views = (
            Path(os.path.expanduser(folder)),
            seed,
            size,
            objects,
            views,
        )

    def __getitem__(self, number: int) -> Chunk:
        """Drawn where it is not there yet.

        Raises ValueError where the chunk was drawn by another version of the world.
        """
        path = self.folder / (f"{self.objects}x{self.views}-size{self.size}-seed{self.seed}-{number:04d}.npz")
        if not path.is_file():
            self._draw(number, path)
        with np.load(path) as found:
            images, cameras = (torch.from_numpy(found[name]) for name in ("images", "cameras"))
            captions = found["captions"].tolist()
        # The first object is the same whatever the number of objects, up to rounding on another machine.
        again = draw_pictures(1, self._seed_of(number), self.size, self.views).images[0]
        if (again.float() - images[0].float()).abs().mean() > 1:
            raise ValueError(
                f"{path} holds pictures that another version of fsd drew; delete {self.folder}, or name another folder "
                "with --pictures"
            )
        if self.views > 1:
            captions = [[text.partition(",")[0] for text in of_views] for of_views in captions]
        rng = Random(f"{self.seed}-{number}")
        return Chunk(images, cameras, [_with_article(of_views, rng) for of_views in captions])

    def _seed_of(self, number: int) -> int:
        # No chunk of one seed is a chunk of another.
        return 100_000 * self.seed + number

    def _draw(self, number: int, path: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        drawn = draw_pictures(self.objects, self._seed_of(number), self.size, self.views)
        cameras = camera_numbers(Cameras(drawn.c2w.flatten(0, 1), drawn.fov_deg.flatten()))
        packed = io.BytesIO()
        np.savez_compressed(
            packed,
            images=drawn.images.numpy(),
            cameras=cameras.unflatten(0, (-1, self.views)).numpy(),
            captions=np.array(drawn.captions),
        )
        write_bytes(path, packed.getvalue())


def _with_article(captions: list[str], rng: Random) -> list[str]:
    """Another article now and then, alike in all views, so that prompts may say "the red car" too."""
    other = rng.choice(("the", "any"))
    if rng.random() > 0.15:
        return captions
    return [" ".join([other, *text.split()[1:]]) if text else "" for text in captions]
