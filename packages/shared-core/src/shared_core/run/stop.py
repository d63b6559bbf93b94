"""Stopping on SIGTERM and SIGINT after saving.

>>> with StopFlag() as stop:
...     for step in range(steps):
...         train_step()
...         if stop.agreed():
...             save(...)
...             sys.exit(stop.exit_code)
"""

import os
import signal
import time
from types import FrameType


class StopFlag:
    """Inside the `with`, a first signal only sets `stopped`; one that comes later ends the process at once.

    Within ECHO seconds of the first a signal is taken for the same order: schedulers and terminals tell every process
    of a run, and torchrun passes on what it was told.

    Enter it in the main thread (Python installs handlers nowhere else).  The old handlers come back on exit.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)
    ECHO = 5.0

    def __init__(self) -> None:
        self.signal: int | None = None
        self._told = 0.0
        self._agreed = False
        self._old: dict[int, object] = {}

    @property
    def stopped(self) -> bool:
        """Whether this process was told to stop."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """143 after SIGTERM, 130 after SIGINT, 143 if only another rank was told, 0 if nobody was."""
        if self.signal is not None:
            return 128 + self.signal
        return 128 + signal.SIGTERM if self._agreed else 0

    def agreed(self) -> bool:
        """Whether any rank was told to stop: the same answer on all ranks, which all have to ask."""
        import torch
        import torch.distributed as dist

        from shared_core.ops.gather import communication_device, world_size

        if world_size() == 1:
            return self.stopped
        flag = torch.tensor(int(self.stopped), device=communication_device())
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        self._agreed = bool(flag.item())
        return self._agreed

    def __enter__(self) -> "StopFlag":
        self._old = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._old = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._told = number, time.monotonic()
        elif time.monotonic() - self._told > self.ECHO:
            # No clean-up: whoever signals once more wants out, and a hung collective would block it.
            os._exit(128 + number)
