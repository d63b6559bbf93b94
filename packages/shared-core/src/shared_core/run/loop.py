"""The one training loop: resume, stop, bar, log, trackers and checkpoints around a `for` of the method's own.

    with Loop(folder, steps, {"net": net, "optimizer": optimizer}, resume=True) as loop:
        batches.seek(loop.done)                  # where an earlier process stopped, or 0
        for step in loop:                        # done, done + 1, ... steps - 1
            loss = ...
            optimizer.step()
            if loop.due(log_every):
                loop.log(loss=loss)

After the body of a step the loop saves where a checkpoint is due, and leaves with SystemExit 130 or 143 where a signal
asked for it, after saving.  What an exception interrupts is not saved: a resumed run repeats it from the newest
checkpoint, bit for bit, and the log forgets what came after that.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch.distributed as dist
from tqdm.auto import tqdm

from shared_core.ops.gather import rank
from shared_core.run import checkpoint
from shared_core.run.folder import RunFolder
from shared_core.run.metrics import MetricsLog, cut_back
from shared_core.run.stop import StopFlag


@runtime_checkable
class Stateful(Protocol):
    """Modules, optimizers, schedules, and whatever else a step changes."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Loop:
    """Steps of a training that can be killed at any moment; enter it, then iterate over it once.

    Args:
        folder: of the run; None keeps nothing: no log, no checkpoints, and signals end the process as usual.
        steps: after which the training is over.
        saved: all that a step changes, by name.  The global random generators are saved with it.
        checkpoint_every: steps between checkpoints; one more is written after the last step.
        resume: go on from the newest whole checkpoint, if there is one.
        name: what the bar says.
        tracker, project: as for :class:`shared_core.run.metrics.MetricsLog`.
        stop: a flag that several loops of a process share; else the loop makes its own.
        together: whether the processes of a torchrun train one thing and stop together.

    Raises:
        CheckpointError: (on entering) the checkpoint is not one of this run.
        SystemExit: (after a step) the process was told to stop.

    `done` counts the finished steps, `seconds` and `core_seconds` the time and the processor time of this process
    over all of the training's lives.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        steps: int,
        saved: Mapping[str, Stateful],
        checkpoint_every: int = 500,
        resume: bool = True,
        name: str = "",
        tracker: str = "none",
        project: str = "",
        stop: StopFlag | None = None,
        together: bool = True,
    ) -> None:
        self.steps, self.done = steps, 0
        self._folder, self._saved, self._checkpoint_every = folder, dict(saved), checkpoint_every
        self._resume, self._name, self._tracker, self._project = resume, name, tracker, project
        self._stop, self._together = stop, together
        self._writes = folder is not None and (rank() == 0 or not together)
        self._log: MetricsLog | None = None
        self._bar: tqdm | None = None
        self._open = ExitStack()
        self._step = 0  # the number of the running step, from 1; 0 before the first
        self._began = self._began_computing = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of this training so far, those of earlier processes included."""
        return time.perf_counter() - self._began

    @property
    def core_seconds(self) -> float:
        """Processor seconds of this process, likewise."""
        return time.process_time() - self._began_computing

    def __enter__(self) -> "Loop":
        seconds = core_seconds = 0.0
        found = checkpoint.load_latest(self._folder.checkpoints) if self._folder and self._resume else None
        if found is not None:
            checkpoint.restore(found, self._saved, ("seconds", "core_seconds", "rng"))
            checkpoint.set_rng_state(found.state["rng"])
            self.done = self._step = found.step
            seconds, core_seconds = found.state["seconds"], found.state["core_seconds"]
        self._began = time.perf_counter() - seconds
        self._began_computing = time.process_time() - core_seconds
        if self._folder is not None and self._stop is None:
            self._stop = self._open.enter_context(StopFlag())
        if self._folder is not None and self._writes:
            # Without a checkpoint what was logged before the first step, too, is about to come again.
            cut_back(self._folder.metrics, self.done if found is not None else -1)
            log = MetricsLog(self._folder.metrics, self._tracker, self._project)
            self._log = self._open.enter_context(log)
        hidden = None if self._writes or rank() == 0 else True
        bar = tqdm(total=self.steps, initial=self.done, desc=self._name, disable=hidden, leave=False)
        self._bar = self._open.enter_context(bar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[int]:
        if self._bar is None:
            raise RuntimeError("the loop is not open: write `with Loop(...) as loop:` around its `for`")
        while self.done < self.steps:
            self._step = self.done + 1
            yield self.done
            self.done = self._step
            self._bar.update()
            stopped = self._told()
            if stopped or self.done % self._checkpoint_every == 0 or self.done == self.steps:
                self._save()
            if stopped and self.done < self.steps:
                assert self._stop is not None
                raise SystemExit(self._stop.exit_code)

    def due(self, every: int) -> bool:
        """Whether the running step is the first, the last, or one of every `every`."""
        return self._step % every == 0 or self._step in (1, self.steps)

    def log(self, time: Mapping[str, float] | None = None, **values: Any) -> None:
        """A line of metrics.jsonl under the number of the running step, from 1; before the first it is 0."""
        if self._log is not None:
            self._log.log(self._step, time, **values)

    def _told(self) -> bool:
        if self._stop is None:
            return False
        return self._stop.agreed() if self._together else self._stop.stopped

    def _save(self) -> None:
        if self._folder is None:
            return
        state = {"seconds": self.seconds, "core_seconds": self.core_seconds, "rng": checkpoint.rng_state()}
        checkpoint.save(self._folder.checkpoints, self.done, self._saved, state)
        if self._together and dist.is_initialized():
            # Nobody goes on, or ends, before the checkpoint is there for all.
            dist.barrier()
