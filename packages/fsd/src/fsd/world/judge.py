"""A small network that names what a picture of the world shows: kind, colour, and the side of kinds with a front.

It is trained on renders of its own, apart from those that the priors learn from, and its 64 features serve the
metrics of diversity.

    >>> judged = load_judge()(images)                                    # (b, 3, 32, 32) in [0, 1] on grey 0.5
    >>> names(judged)
    [('red', 'car', 'side')]
"""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from fsd.cameras import Cameras
from fsd.inputs import check_tensor
from fsd.priors.view_words import VIEWS, view_index
from fsd.world.objects import FRONTED, KINDS
from fsd.world.pictures import Pictures, draw_pictures
from fsd.world.words import COLOURS

SIZE = 32
WEIGHTS = Path(__file__).with_name("judge.safetensors")
# Seeds of the judge's pictures start here, far from those of the priors.
SEED = 10**12


class Judged(NamedTuple):
    """Logarithms of probabilities, and the features that they come from."""

    kind: Float[Tensor, "b 16"]
    colour: Float[Tensor, "b 8"]
    view: Float[Tensor, "b 4"]
    features: Float[Tensor, "b 64"]


class Judge(nn.Module):
    """Four convolutions, 64 features, three linear heads."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 24, 48, 64, 48), []
        for number, (before, after) in enumerate(pairwise(widths)):
            kernel, stride = (4, 2) if number == 0 else (3, 1 if number == 2 else 2)
            layers += [
                nn.Conv2d(before, after, kernel, stride, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(48 * 16, 64), nn.BatchNorm1d(64), nn.ReLU()
        )
        self.kind, self.colour, self.view = (nn.Linear(64, len(names)) for names in (KINDS, COLOURS, VIEWS))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Judged:
        """`images` in [0, 1]; other sizes are brought to 32."""
        check_tensor("images", images, "b 3 h w", "images of three colours in [0, 1], channels before height")
        if images.shape[-2:] != (SIZE, SIZE):
            images = interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
        features = self.body(images * 2 - 1)
        kind, colour, view = (head(features).log_softmax(1) for head in (self.kind, self.colour, self.view))
        return Judged(kind, colour, view, features)


def load_judge(path: Path = WEIGHTS) -> Judge:
    """The network with the weights that come with the package, for use without gradients.

    Raises RuntimeError where the file holds other weights.
    """
    judge = Judge()
    counters = {name: value for name, value in judge.state_dict().items() if not value.is_floating_point()}
    stored = {name: value.float() for name, value in load_file(path).items()}
    judge.load_state_dict(counters | stored)
    return judge.eval().requires_grad_(False)


def save_judge(judge: Judge, path: Path = WEIGHTS) -> None:
    """In half precision, without the counters of batches."""
    state = {
        name: value.half().contiguous()
        for name, value in judge.state_dict().items()
        if value.is_floating_point()
    }
    save_file(state, path)


def names(judged: Judged) -> list[tuple[str, str, str]]:
    """Colour, kind and view of each picture; the view of a kind without a front says nothing."""
    kinds, colours = list(KINDS), list(COLOURS)
    best = (value.argmax(1).tolist() for value in (judged.colour, judged.kind, judged.view))
    return [(colours[c], kinds[k], VIEWS[v]) for c, k, v in zip(*best, strict=True)]


class Truth(NamedTuple):
    """Numbers of the right answers; -1 for the view of a kind without a front."""

    kind: Int[Tensor, " b"]
    colour: Int[Tensor, " b"]
    view: Int[Tensor, " b"]


def truth(pictures: Pictures) -> Truth:
    """Of pictures with one view each."""
    kinds, colours = list(KINDS), list(COLOURS)
    view = view_index(Cameras(pictures.c2w[:, 0], pictures.fov_deg[:, 0]))
    fronted = torch.tensor([kind in FRONTED for kind in pictures.kinds])
    return Truth(
        torch.tensor([kinds.index(kind) for kind in pictures.kinds]),
        torch.tensor([colours.index(colour) for colour in pictures.colours]),
        torch.where(fronted, view, -1),
    )


def train_judge(pictures: int = 50_000, epochs: int = 5, batch: int = 128, seed: int = 0) -> Judge:
    """Trains a judge from scratch: on one machine a function of its arguments, in two to three minutes of a core.

    Raises ValueError where there is less than a batch of pictures, or no epoch.
    """
    if pictures < batch or epochs < 1:
        raise ValueError(
            f"pictures={pictures} with batch={batch} and epochs={epochs}; give at least one batch and one epoch"
        )
    shown = draw_pictures(pictures, SEED + seed, SIZE)
    answers = truth(shown)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge()
    steps = epochs * (pictures // batch)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, steps, pct_start=0.15)
    for _ in range(epochs):
        for chosen in torch.randperm(pictures, generator=generator)[: pictures // batch * batch].split(batch):
            judged = judge(_disturbed(shown.images[chosen, 0], generator))
            loss = sum(
                (
                    cross_entropy(logs, right[chosen], ignore_index=-1)
                    for logs, right in zip(judged[:3], answers, strict=True)
                ),
                torch.zeros(()),
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(judge: Judge, pictures: Pictures) -> tuple[float, float, float]:
    """Shares of right kinds, colours, and views (of kinds with a front), of pictures with one view each."""
    judged = judge(pictures.images[:, 0].float() / 255)
    shares = []
    for logs, right in zip(judged[:3], truth(pictures), strict=True):
        asked = right >= 0
        shares.append(float((logs.argmax(1) == right)[asked].float().mean()))
    return shares[0], shares[1], shares[2]


def _disturbed(images: UInt8[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Half of them mirrored, and with a little noise, as what it will judge is not as clean as renders are."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    strength = 0.06 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return torch.where(mirrored, images.flip(3), images).float() / 255 + strength * torch.randn(
        images.shape, generator=generator
    )
