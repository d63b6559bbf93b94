"""The parts of a small CycleGAN (arXiv 1703.10593): generators, patch critics, losses and the pool of old images.

>>> forth, back = generator(3), generator(3)
>>> fake = forth(source); cycle_loss(back(fake), source); generator_loss(critic(fake))

:mod:`calib.translate` trains them.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from shared_core.data.sampling import keyed_generator_seed
from shared_core.ops.inputs import check_images, check_tensor
from torch import Tensor, nn
from torch.nn import functional

from calib.calibrator import Calibrator


def generator(channels: int = 3, width: int = 12, blocks: int = 3) -> Calibrator:
    """A calibrator that may move any pixel anywhere (epsilon 1): images in [0, 1] to images in [0, 1].

    The paper's generator starts at random weights; starting at the identity spares a small run the time in which
    cycles learn to copy.
    """
    return Calibrator(channels, epsilon=1.0, width=width, blocks=blocks)


def patch_critic(channels: int = 3, width: int = 32, strided: int = 1) -> nn.Sequential:
    """PatchGAN: a verdict for every patch of 16, 34 or 70 pixels with 1, 2 or 3 strided convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    inputs = width
    for number in range(1, strided + 1):
        outputs, stride = min(2**number, 8) * width, 1 if number == strided else 2
        layers += [nn.Conv2d(inputs, outputs, 4, stride, 1), nn.InstanceNorm2d(outputs), nn.LeakyReLU(0.2)]
        inputs = outputs
    critic = nn.Sequential(*layers, nn.Conv2d(inputs, 1, 4, 1, 1))
    for module in critic:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.02)
    return critic


def critic_loss(real: Float[Tensor, "*_real"], fake: Float[Tensor, "*_fake"]) -> Float[Tensor, ""]:
    """(mean (D(real) - 1)^2 + mean D(fake)^2) / 2: least squares (section 4)."""
    check_tensor("real", real, "...")
    check_tensor("fake", fake, "...")
    return ((_wide(real) - 1).square().mean() + _wide(fake).square().mean()) / 2


def generator_loss(fake: Float[Tensor, "*verdicts"]) -> Float[Tensor, ""]:
    """mean (D(fake) - 1)^2."""
    check_tensor("fake", fake, "...")
    return (_wide(fake) - 1).square().mean()


def cycle_loss(back: Float[Tensor, "*images"], images: Float[Tensor, "*images"]) -> Float[Tensor, ""]:
    """mean |F(G(x)) - x| in the unit of [-1, 1], in which the paper's weights are meant (equation 2)."""
    check_tensor("images", images, "...")
    check_tensor("back", back, "...")
    if back.shape != images.shape:
        raise ValueError(
            f"back has shape {tuple(back.shape)} and images {tuple(images.shape)}; they must be equal"
        )
    return 2 * functional.l1_loss(_wide(back), _wide(images))


class ImagePool:
    """Half of what the critic sees are images made up to many steps ago (section 4): it forgets less.

    An image that comes in while the pool is not full is stored and returned; later ones are, with even odds,
    returned as they are or swapped for a stored one.  Draws are a pure function of (seed, step).
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.images: Tensor | None = None

    def swap(
        self, images: Float[Tensor, "batch channels height width"], step: int
    ) -> Float[Tensor, "batch channels height width"]:
        """As many images as came in, detached."""
        check_images("images", images)
        images = images.detach()
        if self.size == 0:
            return images
        stored = images[:0] if self.images is None else self.images.to(images.device)
        room = self.size - len(stored)
        self.images = torch.cat([stored, images[:room]]) if room else stored.clone()
        given = images.clone()
        generator = torch.Generator().manual_seed(keyed_generator_seed(self.seed, 0, step, 11))
        for place in range(min(room, len(images)), len(images)):
            if torch.rand((), generator=generator) < 0.5:
                at = int(torch.randint(self.size, (), generator=generator))
                given[place] = self.images[at]
                self.images[at] = images[place]
        return given

    def state_dict(self) -> dict[str, Tensor]:
        """The stored images, for the checkpoint."""
        return {} if self.images is None else {"images": self.images}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts the stored images back."""
        self.images = state.get("images")


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
