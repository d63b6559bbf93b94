"""Several processes that share the views of a step, as under torchrun: each draws the noise of its own views.

Where torch.distributed is initialised, the processes are taken to work on one scene: process r of n has the r-th n-th
of the views of each step, all have the same number of views and the same seeds. Every process draws for all views and
keeps its own rows, so n processes see what one process would see. Averaging the gradients of the scene is left to the
loop, because the scene is the caller's.

    >>> cameras = mine(orbit(8, generator))                            # 4 of 8 in each of two processes
    >>> out.loss.backward(); average_gradients(scene)                   # shared_core.ops.gradients
    >>> with alone():                                                   # each process makes an object of its own
    ...     out = guide(view.image, prompt, cameras, progress)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float
from shared_core.ops import gather
from torch import Tensor

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Within it, this process shares no views with others: it draws and learns for itself."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def sharing() -> int:
    """How many processes share the views of a step; 1 within `alone`, and without torch.distributed."""
    return 1 if _ALONE.get() else gather.world_size()


def mine(rows: Any) -> Any:
    """Return the part of this process of `rows`, a tensor or cameras with a row per view of all processes.

    Raises ValueError for a number of rows that the processes cannot share evenly.
    """
    count = sharing()
    if count == 1:
        return rows
    if len(rows) % count:
        raise ValueError(
            f"{len(rows)} views cannot be shared evenly by {count} processes; give a multiple of {count}"
        )
    size = len(rows) // count
    return rows[gather.rank() * size : (gather.rank() + 1) * size]


def draw_views(generator: torch.Generator, count: int, *shape: int) -> Float[Tensor, "count ..."]:
    """Draw standard normal noise for the `count` views of this process, on the CPU.

    It depends on the generator and on a view's place among the views of all processes.
    """
    return mine(torch.randn(count * sharing(), *shape, generator=generator))


def refuse_unlike(count: int, generator: torch.Generator) -> None:
    """Compare the processes that share views. Every one of them must call it.

    Raises ValueError in all of them if their numbers of views or their generators differ.
    """
    drawn = sha256(generator.get_state().numpy().tobytes()).hexdigest()
    found = gather.gather_objects((count, drawn))
    if len(set(found)) > 1:
        views = ", ".join(f"{views} in process {rank}" for rank, (views, _) in enumerate(found))
        raise ValueError(
            "processes that share a scene have the same number of views and the same seed; their views are "
            f"{views}, or their seeds differ. Give all the same, or wrap the loop in fsd.processes.alone() if every "
            "process makes an object of its own"
        )
