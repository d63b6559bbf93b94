"""Train a classifier on labelled images of one domain: where a run is given none, and as the bound on the target."""

from collections.abc import Sized
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import torch
from shared_core.data.loader import KeyedDataset, make_loader, test_loader
from shared_core.data.sampling import Batches, shuffled_plan
from shared_core.ops.inputs import check_dataset
from shared_core.ops.outputs import Which
from shared_core.run import checkpoint
from shared_core.run.guard import FiniteGuard
from shared_core.run.stop import StopFlag
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from calib.answers import Reading, settled
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
    output: Which = None,
    outputs: str = "auto",
) -> nn.Module:
    """Train `net` in place on (image, label) items by Adam under one cycle; without augmentation, as in the paper.

    Images are uint8 or floats in [0, 1].  The order is a pure function of `seed`; the net is left in eval mode.
    With a folder for `checkpoints` a training that was stopped goes on from its newest one, bit for bit.
    `output` and `outputs` say which part of the net's answer is the logits, see :func:`calib.attach`; while it trains
    a net may answer with a tuple that begins with them.

    Raises:
        ValueError: fewer images than one batch.
        NonFiniteError: the loss is not finite.
        SystemExit: 130 or 143, after saving, when the process was told to stop and `checkpoints` is given.
    """
    check_dataset("dataset", dataset)
    if not isinstance(net, nn.Module):
        raise TypeError(f"net is a {type(net).__name__}; give an nn.Module")
    if not epochs > 0 or batch_size < 1 or not learning_rate > 0 or not weight_decay >= 0:
        raise ValueError(
            f"epochs={epochs}, batch_size={batch_size}, learning_rate={learning_rate}, "
            f"weight_decay={weight_decay}; give numbers above 0, weight_decay from 0"
        )
    size = len(cast(Sized, dataset))
    batches = Batches(shuffled_plan(size, min(batch_size, size), seed))
    loader = make_loader(KeyedDataset(dataset, seed), batches, workers)
    steps = max(1, round(epochs * len(batches)))
    read = reading_of(net.to(device), dataset, output, outputs)
    net.train()
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
                # GoogLeNet and Inception give auxiliary logits beside their own while they train.
                logits = read.training(net(as_floats(images.to(device))))
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


def reading_of(net: nn.Module, dataset: Dataset, output: Which = None, outputs: str = "auto") -> Reading:
    """How logits are read out of the answers of `net`, decided on its answers in eval mode, in which it is left.

    Raises ValueError where `output` or `outputs` has to be said.
    """
    net.eval()
    if outputs != "auto":
        return Reading(output, outputs)
    images = next(iter(test_loader(dataset, 2)))[0]
    device = next((p.device for p in net.parameters()), images.device)
    return Reading(output, settled(net, as_floats(images.to(device)), output))
