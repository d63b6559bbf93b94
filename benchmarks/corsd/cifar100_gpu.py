"""CIFAR-100 on a card, in as many minutes as there are: cross-entropy, its best control, and CORSD's second version.

    python benchmarks/corsd/cifar100_gpu.py --minutes 12       # again: goes on, then adds the next seed

ResNet-18 of width 64, batches of 512; all images lie on the device; bf16, channels last, compiled.  The first call
times an epoch of each method and chooses the number of epochs, one for all methods, with which all of them fit into
its minutes.  Later calls go on from the newest checkpoint; when a seed is done they begin the next.  The result,
runs/bench/corsd_gpu/result.json, holds the settings and a line per finished training: accuracy on the test images,
last epoch.  Images per second and peak memory are those of training alone.

--data is an npz with x_train, y_train, x_test, y_test (bytes, channels last); left out, the 20,000 training images
of the project's shared folder.  On a CPU, `--images 600 --epochs 1 --width 8` shows that it runs.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from corsd import RelationalDistiller, RelationalWeights
from corsd.baselines import CrossEntropy
from corsd.mixing import MixedCrossEntropy
from corsd.nets import small_resnet
from shared_core.data.augment import crop_flip, normalize, to_float
from shared_core.run import checkpoint
from shared_core.run.atomic import read_json, write_json
from shared_core.run.environment import describe
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "cifar100.npz"
OUT = ROOT / "runs" / "bench" / "corsd_gpu"
MEAN, STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)
SHARE_FOR_TRAINING = 0.8  # of the minutes: compiling, timing and the test set take the rest


class Recipe(NamedTuple):
    """A method around a net for K classes and a seed, with the peak rate and the decay that it likes."""

    build: Callable[[nn.Module, int, int], nn.Module]
    rate: float
    decay: float


RECIPES = {
    "cross-entropy": Recipe(lambda net, classes, seed: CrossEntropy(net, classes), 0.4, 2e-3),
    "mixup": Recipe(lambda net, classes, seed: MixedCrossEntropy(net, classes, seed=seed), 0.4, 1e-3),
    "corsd v2": Recipe(
        lambda net, classes, seed: RelationalDistiller(
            net, num_classes=classes, example=EXAMPLE, weights=RelationalWeights(), seed=seed
        ),
        0.4,
        1e-3,
    ),
}
EXAMPLE = torch.zeros(2, 3, 32, 32)


class Images(NamedTuple):
    """A split on the device: bytes and labels."""

    x: Tensor
    y: Tensor


class Paused(Exception):
    """The minutes of this call are over; a checkpoint is written."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--minutes", type=float, default=12, help="of this call")
    parser.add_argument("--methods", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=3, help="stop after so many")
    parser.add_argument("--epochs", type=int, help="instead of as many as fit")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--images", type=int, help="train on the first n only")
    given = parser.parse_args(arguments)
    end = time.monotonic() + 60 * given.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, test, classes = load(given.data, given.images, device)
    found = opened(given, train, classes, device)
    done = {(line["method"], line["seed"]) for line in found["trainings"]}
    try:
        for seed in range(given.seeds):
            for name in (name for name in found["settings"]["methods"] if (name, seed) not in done):
                line = trained(name, seed, found["settings"], train, test, classes, given.out, end)
                found["trainings"].append(line)
                write_json(given.out / "result.json", found)
                print(
                    f"{name}, seed {seed}: {line['accuracy']:.2f} % (train {line['train_accuracy']:.1f} %), "
                    f"{line['images_per_second']:.0f} images/s",
                    flush=True,
                )
    except Paused as paused:
        print(f"{paused}; call again to go on")
    return 0


def load(path: Path, first: int | None, device: torch.device) -> tuple[Images, Images, int]:
    """Training and test images on the device, and the number of classes."""
    if not path.exists():
        raise SystemExit(f"there is no {path}; give --data, an npz with x_train, y_train, x_test, y_test")
    data = np.load(path)
    splits = []
    for split, count in (("train", first), ("test", None)):
        x = torch.from_numpy(data[f"x_{split}"][:count]).permute(0, 3, 1, 2).contiguous()
        splits.append(Images(x.to(device), torch.from_numpy(data[f"y_{split}"][:count]).long().to(device)))
    return *splits, int(data["y_train"].max()) + 1


def opened(given: argparse.Namespace, train: Images, classes: int, device: torch.device) -> dict[str, Any]:
    """What earlier calls left, or a new record whose number of epochs fits into the minutes."""
    path = given.out / "result.json"
    if path.exists():
        return read_json(path)
    given.out.mkdir(parents=True, exist_ok=True)
    settings = {
        "methods": given.methods, "width": given.width, "batch": given.batch, "images": len(train.y),
        "precision": "bf16", "channels_last": True, "compiled": device.type == "cuda",
    }  # fmt: skip
    seconds = {name: epoch_seconds(name, settings, train, classes) for name in given.methods}
    fits = int(60 * given.minutes * SHARE_FOR_TRAINING / sum(seconds.values()))
    settings |= {"epochs": given.epochs or max(fits, 1), "epoch_seconds": seconds}
    found = {"environment": describe(), "settings": settings, "trainings": []}
    write_json(path, found)
    return found


def epoch_seconds(name: str, settings: dict[str, Any], train: Images, classes: int) -> float:
    """Seconds of an epoch, from ten steps after the compiler is through."""
    run = begun(name, 0, settings | {"epochs": 1}, train, classes, spare=20)
    batches = steps(train, settings["batch"], 0, 0)
    rounds = []
    for _ in range(2):  # the first compiles
        synchronize(train.x.device)
        start = time.perf_counter()
        done = 0
        for images, labels in batches:
            step(run, images, labels)
            done += 1
            if done == 10:
                break
        synchronize(train.x.device)
        rounds.append((time.perf_counter() - start) / max(done, 1))
        batches = steps(train, settings["batch"], 0, 1)
    return rounds[1] * (len(train.y) // settings["batch"])


class Run(NamedTuple):
    net: nn.Module
    method: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any


def begun(name: str, seed: int, settings: dict[str, Any], train: Images, classes: int, spare: int = 0) -> Run:
    """A net, its method, optimizer and one-cycle schedule at their first step; ``spare`` steps may come on top."""
    torch.manual_seed(seed)
    device, recipe = train.x.device, RECIPES[name]
    net = small_resnet([2, 2, 2, 2], settings["width"], classes)
    method = recipe.build(net, classes, seed).to(device).to(memory_format=torch.channels_last)
    if settings["compiled"]:
        net.compile()
    optimizer = torch.optim.SGD(
        method.parameters(), lr=recipe.rate, momentum=0.9, weight_decay=recipe.decay, nesterov=True
    )
    total = settings["epochs"] * (len(train.y) // settings["batch"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=total + 1 + spare)
    return Run(net, method.train(), optimizer, schedule)


def steps(train: Images, batch: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The augmented batches of an epoch, a pure function of (seed, epoch); the rest below a batch is left out."""
    device = train.x.device
    generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    order = torch.randperm(len(train.y), generator=generator).to(device)
    uniforms = torch.rand(len(train.y), 3, generator=generator).to(device)
    for at in range(0, len(order) - batch + 1, batch):
        chosen = order[at : at + batch]
        images = crop_flip(train.x[chosen], uniforms[at : at + batch])
        yield prepared(images), train.y[chosen]


def prepared(images: Tensor) -> Tensor:
    return normalize(to_float(images), MEAN, STD).contiguous(memory_format=torch.channels_last)


def step(run: Run, images: Tensor, labels: Tensor) -> None:
    with autocast(images.device):
        loss = run.method(images, labels).loss
    loss.backward()
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.schedule.step()


def trained(
    name: str,
    seed: int,
    settings: dict[str, Any],
    train: Images,
    test: Images,
    classes: int,
    out: Path,
    end: float,
) -> dict[str, Any]:
    """A line of the result.  Raises Paused when the minutes are over, after saving."""
    run, device = begun(name, seed, settings, train, classes), train.x.device
    folder = out / f"{name.replace(' ', '-')}-seed{seed}"
    saved = {"method": run.method, "optimizer": run.optimizer, "schedule": run.schedule}
    first, seconds = 0, 0.0
    newest = checkpoint.load_latest(folder) if folder.exists() else None
    if newest is not None:
        checkpoint.restore(newest, saved, ("seconds",))
        first, seconds = newest.step, newest.state["seconds"]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for epoch in range(first, settings["epochs"]):
        start = time.perf_counter()
        for images, labels in steps(train, settings["batch"], seed, epoch):
            step(run, images, labels)
        synchronize(device)
        seconds += time.perf_counter() - start
        last, over = epoch + 1 == settings["epochs"], time.monotonic() > end
        if last or over or epoch % 20 == 19:
            checkpoint.save(folder, epoch + 1, saved, {"seconds": seconds})
        if over and not last:
            raise Paused(f"{name}, seed {seed}: {epoch + 1} of {settings['epochs']} epochs")
    seen = settings["epochs"] * (len(train.y) // settings["batch"]) * settings["batch"]
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {
        "method": name, "seed": seed, "accuracy": accuracy(run.net, test), "images_seen": seen,
        "train_accuracy": accuracy(run.net, train), "seconds": seconds, "images_per_second": seen / seconds,
        "peak_memory_gb": peak, "rate": RECIPES[name].rate, "decay": RECIPES[name].decay,
    }  # fmt: skip


@torch.no_grad()
def accuracy(net: nn.Module, images: Images) -> float:
    """Percent of the images whose largest logit is their label's, in float32."""
    net.eval()
    right = [
        (net(prepared(x)).argmax(1) == y).sum()
        for x, y in zip(images.x.split(1000), images.y.split(1000), strict=True)
    ]
    return 100 * float(torch.stack(right).sum()) / max(len(images.y), 1)


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if device.type == "cuda" else nullcontext()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
