"""Train a classifier on labelled images of one domain: where a run is given none, and as the bound on the target."""

from collections.abc import Sized
from typing import cast

import torch
from shared_core.data.loader import KeyedDataset, make_loader
from shared_core.data.sampling import Batches, shuffled_plan
from shared_core.run.guard import FiniteGuard
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from calib.domains import as_floats


def train_classifier(
    net: nn.Module,
    dataset: Dataset,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    device: torch.device,
    workers: int = 0,
) -> nn.Module:
    """Train `net` in place on (image, label) items by Adam under one cycle; without augmentation, as in the paper.

    Images are uint8 or floats in [0, 1].  The order is a pure function of `seed`; the net is left in eval mode.

    Raises:
        ValueError: fewer images than one batch.
        NonFiniteError: the loss is not finite.
    """
    size = len(cast(Sized, dataset))
    batches = Batches(shuffled_plan(size, min(batch_size, size), seed))
    loader = make_loader(KeyedDataset(dataset, seed), batches, workers)
    steps = max(1, round(epochs * len(batches)))
    optimizer = torch.optim.Adam(net.parameters(), learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1)
    guard = FiniteGuard("error")
    step = 0
    net.to(device).train()
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        tqdm(total=steps, desc="classifier", leave=False, disable=None) as bar,
    ):
        torch.manual_seed(seed)
        while step < steps:
            for images, labels in loader:
                logits = net(as_floats(images.to(device)))
                # While they train, GoogLeNet and Inception give auxiliary logits after their own.
                logits = logits[0] if isinstance(logits, tuple) else logits
                loss = functional.cross_entropy(logits, labels.to(device))
                guard.accepts({"cross_entropy": loss}, step + 1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                step += 1
                bar.update()
                if step == steps:
                    break
    return net.eval()
