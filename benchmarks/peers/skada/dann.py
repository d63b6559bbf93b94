"""skada's DANN, run by its environment: see benchmarks/peers/peer.py.

The net of `skada.deep.DANN` with its defaults (reversal weight 1, its own domain classifier), its data set and balanced
loader, Adam; a step is skorch's `train_step`, the callbacks of an epoch are left out.  One thing is mended: the domain
classifier of skada 0.6.0 ends with a softmax over its one output, which is 1 for every image, so that nothing is
adapted.  Here it ends with a sigmoid, as its loss (binary cross-entropy) wants.
"""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[3]))

from skada.deep import DANN  # pyright: ignore[reportMissingImports]
from skada.deep.base import DeepDADataset  # pyright: ignore[reportMissingImports]
from skada.deep.modules import DomainClassifier  # pyright: ignore[reportMissingImports]

from benchmarks.peers.peer import compete, prepared


class OnBytes(nn.Module):
    """The net on bytes: all images as floats at once would be a gigabyte."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(prepared(images))


def dann(
    net: nn.Sequential, images: dict[str, Tensor], labels: Tensor, options: dict[str, Any]
) -> Iterator[None]:
    """One step of the game at each turn, without end but for `options["steps"]`."""
    critic = DomainClassifier(num_features=net[-1].in_features)
    critic.classifier[-1] = nn.Sigmoid()
    game = DANN(
        OnBytes(net),
        layer_name=f"net.{len(net) - 2}",
        domain_classifier=critic,
        optimizer=torch.optim.Adam,
        lr=options["learning_rate"],
        batch_size=options["batch_size"],
        train_split=None,
    )
    game.initialize()
    source, target = (images[name].numpy() for name in ("source", "target"))
    data = DeepDADataset(
        np.concatenate([source, target]),
        np.concatenate([labels.numpy(), np.full(len(target), -1)]),
        np.concatenate([np.full(len(source), 1), np.full(len(target), -2)]),
    )
    loader = game.get_iterator(data, training=True)
    for batch in islice(epochs(loader), options["steps"]):
        game.train_step(batch)
        yield


def epochs(loader: Any) -> Iterator[Any]:
    """The loader's batches, over and over."""
    while True:
        yield from loader


if __name__ == "__main__":
    compete(dann)
