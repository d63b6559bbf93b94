"""What grows with classes, images and image size: step time and memory as ratios to the plain step.

    python -m benchmarks.core.scale --out FILE [--quick]

- *Classes*, 10 to 20,000: a training step of every method of corsd on ResNet-10 of width 16, 96 images of 16 x 16,
  against the plain step (cross-entropy) of the same network with as many classes.  On so small a network the class
  heads of the stages are most of the work, so the goal is judged on ResNet-18 of width 64 and 32 x 32 pixels, the
  network of `corsd/step.py`: corsd over plain at 8,000 classes, over the same at 100.
- *Images*, 1,000 to 1.28 million of 1,000 classes, synthetic: seconds and memory of one epoch's plan of each kind.
- *Images of a domain*, 1,000 to 100,000: seconds and memory of 20 steps of `calib.adapt`, against 1,000 images.
- *Image size*, 16 to 64 pixels: the training steps again, against the plain step of that size.

One CPU thread and processor time.  Memory is the rise of the process's peak (read from /proc, so on Linux), each
measured in a process of its own.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from corsd.balanced import balanced_plan
from corsd.baselines import PSKD, CrossEntropy, ExitMethod
from corsd.distiller import Distiller
from corsd.nets import small_resnet
from corsd.pairs import class_pair_plan, last_batch_plan, triplet_plan
from shared_core.data.sampling import shuffled_plan
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.core.figures import difference, interleaved, options, ratio, write
from benchmarks.core.step_time import clock_name, seconds

STAGES = ["layer1", "layer2", "layer3", "layer4"]
BATCH, TABLE = 96, 5_000
CLASSES = (10, 100, 1_000, 8_000, 20_000)
SIZES = (16, 32, 64)
IMAGES = (1_000, 100_000, 1_000_000, 1_280_000)
DOMAIN = (1_000, 10_000, 100_000)
GOAL_CLASSES, GOAL_SECONDS, GOAL_MIB = 1.25, 10.0, 1024.0

METHODS: dict[str, Callable[[nn.Module, int, int], nn.Module]] = {
    "plain": lambda net, classes, size: CrossEntropy(net, classes),
    "corsd": lambda net, classes, size: Distiller(net, STAGES, classes, torch.zeros(2, 3, size, size)),
    "deep supervision": lambda net, classes, size: _exits(net, classes, size, "deep_supervision"),
    "rkd": lambda net, classes, size: _exits(net, classes, size, "rkd"),
    "ps-kd": lambda net, classes, size: PSKD(net, classes, TABLE, 10 * TABLE),
}
"""PS-KD keeps a row of probabilities per image: its memory is images times classes by definition."""

PLANS: dict[str, Callable[[Tensor], Any]] = {
    "shuffled": lambda labels: shuffled_plan(len(labels), BATCH, 0),
    "triplets": lambda labels: triplet_plan(labels, BATCH // 3, 0),
    "class pairs": lambda labels: class_pair_plan(labels, BATCH // 2, 0),
    "balanced": lambda labels: balanced_plan(labels, BATCH // 4, 4, 0),
    "last batch": lambda labels: last_batch_plan(len(labels), BATCH // 2, 0),
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--alone", metavar="JSON", help="measure one thing in this process and print it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.alone:
        kind, *arguments = json.loads(given.alone)
        print(json.dumps(ALONE[kind](*arguments)))
        return
    quick = given.quick
    figures = [
        *by_classes((10, 40) if quick else CLASSES, quick),
        *by_size((16,) if quick else SIZES, quick),
        *by_images((1_000, 2_000) if quick else IMAGES, quick),
        *by_domain((200, 400) if quick else DOMAIN, quick),
    ]
    write(given.out, quick, figures, batch=BATCH, table=TABLE)


def by_classes(counts: tuple[int, ...], quick: bool) -> list[dict[str, Any]]:
    """Each method over the plain step at each number of classes, and how that ratio grows."""
    figures = []
    for classes in counts:
        values = _times(classes, SIZES[0], quick)
        figures += _over_plain(f"{classes} classes", values, quick)
        memory = {name: [alone("step", name, classes, SIZES[0], quick)["mib"]] for name in METHODS}
        figures += _over_plain(f"{classes} classes, memory", memory, quick, "MiB at the peak of three steps")
    many, few = (counts[-1], counts[0]) if quick else (8_000, 100)
    steps = {
        f"{name} {classes}": training_step(
            name, classes, 16 if quick else 32, quick, *(() if quick else (2, 64))
        )
        for name in ("plain", "corsd")
        for classes in (few, many)
    }
    timed = interleaved(
        {name: lambda s=step: seconds(s, "cpu") for name, step in steps.items()}, 2 if quick else 6
    )
    grown = {
        name: [a / b for a, b in zip(timed[f"corsd {classes}"], timed[f"plain {classes}"], strict=True)]
        for name, classes in (("many", many), ("few", few))
    }
    what = f"corsd over the plain step at {many:,} classes, over the same at {few}; ResNet-18 of width 64"
    return [*figures, ratio("classes", what, "ratio", grown, "many", "few", goal=GOAL_CLASSES, quick=quick)]


def by_size(sizes: tuple[int, ...], quick: bool) -> list[dict[str, Any]]:
    """Each method over the plain step at each image size."""
    return [
        figure for size in sizes for figure in _over_plain(f"{size} pixels", _times(100, size, quick), quick)
    ]


def by_images(counts: tuple[int, ...], quick: bool) -> list[dict[str, Any]]:
    """Seconds and MiB of one epoch's plan; judged at the largest number of images."""
    figures = []
    for count in counts:
        for plan in PLANS:
            found = alone("plan", plan, count)
            largest = count == counts[-1]
            for unit, kind, goal in (("s", "seconds", GOAL_SECONDS), ("MiB", "mib", GOAL_MIB)):
                values = {plan: [found[kind]], "zero": [0.0]}
                name, what = f"plan, {plan}, {count:,} images, {unit}", "one epoch's plan, 1,000 classes"
                judged = {"goal": goal if largest else None, "quick": quick}
                figures.append(difference(name, what, unit, values, plan, "zero", **judged))
    return figures


def by_domain(counts: tuple[int, ...], quick: bool) -> list[dict[str, Any]]:
    """calib.adapt on domains of so many images against the smallest: time and memory of 20 steps."""
    found = {count: [alone("adapt", count) for _ in range(1 if quick else 3)] for count in counts}
    figures = []
    for count in counts[1:]:
        for unit, kind in (("s, processor time", "seconds"), ("MiB", "mib")):
            values = {"many": [f[kind] for f in found[count]], "few": [f[kind] for f in found[counts[0]]]}
            name = f"adapt, {count:,} images, {kind}"
            what = f"20 steps of calib.adapt, against domains of {counts[0]:,} images"
            figures.append(ratio(name, what, unit, values, "many", "few", quick=quick))
    return figures


def alone(*what: Any) -> dict[str, float]:
    """What ALONE measures, in a process of its own, since a peak cannot be taken back."""
    command = [sys.executable, "-m", "benchmarks.core.scale", "--out", "unused", "--alone", json.dumps(what)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what}: {done.stderr}")
    return json.loads(done.stdout)


def training_step(
    method: str, classes: int, size: int, quick: bool, blocks: int = 1, width: int = 16
) -> Callable[[], None]:
    """A function that trains a new network by one step on the same images each time it is called."""
    torch.manual_seed(0)
    net = small_resnet([blocks] * 4, 4 if quick else width, classes)
    trained = METHODS[method](net, classes, size).train()
    # A small step: noise that is memorised ends in denormal numbers, which are slow.
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-4)
    images = torch.randn(12 if quick else BATCH, 3, size, size, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(len(images)) // 3 % classes
    index = torch.arange(len(images))

    def step() -> None:
        optimizer.zero_grad()
        trained(images, labels, index).loss.backward()
        optimizer.step()

    return step


def step_alone(method: str, classes: int, size: int, quick: bool) -> dict[str, float]:
    """MiB of network, method and three steps."""
    rise = _watch_peak()
    step = training_step(method, classes, size, quick)
    for _ in range(3):
        step()
    return {"mib": rise()}


def plan_alone(kind: str, count: int) -> dict[str, float]:
    """Seconds and MiB of one epoch's plan over `count` labels of 1,000 classes."""
    labels = torch.randint(1_000, (count,), generator=torch.Generator().manual_seed(0))
    PLANS[kind](labels[:1_000])(0)  # what the first call of a library costs is not the plan's
    rise, begin = _watch_peak(), time.perf_counter()
    PLANS[kind](labels)(0)
    return {"seconds": time.perf_counter() - begin, "mib": rise()}


class Synthetic(Dataset):
    """`count` images of 16 x 16, each a function of its number; nothing is stored."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, 16, 16), (index * 2_654_435_761 % 1_000) / 1_000), index % 10


def adapt_alone(count: int) -> dict[str, float]:
    """Seconds and MiB of 20 steps of calib.adapt on two domains of `count` images each."""
    import calib

    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
    model = calib.attach(classifier, calib.Calibrator(3, epsilon=0.1, width=4, blocks=1))
    source, target = Synthetic(count), Synthetic(count)
    rise, begin = _watch_peak(), time.process_time()
    calib.adapt(model, source, target, steps=20, batch_size=32, device="cpu")
    return {"seconds": time.process_time() - begin, "mib": rise()}


ALONE: dict[str, Callable[..., dict[str, float]]] = {
    "step": step_alone,
    "plan": plan_alone,
    "adapt": adapt_alone,
}


def _exits(net: nn.Module, classes: int, size: int, method: Any) -> nn.Module:
    return ExitMethod(net, classes, method, STAGES, torch.zeros(2, 3, size, size))


def _times(classes: int, size: int, quick: bool) -> dict[str, list[float]]:
    steps = {name: training_step(name, classes, size, quick) for name in METHODS}
    timed = {name: lambda s=step: seconds(s, "cpu") for name, step in steps.items()}
    return interleaved(timed, rounds=2 if quick else 8)


def _over_plain(
    where: str, values: dict[str, list[float]], quick: bool, unit: str = ""
) -> list[dict[str, Any]]:
    unit = unit or f"s per step, {clock_name('cpu')}"
    return [
        ratio(f"{name}, {where}", "over the plain step", unit, values, name, "plain", quick=quick)
        for name in METHODS
        if name != "plain"
    ]


def _watch_peak() -> Callable[[], float]:
    """A function that gives the MiB by which the peak of this process rose since."""
    from benchmarks.corsd.step import resident_bytes

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident_bytes("VmRSS")
    return lambda: (resident_bytes("VmHWM") - before) / 2**20


if __name__ == "__main__":
    main()
