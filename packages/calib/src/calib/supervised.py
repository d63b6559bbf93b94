"""Train a classifier on labelled images of one domain: where a run is given none, and as the bound on the target."""

from collections.abc import Sized
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import torch
from shared_core.data.loader import KeyedDataset, make_loader
from shared_core.data.sampling import Batches, shuffled_plan
from shared_core.run import checkpoint
from shared_core.run.guard import FiniteGuard
from shared_core.run.stop import StopFlag
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
    checkpoints: Path | None = None,
    checkpoint_every: int = 500,
) -> nn.Module:
    """Train `net` in place on (image, label) items by Adam under one cycle; without augmentation, as in the paper.

    Images are uint8 or floats in [0, 1].  The order is a pure function of `seed`; the net is left in eval mode.
    With a folder for `checkpoints` a training that was stopped goes on from its newest one, bit for bit.

    Raises:
        ValueError: fewer images than one batch.
        NonFiniteError: the loss is not finite.
        SystemExit: 130 or 143, after saving, when the process was told to stop and `checkpoints` is given.
    """
    size = len(cast(Sized, dataset))
    batches = Batches(shuffled_plan(size, min(batch_size, size), seed))
    loader = make_loader(KeyedDataset(dataset, seed), batches, workers)
    steps = max(1, round(epochs * len(batches)))
    net.to(device).train()
    optimizer = torch.optim.Adam(net.parameters(), learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1)
    guard = FiniteGuard("error")
    saved = {"net": net, "optimizer": optimizer, "schedule": schedule}
    step = 0
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        tqdm(total=steps, desc="classifier", leave=False, disable=None) as bar,
        StopFlag() if checkpoints else nullcontext() as stop,
    ):
        torch.manual_seed(seed)
        found = checkpoint.load_latest(checkpoints) if checkpoints is not None else None
        if found is not None:
            checkpoint.restore(found, saved, ("rng",))
            checkpoint.set_rng_state(found.state["rng"])
            step = found.step
            batches.seek(step // len(batches), step % len(batches))
            bar.update(step)
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
                stopped = stop is not None and stop.agreed()
                if checkpoints is not None and (stopped or step % checkpoint_every == 0):
                    checkpoint.save(checkpoints, step, saved, {"rng": checkpoint.rng_state()})
                if stop is not None and stopped:
                    raise SystemExit(stop.exit_code)
                if step == steps:
                    break
    return net.eval()
