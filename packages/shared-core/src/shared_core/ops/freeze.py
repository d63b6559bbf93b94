"""Freeze a module, and prove by checksum that its parameters and buffers did not change.

>>> freeze(classifier)
>>> before = checksums(classifier)
...                                             # train something in front of it
>>> changed(before, checksums(classifier))      # [], or the names that differ
"""

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def freeze(module: nn.Module) -> None:
    """Eval mode, and `requires_grad` False for all parameters.

    Neither stops a module from writing to its own buffers or a caller from switching back: see `checksums`.
    """
    module.eval()
    # One by one: TorchScript has no requires_grad_ of its own.
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def modes(module: nn.Module) -> dict[str, bool]:
    """Which of its parts are in training mode, by name; for `restore_modes`."""
    # A frozen TorchScript has no mode.
    return {name: part.training for name, part in module.named_modules() if hasattr(part, "training")}


def restore_modes(module: nn.Module, before: Mapping[str, bool]) -> None:
    """Every part back in the mode that `modes` noted, by its own train(), in which some layers act (LoRA merges).

    Parents come first, since their train() reaches their children; what is right already is left alone.
    """
    for name, part in module.named_modules():
        if name in before and part.training != before[name]:
            part.train(before[name])
            # Set by hand before, against its own train().
            if part.training != before[name]:
                part.training = before[name]


def checksums(module: nn.Module) -> dict[str, str]:
    """SHA-256 (hex) of the type, shape and bytes of every parameter and buffer, by its name.

    Buffers count whether or not they are persistent, and so does what `state_dict` holds beyond them: extra
    states, the packed weights of a quantised module.  Of TorchScript all stored data count, which also finds
    packed weights and the constants of `torch.jit.freeze`; their names hold within one process.

    Tensors kept as plain attributes do not count: a module may use them as a cache.  The device does not
    enter, nor does the order of bytes in memory (strides).

    Raises ValueError for a tensor without values (on the meta device, or a lazy one before its first call),
    TypeError for an extra state that cannot be pickled.
    """
    found: dict[str, Any] = dict(module.named_parameters(remove_duplicate=False))
    found |= dict(module.named_buffers(remove_duplicate=False))
    found |= {name: value for name, value in module.state_dict().items() if name not in found}
    found |= _torchscript(module)
    return {name: _checksum(name, value) for name, value in found.items()}


def digest(sums: Mapping[str, str]) -> str:
    """One SHA-256 (hex) of all names and checksums; the order of the mapping does not matter."""
    return hashlib.sha256(json.dumps(sorted(sums.items())).encode()).hexdigest()


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The names whose checksums differ, or that only one of the two has, sorted."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def _torchscript(module: nn.Module) -> dict[str, bytes]:
    """The raw data that each outermost TorchScript module would be saved with."""
    found: dict[str, bytes] = {}
    done: tuple[str, ...] = ()
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule) and not name.startswith(done):
            done = (*done, f"{name}." if name else "")
            with zipfile.ZipFile(io.BytesIO(part.save_to_buffer())) as archive:
                for entry in archive.namelist():
                    folder, _, file = entry.partition("/")[2].partition("/")
                    if folder in ("data", "constants") and file:
                        found[f"{name or 'torchscript'}:{folder}/{file}"] = archive.read(entry)
    return found


def _checksum(name: str, value: Any) -> str:
    total = hashlib.sha256()
    try:
        for chunk in _chunks(value):
            # The length keeps neighbours apart: "ab" + "c" is not "a" + "bc".
            total.update(len(chunk).to_bytes(8, "little"))
            total.update(chunk)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise TypeError(f"{name} has a state of type {type(value).__name__} that cannot be read") from error
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error
    return total.hexdigest()


def _chunks(value: Any) -> Iterator[bytes | memoryview]:
    yield type(value).__name__.encode() if not isinstance(value, Tensor) else b"Tensor"
    if isinstance(value, Tensor):
        yield from _tensor_chunks(value)
    elif isinstance(value, Mapping):
        yield str(len(value)).encode()
        for key, inner in value.items():
            yield from _chunks(key)
            yield from _chunks(inner)
    elif isinstance(value, list | tuple):
        yield str(len(value)).encode()
        for inner in value:
            yield from _chunks(inner)
    elif isinstance(value, torch.ScriptObject):
        yield from _chunks(value.__getstate__())
    elif isinstance(value, bytes | bytearray):
        yield bytes(value)
    elif value is None or isinstance(value, str | int | float | complex | torch.dtype | torch.device):
        yield repr(value).encode()
    else:
        yield pickle.dumps(value)


def _tensor_chunks(tensor: Tensor) -> Iterator[bytes | memoryview]:
    if is_lazy(tensor):
        raise ValueError("is not initialised yet: call the module once, or load its weights")
    if tensor.is_meta:
        raise ValueError("is on the meta device and has no values: load its weights first")
    yield f"{tensor.dtype} {tuple(tensor.shape)} {tensor.layout}".encode()
    if hasattr(tensor, "__tensor_flatten__"):
        names, context = cast(Any, tensor).__tensor_flatten__()
        yield repr(context).encode()
        for name in names:
            yield from _chunks(getattr(tensor, name))
    elif tensor.is_quantized:
        yield str(tensor.qscheme()).encode()
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            yield repr((tensor.q_scale(), tensor.q_zero_point())).encode()
        else:
            yield repr(tensor.q_per_channel_axis()).encode()
            yield from _tensor_chunks(tensor.q_per_channel_scales())
            yield from _tensor_chunks(tensor.q_per_channel_zero_points())
        yield from _tensor_chunks(tensor.int_repr())
    else:
        plain = tensor.detach()
        if plain.layout is not torch.strided:
            plain = plain.to_dense()
        plain = plain.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        # As bytes: numpy has no bfloat16.
        yield memoryview(cast(Any, plain.view(torch.uint8).numpy()))
