"""Differentiable concatenation over the processes of a distributed run; the identity on one process."""

import pickle
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """Number of this process, 0 when torch.distributed is not initialised."""
    return dist.get_rank() if _initialised() else 0


def world_size() -> int:
    """Number of processes, 1 when torch.distributed is not initialised."""
    return dist.get_world_size() if _initialised() else 1


def communication_device() -> torch.device:
    """Where a tensor has to be for a collective: the current CUDA device under NCCL, else the CPU."""
    if _initialised() and "nccl" in str(dist.get_backend()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def all_gather(x: Shaped[Tensor, "local ..."], check_shapes: bool = True) -> Shaped[Tensor, "total ..."]:
    """Concatenates `x` of all ranks along dimension 0, in the order of ranks.

    The gradient of each rank's slice is the sum of what all ranks send back to it, so a loss computed on the
    gathered batch by every rank gives `world_size()` times the gradient of that loss, which DDP's mean over
    ranks divides out again.  Tensors without gradient (labels, masks) of any type are allowed.

    Every rank must call it, with the same shape and type.  `check_shapes` compares them first, which costs
    one small collective; without it a difference may hang.  Raises ValueError on all ranks if they differ.
    """
    if world_size() == 1:
        return x
    if x.dim() == 0:
        raise ValueError("x is a single number; all_gather concatenates along dimension 0: use x.reshape(1)")
    if check_shapes:
        _compare_shapes(x)
    return _AllGather.apply(x)  # pyright: ignore[reportReturnType]


def gather_objects(value: Any) -> list[Any]:
    """The values of all processes, in the order of ranks: numbers, lists or CPU tensors of any size, without gradient.

    Every rank must call it.
    """
    found: list[Any] = [value] * world_size()
    if len(found) > 1:
        dist.all_gather_object(found, value)
    return found


def everywhere(work: Callable[[], T]) -> list[T]:
    """What `work` gives on each process, in the order of ranks; an error of one is raised on all of them.

    Results are pickled: numbers, lists, CPU tensors.  Every rank must call it, and nothing inside may communicate.
    """
    if world_size() == 1:
        return [work()]
    error: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as found:
        error = found
    outcomes = gather_objects((result, None if error is None else _sendable(error)))
    if error is not None:
        raise error
    for failed in (outcome[1] for outcome in outcomes):
        if failed is not None:
            raise failed
    return [outcome[0] for outcome in outcomes]


def once(work: Callable[[], T]) -> T:
    """What `work` gives on the first process, which alone does it; see :func:`everywhere`."""
    return everywhere(lambda: work() if rank() == 0 else cast(T, None))[0]


def in_turn(count: int, work: Callable[[int], T]) -> Iterator[T]:
    """`work` of 0, 1 ... `count` - 1, each done by one process in turn, for all of them; see :func:`everywhere`.

    A process is asked for its numbers in rising order.  Every rank must read equally far.
    """
    world = world_size()
    for start in range(0, count, world):
        place = start + rank()
        found = everywhere(lambda at=place: work(at) if at < count else cast(T, None))
        yield from found[: count - start]


def _sendable(error: Exception) -> Exception:
    """The error, or its words where it cannot be sent to another process."""
    try:
        again = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own, a line above
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return again if type(again) is type(error) else RuntimeError(f"{type(error).__name__}: {error}")


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.rows = x.shape[0]
        # gloo has no bool: the bytes are the same.
        wire = x.contiguous().view(torch.uint8) if x.dtype == torch.bool else x.contiguous()
        parts = [torch.empty_like(wire) for _ in range(world_size())]
        dist.all_gather(parts, wire)
        return torch.cat(parts).view(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        start = rank() * ctx.rows
        return total[start : start + ctx.rows]


def _compare_shapes(x: Tensor) -> None:
    description = [*_DTYPES.get(x.dtype, [-1]), x.dim(), *x.shape]
    # A fixed length, because a tensor of differing length is the very thing that would hang here.
    row = torch.tensor((description + [0] * 10)[:10], device=communication_device())
    rows = [torch.empty_like(row) for _ in range(world_size())]
    dist.all_gather(rows, row)
    if any(not torch.equal(row, other) for other in rows):
        shapes = "; ".join(
            f"rank {i} {tuple(r[2 : 2 + int(r[1])].tolist())} {_dtype_name(int(r[0]))}"
            for i, r in enumerate(rows)
        )
        raise ValueError(f"all_gather needs the same shape and type on all ranks, it was given {shapes}")


_DTYPE_ORDER = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
_DTYPES = {dtype: [number] for number, dtype in enumerate(_DTYPE_ORDER)}


def _dtype_name(number: int) -> str:
    return str(_DTYPE_ORDER[number]) if number >= 0 else "another type"


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()
