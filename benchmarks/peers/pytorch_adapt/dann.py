"""pytorch-adapt's DANN, run by its environment: see benchmarks/peers/peer.py.

DANNHook with its defaults (reversal weight 1) and pytorch-adapt's own discriminator, Adam.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[3]))

from pytorch_adapt.hooks import DANNHook  # pyright: ignore[reportMissingImports]
from pytorch_adapt.models import Discriminator  # pyright: ignore[reportMissingImports]

from benchmarks.peers.peer import compete, prepared


def dann(
    net: nn.Sequential, images: dict[str, Tensor], labels: Tensor, options: dict[str, Any]
) -> Iterator[None]:
    """One step of the game at each turn, without end but for `options["steps"]`."""
    encoder, head = net[:-1], net[-1]
    critic = Discriminator(in_size=head.in_features, h=options["domain_hidden"])
    models = {"G": encoder, "C": head, "D": critic}
    optimizers = [torch.optim.Adam(m.parameters(), options["learning_rate"]) for m in models.values()]
    hook = DANNHook(optimizers)
    size = options["batch_size"]
    domains = {"src_domain": torch.zeros(size), "target_domain": torch.ones(size)}
    for _ in range(options["steps"] or sys.maxsize):
        at, there = (torch.randint(len(images[name]), (size,)) for name in ("source", "target"))
        batch = {
            "src_imgs": prepared(images["source"][at]),
            "target_imgs": prepared(images["target"][there]),
            "src_labels": labels[at],
        }
        hook({**models, **batch, **domains})
        yield


if __name__ == "__main__":
    compete(dann)
