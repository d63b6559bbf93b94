"""Read values back from the device: the one door, so that a step's waits can be counted.

Reading a number of a GPU (`item`, `int`, `bool`, `cpu`, a boolean index) makes the CPU wait until all work queued so
far is done.  What a training step must know on the CPU goes through :func:`read_back`, stacked into one tensor;
everything else stays on the device.  Tests put a step on the meta device, where every other way of reading raises
(:func:`shared_core.testing.pretend_device`).

    >>> finite, done = read_back(torch.stack([isfinite, steps]), "is the loss finite?").tolist()
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor


def read_back(values: Shaped[Tensor, "*shape"], why: str) -> Shaped[Tensor, "*shape"]:
    """Return `values` on the CPU, without gradient; on a GPU the CPU waits for them.

    `why` says what needs them.  Tests hold a list of these reasons: a new one is a wait that somebody has to defend.
    """
    del why
    return values.detach().cpu()


def at_once(values: Mapping[str, Any], why: str = "numbers for the log") -> dict[str, Any]:
    """Return nested dicts in which single numbers on a device became Python numbers, all of them read in one go.

    Whole numbers beyond 2**53 would be rounded.  What is on the CPU already, and everything else, stays as it is.
    """
    found: list[Tensor] = []
    _collect(values, found)
    if not found:
        return dict(values)
    wide = torch.float32 if found[0].device.type == "mps" else torch.float64
    numbers = read_back(torch.stack([x.detach().reshape(()).to(wide) for x in found]), why).tolist()
    known = {id(x): n if x.is_floating_point() else int(n) for x, n in zip(found, numbers, strict=True)}
    return _replaced(values, known)


def _is_remote_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type != "cpu" and value.numel() == 1


def _collect(values: Mapping[str, Any], found: list[Tensor]) -> None:
    for value in values.values():
        if isinstance(value, Mapping):
            _collect(value, found)
        elif _is_remote_number(value):
            found.append(value)


def _replaced(values: Mapping[str, Any], known: Mapping[int, float]) -> dict[str, Any]:
    def one(value: Any) -> Any:
        if isinstance(value, Mapping):
            return _replaced(value, known)
        return known[id(value)] if _is_remote_number(value) else value

    return {name: one(value) for name, value in values.items()}
