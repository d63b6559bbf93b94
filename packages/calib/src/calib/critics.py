"""The critics that a calibrator plays against: which of four groups does this come from?

Groups, in the order of their class number (the first is what the calibrator tries to look like):
0 source, 1 target, 2 calibrated source, 3 calibrated target.

:class:`PixelCritic` sees shuffled patches of images, :class:`FeatureCritic` the classifier's softmax, logits or a
layer, :class:`PixelwiseFeatureCritic` a segmentation net's scores, pixel by pixel (arXiv 1911.12796, section 3).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from shared_core.data.sampling import keyed_generator_seed
from shared_core.ops.inputs import check_images, check_tensor
from torch import Tensor, nn

GROUPS = ("source", "target", "calibrated source", "calibrated target")


class Patch(NamedTuple):
    """Where patches are cut and how their pixels are shuffled: the same for the four groups of a step."""

    corners: Int64[Tensor, "patches 2"]
    order: Int64[Tensor, " pixels"]


def draw_patch(
    height: int, width: int, side: int, seed: int, step: int, patches: int = 1, top_rows_only: bool = False
) -> Patch:
    """Corners on the grid of non-overlapping patches and one order of the `side`^2 pixels.

    A pure function of (seed, step): the same on every process and after a resume.  `top_rows_only` is a fault of
    the released code, which draws from the top 8 rows of pixels only.

    Raises:
        ValueError: the image is smaller than a patch.
    """
    if side < 1 or patches < 1:
        raise ValueError(f"side={side}, patches={patches}; both must be at least 1")
    if min(height, width) < side:
        raise ValueError(
            f"the pixel critic's patch is {side} pixels, the image {height}x{width}: choose a smaller patch"
        )
    generator = torch.Generator().manual_seed(keyed_generator_seed(seed, 0, step, 7))
    rows = max(8 // side, 1) if top_rows_only else height // side
    row = torch.randint(rows, (patches,), generator=generator) * side
    column = torch.randint(width // side, (patches,), generator=generator) * side
    return Patch(torch.stack([row, column], 1), torch.randperm(side * side, generator=generator))


class PixelCritic(nn.Module):
    """A shuffled patch through Linear(128), ReLU, Linear(4): 6,788 parameters at patch 4, 25,220 at patch 8.

    Shuffling leaves it the values of a patch and hides their arrangement, the paper's guard against a critic
    that learns the images by heart.
    """

    def __init__(self, channels: int, patch: int = 4, hidden: int = 128) -> None:
        super().__init__()
        self.channels, self.patch = channels, patch
        self.net = nn.Sequential(
            nn.Linear(channels * patch**2, hidden), nn.ReLU(True), nn.Linear(hidden, len(GROUPS))
        )

    def forward(
        self, images: Float[Tensor, "batch channels height width"], patch: Patch
    ) -> Float[Tensor, "rows 4"]:
        """Group logits, one row per image and patch."""
        check_images("images", images, self.channels)
        if not isinstance(patch, Patch) or patch.order.numel() != self.patch**2:
            raise ValueError(
                f"patch is not one of {self.patch} by {self.patch} pixels: draw it with "
                f"calib.critics.draw_patch(height, width, side={self.patch}, ...)"
            )
        cut = [
            images[:, :, row : row + self.patch, column : column + self.patch]
            for row, column in patch.corners.tolist()
        ]
        pixels = torch.cat(cut).flatten(2)[:, :, patch.order.to(images.device)]
        return self.net(_like(self.net, pixels.flatten(1)))


class FeatureCritic(nn.Module):
    """Feature vectors through Linear(1000), Linear(500), Dropout, Linear(4): 513,504 parameters on 10 classes."""

    def __init__(self, features: int, hidden: tuple[int, int] = (1000, 500), dropout: float = 0.5) -> None:
        super().__init__()
        self.features = features
        self.net = nn.Sequential(
            nn.Linear(features, hidden[0]),
            nn.ReLU(True),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(True),
            nn.Dropout(dropout),
            nn.Linear(hidden[1], len(GROUPS)),
        )

    def forward(self, features: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch 4"]:
        """Group logits, one row per image; features of more dimensions are flattened."""
        wanted = self.features
        check_tensor("features", features, "batch ...")
        if features[:1].numel() != wanted * len(features[:1]):
            raise ValueError(
                f"features have shape {tuple(features.shape)}; this critic was built for {wanted} numbers an image: "
                "FeatureCritic(features=...)"
            )
        return self.net(_like(self.net, features.flatten(1)))


class PixelwiseFeatureCritic(nn.Module):
    """Score maps through 1x1 convolutions of 256, 128 and 4 channels: a verdict for every pixel."""

    def __init__(self, classes: int, hidden: tuple[int, int] = (256, 128), dropout: float = 0.5) -> None:
        super().__init__()
        self.classes = classes
        self.net = nn.Sequential(
            nn.Conv2d(classes, hidden[0], 1),
            nn.Dropout2d(dropout),
            nn.ReLU(True),
            nn.Conv2d(hidden[0], hidden[1], 1),
            nn.Dropout2d(dropout),
            nn.ReLU(True),
            nn.Conv2d(hidden[1], len(GROUPS), 1),
        )

    def forward(
        self, scores: Float[Tensor, "batch classes height width"]
    ) -> Float[Tensor, "batch 4 height width"]:
        """Group logits of every pixel."""
        check_tensor("scores", scores, "batch classes height width", classes=self.classes)
        return self.net(_like(self.net, scores))


def _like(net: nn.Module, x: Tensor) -> Tensor:
    """In the type of the net, which is its own: images may come in another."""
    return x.to(next(net.parameters()).dtype)
