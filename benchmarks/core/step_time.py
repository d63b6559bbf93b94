"""One whole training step (forward, backward, SGD) of a method around ResNet-18 for 32 x 32 images."""

import time
from collections.abc import Callable

import torch
from corsd.baselines import CrossEntropy, ExitMethod
from corsd.distiller import Distiller
from corsd.nets import small_resnet
from jaxtyping import Float, Int
from torch import Tensor, nn

BATCH, WIDTH, CLASSES = 96, 64, 100
STAGES = ["layer1", "layer2", "layer3", "layer4"]
EXAMPLE = torch.zeros(2, 3, 32, 32)

METHODS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda net: CrossEntropy(net, CLASSES),
    "in_batch": lambda net: Distiller(net, STAGES, CLASSES, EXAMPLE),
    "triplets": lambda net: Distiller(net, STAGES, CLASSES, EXAMPLE, pairs="triplets"),
    "rkd": lambda net: ExitMethod(net, CLASSES, "rkd", STAGES, EXAMPLE),
}


def random_batch(size: int) -> tuple[Float[Tensor, "batch 3 32 32"], Int[Tensor, " batch"]]:
    """Noise in the order anchor, positive, negative, ...: the one order that every method can read."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, 32, 32, generator=generator)
    anchors = torch.arange(size // 3) % CLASSES
    return images, torch.stack([anchors, anchors, (anchors + 1) % CLASSES], 1).flatten()


def training_step(method: str, width: int, size: int, device: str) -> Callable[[], None]:
    """A function that trains a new net by one step on the same ``size`` images each time it is called."""
    torch.manual_seed(0)
    net = small_resnet([2, 2, 2, 2], width, CLASSES)
    trained = METHODS[method](net).to(device).train()
    # A small step: noise that is learned by heart ends in denormal numbers, which are slow.
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    images, labels = (tensor.to(device) for tensor in random_batch(size))

    def step() -> None:
        optimizer.zero_grad()
        trained(images, labels).loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None], device: str) -> float:
    """How long a step takes: see :func:`clock_name`."""
    if device == "cuda":
        torch.cuda.synchronize()
    clock = time.process_time if _counts_processor_time(device) else time.perf_counter
    begin = clock()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def clock_name(device: str) -> str:
    """On one CPU thread it is processor time, which leaves out what other programs take; else the wall clock."""
    return "processor time" if _counts_processor_time(device) else "wall clock"


def _counts_processor_time(device: str) -> bool:
    return device == "cpu" and torch.get_num_threads() == 1
