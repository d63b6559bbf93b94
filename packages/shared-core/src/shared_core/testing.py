"""Helpers for tests: equal states, runs in several processes, gradients, stand-ins for a GPU and its loss scaler."""

import importlib.util
import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shared_core.ops import host


def assert_same_state(a: Any, b: Any, at: str = "") -> None:
    """Raises AssertionError naming the first key at which two states (nested dicts, lists, tensors) differ.

    Tensors must have the same type, shape and bytes (so NaN equals NaN and 0.0 differs from -0.0).
    """
    _same(a, b, at or "state")


def gradients_agree(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Compares the gradient with finite differences in float64; raises with the numbers where they differ."""
    wide = [x.detach().double().requires_grad_() if x.is_floating_point() else x for x in inputs]
    torch.autograd.gradcheck(function, tuple(wide))


@contextmanager
def pretend_device(found: Callable[[Tensor], Tensor] | None = None) -> Iterator[list[str]]:
    """Let tensors on the meta device stand for tensors on a GPU; yields the reasons of all reads, as they come.

    Put the module and the batch on `torch.device("meta")` and run a step inside.  A tensor left on the CPU, or a
    value read back in any way but :func:`shared_core.ops.host.read_back`, raises RuntimeError or
    NotImplementedError.  What is read back has the values `found(zeros)`, by default zeros.

    Meta tensors have shapes and no values.  Copies from the CPU to the device pass, single numbers on the CPU mix
    with tensors on the device, and indices on the CPU into a tensor on the device too: all that is right on a GPU.
    """
    reasons: list[str] = []
    real = host.read_back

    def read_back(values: Tensor, why: str) -> Tensor:
        if not values.is_meta:
            return real(values, why)
        reasons.append(why)
        zeros = torch.zeros(values.shape, dtype=values.dtype)
        return zeros if found is None else found(zeros)

    # Modules that imported the function hold it under its name.
    holders = [module for module in list(sys.modules.values()) if vars(module).get("read_back") is real]
    for module in holders:
        vars(module)["read_back"] = read_back
    try:
        with _OneDevice():
            yield reasons
    finally:
        for module in holders:
            vars(module)["read_back"] = real


class _OneDevice(TorchDispatchMode):
    """Raises where an operator mixes CPU and meta as CUDA would refuse: some meta kernels do not look."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(x.is_meta for x in tensors):
            name = func.overloadpacket.__name__
            if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
                self._check_index(name, args)
            elif name not in ("copy_", "_to_copy") and any(not x.is_meta and x.dim() for x in tensors):
                where = ", ".join(f"{x.device.type} {tuple(x.shape)}" for x in tensors)
                raise RuntimeError(f"{name} mixes devices: {where}")
        return func(*args, **kwargs)

    def _check_index(self, name: str, args: tuple) -> None:
        tensor, indices = args[:2]
        if not tensor.is_meta:
            raise RuntimeError(f"{name}: a tensor on the CPU is indexed by one on the device")
        # With one number as value this is a masked fill; else CUDA looks where the mask is true, and waits.
        fills = name != "index" and not args[2].dim()
        masked = any(x is not None and x.is_meta and x.dtype in (torch.bool, torch.uint8) for x in indices)
        if masked and not fills:
            raise RuntimeError(f"{name} with a boolean index waits for the device")


def scale_losses(accelerator: Any, overflows: Callable[[float], bool], scale: float = 2.0**16) -> Any:
    """Give accelerate's accelerator torch's loss scaler, on the CPU, as under fp16 on a GPU; returns the scaler.

    `overflows` is asked with the loss scale after every backward pass: on True all gradients become infinite.
    """
    from accelerate.optimizer import AcceleratedOptimizer

    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    optimizers: list[AcceleratedOptimizer] = []

    def prepare(*things: Any) -> Any:
        made = []
        for thing in things:
            if isinstance(thing, torch.optim.Optimizer):
                thing = AcceleratedOptimizer(thing, device_placement=False, scaler=scaler)
                optimizers.append(thing)
            made.append(thing)
        return made[0] if len(made) == 1 else tuple(made)

    def backward(loss: Tensor) -> None:
        scaler.scale(loss).backward()
        if not overflows(scaler.get_scale()):
            return
        for optimizer in optimizers:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                if parameter.grad is not None:
                    parameter.grad.fill_(float("inf"))

    def unscale_gradients(optimizer: AcceleratedOptimizer | None = None) -> None:
        for one in optimizers if optimizer is None else [optimizer]:
            scaler.unscale_(one.optimizer)

    accelerator.scaler, accelerator.prepare, accelerator.backward = scaler, prepare, backward
    accelerator.unscale_gradients = unscale_gradients
    return scaler


def run_ranks(function: Callable[..., Any], world: int = 2, *args: Any, timeout: float = 60.0) -> list[Any]:
    """Calls `function(*args)` in `world` processes, joined by gloo as under torchrun; what each rank returned.

    `function` stands at the top level of a file; arguments and results are pickled.  Each process uses one
    thread.  Raises RuntimeError with the traceback of the first rank that fails, TimeoutError after `timeout`
    seconds; no process is left.
    """
    source = function.__code__.co_filename
    if "<" in function.__qualname__ or not Path(source).is_file():
        raise ValueError(
            f"{function.__qualname__} must stand at the top level of a file: processes import it"
        )
    # A server that has torch loaded: as quick as a fork, without the parent's threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "shared_core.testing"])
    with tempfile.TemporaryDirectory() as folder:
        pipes: list[Any] = []
        processes = []
        try:
            for rank in range(world):
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(
                    target=_rank_main,
                    args=(rank, world, f"{folder}/store", source, function.__name__, args, theirs),
                    daemon=True,
                )
                process.start()
                theirs.close()
                pipes.append(ours)
                processes.append(process)
            return _results(pipes, timeout)
        finally:
            for process in processes:
                process.kill() if sys.exc_info()[0] else None
                process.join()


def _results(pipes: list[Any], timeout: float) -> list[Any]:
    import time

    end = time.monotonic() + timeout
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results}
        ready = wait(list(waiting), timeout=max(0.0, end - time.monotonic()))
        if not ready:
            raise TimeoutError(f"rank {', '.join(map(str, waiting.values()))} did not return in {timeout} s")
        for pipe in ready:
            rank = waiting[pipe]  # pyright: ignore[reportArgumentType]
            try:
                # Our own child wrote it.
                fine, value = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]  # noqa: S301
            except EOFError:
                raise RuntimeError(f"rank {rank} died without a result") from None
            if not fine:
                raise RuntimeError(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def _rank_main(
    rank: int, world: int, store: str, source: str, name: str, args: tuple, answer: Connection
) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    # What torchrun tells its processes: accelerate looks here.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
        spec = importlib.util.spec_from_file_location(f"_ranks_{Path(source).stem}", source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        answer.send_bytes(pickle.dumps((True, getattr(module, name)(*args))))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answer.send_bytes(pickle.dumps((False, traceback.format_exc())))
        raise


def _same(a: Any, b: Any, at: str) -> None:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            raise AssertionError(f"{at}: {a.dtype} {tuple(a.shape)} against {b.dtype} {tuple(b.shape)}")
        one, other = (x.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
        if not torch.equal(one, other):
            gap = (a.double() - b.double()).abs().max().item() if not a.is_complex() else "?"
            raise AssertionError(f"{at}: values differ, at most by {gap}")
    elif isinstance(a, Mapping) and isinstance(b, Mapping):
        if list(a) != list(b):
            raise AssertionError(
                f"{at}: keys {sorted(map(str, set(a) ^ set(b))) or 'in another order'} differ"
            )
        for key in a:
            _same(a[key], b[key], f"{at}.{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            raise AssertionError(f"{at}: {len(a)} entries against {len(b)}")
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            _same(one, other, f"{at}[{number}]")
    elif type(a) is not type(b) or a != b:
        raise AssertionError(f"{at}: {a!r} against {b!r}")
