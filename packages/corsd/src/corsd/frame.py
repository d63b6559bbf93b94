"""What the distiller and its controls share: the user's net is run as it is, and nothing of it is changed.

Its parameters keep their types, the caller's images stay as they are when a net works in place, the logits are
picked out of whatever it returns, and labels of any integer type fit.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from shared_core.ops.autocast import under_autocast
from shared_core.ops.features import FeatureCapture
from shared_core.ops.host import read_back
from shared_core.ops.inputs import copy_for
from shared_core.ops.outputs import Which, pick_logits
from shared_core.ops.snapshot import Snapshot
from shared_core.ops.targets import class_numbers
from torch import Tensor, nn

from corsd.stages import Stage, find_stages


def own_type(net: nn.Module) -> dict[str, Any]:
    """Device and type for modules of ours beside ``net``: float64 beside float64, else float32.

    In half precision the running sums of prototypes and statistics would stop growing.
    """
    found = _first_tensor(net)
    return {
        "device": found.device,
        "dtype": torch.float64 if found.dtype == torch.float64 else torch.float32,
    }


def example_for(net: nn.Module, example: Tensor | None) -> Tensor:
    """Images for the dry run, at least two, on the net's device and of its type."""
    images = torch.zeros(2, 3, 64, 64) if example is None else example
    if not isinstance(images, Tensor):
        raise TypeError(f"example must be a tensor of images (batch, ...); got a {type(images).__name__}")
    if images.dim() < 2 or len(images) == 0:
        raise ValueError(
            f"example has shape {tuple(images.shape)}; give a batch of images, such as images[:2]"
        )
    images = torch.cat([images, images]) if len(images) == 1 else images
    found = _first_tensor(net)
    images = images.to(found.device)
    return images.to(found.dtype) if images.is_floating_point() else images


def run_net(net: nn.Module, images: Tensor, output: Which = None) -> Tensor:
    """The net's logits for a copy of the images, which a net that works in place may change.

    Images of another floating-point type than the whole net's are converted, where the net would refuse them.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor (batch, ...); got a {type(images).__name__}")
    return pick_logits(net(copy_for(net, images)), output)


def check_first_step(net: nn.Module, example: Tensor, output: Which, num_classes: int) -> None:
    """Runs what the first step runs, in the net's own mode, and leaves no trace in the net.

    Raises:
        ValueError: the logits cannot be found or have another width than ``num_classes``.
    """
    before = Snapshot(net)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # What the net warns of here (a checkpoint without gradients), it does not do in a step.
            warnings.simplefilter("ignore")
            logits = run_net(net, example, output)
    finally:
        before.restore()
    check_logits(logits, len(example), num_classes)


def tapped(
    net: nn.Module,
    what: str,
    num_classes: int,
    stages: Sequence[str] | Literal["auto"],
    example: Float[Tensor, "batch ..."] | None,
    output: Which,
) -> tuple[list[Stage], FeatureCapture]:
    """The stages of a net that the method ``what`` reads, and what captures their outputs, once a dry run went well.

    Raises:
        ValueError: a stage that is not there, or logits of another width.
        TypeError: the net is TorchScript, or inside of DistributedDataParallel already.
    """
    check_wrappers(net, what)
    example = example_for(net, example)
    found = find_stages(net, example, stages)
    check_first_step(net, example, output, num_classes)
    return found, FeatureCapture(net, [stage.name for stage in found])


def maps_of(
    net: nn.Module,
    images: Tensor,
    output: Which,
    stages: Sequence[Stage],
    capture: FeatureCapture,
    reader: nn.Module | None = None,
) -> tuple[Tensor, list[Float[Tensor, "batch _ _ _"]]]:
    """The net's logits, and the maps of its stages, shallow to deep; in the type of the reader, where one is given."""
    with capture:
        logits = run_net(net, images, output)
    captured = capture.pop()
    maps = [stage.map(captured[stage.name]) for stage in stages]
    return logits, maps if reader is None else [for_module(m, reader) for m in maps]


def check_logits(logits: Tensor, count: int, num_classes: int) -> None:
    """Raises ValueError if these are not logits of ``count`` images over ``num_classes``."""
    if logits.shape != (count, num_classes):
        raise ValueError(
            f"the net gave logits of shape {tuple(logits.shape)} for {count} labels; expected "
            f"({count}, {num_classes}): is num_classes={num_classes} what the net was built for?"
        )


def labels_for(labels: Tensor, logits: Tensor) -> Int[Tensor, " batch"]:
    """Labels of any integer type, bool or a list as int64, beside the logits."""
    return class_numbers(labels).to(logits.device, non_blocking=True)


class HostCount:
    """The number in a counting buffer, known on the CPU: read back only after somebody else wrote the buffer."""

    def __init__(self) -> None:
        self._known: tuple[int, int, int] | None = None

    def value(self, buffer: Int[Tensor, ""]) -> int:
        if self._known is None or self._known[1:] != (id(buffer), buffer._version):
            done = int(read_back(buffer, "how many steps are done?"))
            self._known = (done, id(buffer), buffer._version)
        return self._known[0]

    def add(self, buffer: Int[Tensor, ""], count: int) -> None:
        done = self.value(buffer)
        buffer += count
        self._known = (done + count, id(buffer), buffer._version)


def check_wrappers(net: nn.Module, what: str) -> None:
    """Raises TypeError for a net that is inside of DistributedDataParallel or DataParallel already."""
    if isinstance(net, nn.parallel.DistributedDataParallel | nn.DataParallel):
        kind = type(net).__name__
        raise TypeError(
            f"net is inside of {kind} already, which would leave the modules that {what} adds out: give net.module, "
            f"and wrap the whole: DistributedDataParallel({what}(net.module, ...))"
        )


def for_module(x: Tensor, module: nn.Module) -> Tensor:
    """``x`` in the type of a module of ours; under autocast, which converts by itself, as it is."""
    if under_autocast(x) and x.dtype != torch.float64:
        return x
    return x.to(next(module.parameters()).dtype)


def widened(x: Tensor) -> Tensor:
    """Half-precision values in float32, where losses are computed; others as they are."""
    return x if x.dtype == torch.float64 else x.float()


def _first_tensor(net: nn.Module) -> Tensor:
    """The first parameter of floating point, else the first such buffer, else a number on the CPU."""
    tensors = [*net.parameters(), *net.buffers()]
    return next((t for t in tensors if t.is_floating_point()), torch.zeros(()))
