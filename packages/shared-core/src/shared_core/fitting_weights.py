"""Weights from a safetensors file into a network: all of them, or all but the last layer on request.

A file that fits only in part is refused with the names of what does not fit, because a layer without its weights
would go on with random ones.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_HEADS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_COUNTER = "num_batches_tracked"


def load_weights(net: nn.Module, path: str | os.PathLike[str], new_head: bool = False) -> list[str]:
    """Loads safetensors into `net`; returns the names of what kept its first value: nothing, or the new head.

    With `new_head` the last layer keeps its first values, whatever the file holds there: of other classes, another
    number of them, or nothing.  Wrappers in front of all names are taken off: `module.` (data-parallel, averaged)
    and `_orig_mod.` (compiled).  Numbers are brought to the net's floating type.

    Raises ValueError if the file is no safetensors file, lacks weights of the net or holds others, by name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = Path(path).expanduser()
    if not place.is_file():
        raise ValueError(f"there is no weights file {path}")
    try:
        found = load_file(place)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}); weights of other kinds may hold code and are not read: "
            "save them with safetensors.torch.save_file(net.state_dict(), ...)"
        ) from error
    own = {key: value for key, value in net.state_dict().items() if isinstance(value, Tensor)}
    if found.keys() != own.keys():
        found = _renamed(found, own)
    missing, unexpected, other = _differences(own, found)
    fresh = _head(net, own, found, other) if new_head else []
    spared = tuple(f"{layer}." for layer in fresh)
    missing, unexpected, other = (
        [key for key in keys if not key.startswith(spared)] for keys in (missing, unexpected, other)
    )
    if missing or unexpected or other:
        raise ValueError(_sentence(path, own, found, missing, unexpected, other, new_head))
    usable = {key: value for key, value in found.items() if key in own and not key.startswith(spared)}
    net.load_state_dict(usable, strict=False)
    return [key for key in own if key.startswith(spared)] if spared else []


def _differences(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> tuple[list[str], list[str], list[str]]:
    """Names that the file lacks, that the net lacks, and of another shape or kind, in the net's order."""
    shared = {_memory(own[key]) for key in own if key in found} - {None}
    missing = [
        key
        for key in own
        # Tied weights are saved under one of their names; a counter is no weight, and old files lack it.
        if key not in found and _memory(own[key]) not in shared and not key.endswith(_COUNTER)
    ]
    unexpected = [key for key in found if key not in own]
    return missing, unexpected, [key for key in own if key in found and not _alike(own[key], found[key])]


def _alike(mine: Tensor, given: Tensor) -> bool:
    if is_lazy(mine):
        return True
    return mine.shape == given.shape and mine.is_floating_point() == given.is_floating_point()


def _memory(value: Tensor) -> tuple[int, torch.Size] | None:
    if is_lazy(value) or value.numel() == 0 or value.is_meta:
        return None
    return value.data_ptr(), value.shape


def _renamed(found: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors under names without the wrappers that the net does not have."""
    # A compiled part may stand anywhere in a name, and nobody else uses this word.
    changed = {key.replace("_orig_mod.", ""): value for key, value in found.items()}
    # torch's averaged model counts beside the weights.
    inner = {key: value for key, value in changed.items() if key != "n_averaged"}
    while inner and all(key.startswith("module.") for key in inner) and not own.keys() & inner.keys():
        inner = {key.removeprefix("module."): value for key, value in inner.items()}
        changed = inner
    plain = {key.replace("_orig_mod.", ""): key for key in own}
    return {plain.get(key, key): value for key, value in changed.items()}


def _outputs_only(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], other: Sequence[str]
) -> tuple[int, int] | None:
    """(outputs in the file, outputs of the net) if all of `other` differ in just this number, else None."""
    counts = set()
    for key in other:
        mine, given = own[key], found[key]
        if (
            0 in (mine.dim(), given.dim())
            or mine.shape[1:] != given.shape[1:]
            or mine.shape[0] == given.shape[0]
        ):
            return None
        counts.add((given.shape[0], mine.shape[0]))
    return counts.pop() if len(counts) == 1 else None


def _head(
    net: nn.Module, own: Mapping[str, Tensor], found: Mapping[str, Tensor], other: Sequence[str]
) -> list[str]:
    """Names of the layers that give the classes.

    Only layers behind which nothing comes can differ in their number of outputs alone: the next one would differ in
    its inputs.  Where none does, it is timm's `get_classifier`, or the layer that was added last.
    """
    if other and _outputs_only(own, found, other):
        return sorted({key.rpartition(".")[0] for key in other})
    layers = [name for name, module in net.named_modules() if isinstance(module, _HEADS)]
    named = getattr(net, "default_cfg", None) or {}
    known = named.get("classifier") if isinstance(named, dict) else None
    known = [known] if isinstance(known, str) else list(known or [])
    return [name for name in known if name in layers] or layers[-1:]


def _sentence(
    path: str | os.PathLike[str],
    own: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    other: list[str],
    new_head: bool,
) -> str:
    outputs = _outputs_only(own, found, other)
    if outputs and not missing and not unexpected and not new_head:
        return (
            f"{path} is of {outputs[0]} classes and the net of {outputs[1]}: {', '.join(other[:4])} would not be "
            f"loaded; give the net {outputs[0]} classes, or new_head to start with a fresh last layer"
        )
    shapes = [f"{key} {tuple(found[key].shape)} for {tuple(own[key].shape)}" for key in other]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
        for names, what in (
            (missing, "weights that the file lacks"),
            (unexpected, "that the net does not know"),
            (shapes, "of another shape or kind"),
        )
        if names
    ]
    end = "with new_head only the last layer may differ" if new_head else "nothing was loaded"
    return f"{path} does not fit the net: {'; '.join(faults)}; {end}: give the weights of this very net"
