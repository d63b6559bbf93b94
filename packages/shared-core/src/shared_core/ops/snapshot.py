"""Put back what a forward pass changed: statistics, tables, counters, random generators.

>>> before = Snapshot(net)
>>> net(images)                                 # batch norm's running statistics move, dropout draws
>>> before.restore()                            # as if it had not been called
"""

import copy
import random
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class Snapshot:
    """What a forward pass may change beside its output: buffers, extra states, the random generators.

    Take it before the forward pass and `restore` it when the step is refused.  Parameters and optimizers are
    not in it: a refused step does not touch them.

    Args:
        modules: whose buffers (persistent or not) and extra states (`get_extra_state`) are kept.
        rows: for large buffers, by their name in the first module: the rows that this pass may write.  Only
            these are kept.
    """

    def __init__(self, *modules: nn.Module, rows: Mapping[str, Tensor] | None = None) -> None:
        rows = rows or {}
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self._buffers: list[tuple[nn.Module, dict[str, tuple[Tensor | None, Tensor | None]]]] = []
        self._extra: list[tuple[nn.Module, Any]] = []
        for number, module in enumerate(modules):
            for path, part in module.named_modules():
                self._keep(part, f"{path}." if path else "", rows if number == 0 else {})
        self._generators = _generators()

    def _keep(self, part: nn.Module, path: str, rows: Mapping[str, Tensor]) -> None:
        kept: dict[str, tuple[Tensor | None, Tensor | None]] = {}
        for name, buffer in part._buffers.items():
            if buffer is None or is_lazy(buffer) or path + name in rows:
                kept[name] = (buffer, None)
            else:
                kept[name] = (buffer, buffer.detach().clone())
            if buffer is not None and path + name in rows:
                index = rows[path + name].to(buffer.device)
                self._rows.append((buffer, index, buffer.detach()[index]))
        self._buffers.append((part, kept))
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            self._extra.append((part, copy.deepcopy(part.get_extra_state())))

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back, bit for bit; buffers stay the same tensors."""
        for part, kept in self._buffers:
            for name in [name for name, _ in part._buffers.items() if name not in kept]:
                del part._buffers[name]
            for name, (buffer, values) in kept.items():
                if name not in part._buffers or part._buffers[name] is not buffer:
                    part._buffers[name] = buffer
                if buffer is not None and values is not None:
                    buffer.copy_(values)
        for buffer, index, values in self._rows:
            buffer[index] = values
        for part, state in self._extra:
            part.set_extra_state(state)
        _set_generators(self._generators)


def take_back(snapshots: Iterable[Snapshot | None]) -> None:
    """Restores snapshots of a refused step, the newest first; None is passed over."""
    for snapshot in reversed(list(snapshots)):
        if snapshot is not None:
            snapshot.restore()


def _generators() -> tuple[Any, Tensor, list[Tensor]]:
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), torch.get_rng_state(), on_gpus


def _set_generators(state: tuple[Any, Tensor, list[Tensor]]) -> None:
    random.setstate(state[0])
    torch.set_rng_state(state[1])
    if state[2]:
        torch.cuda.set_rng_state_all(state[2])
