"""Find the stages of a classifier and read their outputs as maps.

A stage is a named submodule whose output is a map (batch, channels, height, width), channels-last maps
(batch, height, width, channels), tokens (batch, tokens, channels) or vectors (batch, channels).  Shapes come
from one dry run, so any ``nn.Module`` will do.

    >>> from torchvision.models import resnet18
    >>> [stage.name for stage in find_stages(resnet18(), torch.zeros(2, 3, 64, 64))]
    ['layer1', 'layer2', 'layer3', 'layer4']
"""

import difflib
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

Layout = Literal["map", "map_last", "tokens", "vector"]


class Stage(NamedTuple):
    """A place in the net where relations are read."""

    name: str
    channels: int
    layout: Layout
    shape: tuple[int, ...]


class _Seen(NamedTuple):
    name: str
    shape: tuple[int, ...]


def find_stages(
    net: nn.Module, example: Float[Tensor, "batch ..."], names: Sequence[str] | Literal["auto"] = "auto"
) -> list[Stage]:
    """The stages of ``net``, shallow to deep, with channels and layout read off a dry run on ``example``.

    "auto" takes, for a net that shrinks its maps, the last module of its trunk at each of the (up to four)
    smallest sizes, and for a net of equal blocks, such as a vision transformer, four blocks at even distances.

    Raises:
        ValueError: a name is not a submodule (close names are listed), was not called, or gives no tensor.
    """
    seen = _dry_run(net, example)
    if isinstance(names, str):
        if names != "auto":
            raise ValueError(f'stages={names!r}: give a list of submodule names, or "auto"')
        names = _choose(net, seen)
    shapes = {module.name: module.shape for module in seen}
    known = dict(net.named_modules())
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=5)
            raise ValueError(
                f"the net has no submodule {name!r}; "
                + (f"close names: {', '.join(close)}; " if close else "")
                + f"stages that can be read: {', '.join(_readable(shapes))}"
            )
        if name not in shapes:
            raise ValueError(
                f"submodule {name!r} gave no single tensor in a forward pass, so it cannot be a stage; "
                f"stages that can be read: {', '.join(_readable(shapes))}"
            )
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"stages={list(names)}: name at least one stage, and none of them twice")
    order = {module.name: position for position, module in enumerate(seen)}
    return [_stage(name, shapes[name]) for name in sorted(names, key=order.__getitem__)]


def as_map(
    feature: Float[Tensor, "batch ..."], layout: Layout
) -> Float[Tensor, "batch channels height width"]:
    """A stage's output as a channels-first map.

    Tokens become the largest square that they fill; what stands before it (class and register tokens) is
    averaged and added to every patch, because a transformer keeps its verdict there.
    """
    if layout == "map":
        return feature
    if layout == "map_last":
        return feature.permute(0, 3, 1, 2)
    if layout == "vector":
        return feature[:, :, None, None]
    side = math.isqrt(feature.shape[1])
    prefix = feature.shape[1] - side * side
    patches = feature[:, prefix:]
    if prefix:
        patches = patches + feature[:, :prefix].mean(1, keepdim=True)
    return patches.transpose(1, 2).unflatten(2, (side, side))


def _dry_run(net: nn.Module, example: Tensor) -> list[_Seen]:
    """Every submodule with a single floating-point output, in the order in which they finish."""
    seen: dict[str, _Seen] = {}
    hooks = []

    def watch(name: str):
        def hook(_module, _inputs, output):
            if isinstance(output, Tensor) and output.is_floating_point() and output.dim() in (2, 3, 4):
                seen.pop(name, None)
                seen[name] = _Seen(name, tuple(output.shape))

        return hook

    modes = {module: module.training for module in net.modules()}
    try:
        for name, module in net.named_modules():
            if name:
                hooks.append(module.register_forward_hook(watch(name)))
        net.eval()  # leaves the running statistics of batch norm alone
        with torch.no_grad():
            net(example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return list(seen.values())


def _choose(net: nn.Module, seen: list[_Seen]) -> list[str]:
    levels: dict[str, dict[tuple[int, ...], str]] = {}
    for module in seen:
        layout = _layout(module.shape)
        size = module.shape[2:] if layout == "map" else module.shape[1:3]
        if layout not in ("map", "map_last") or _is_pool(net.get_submodule(module.name)):
            continue
        last = levels.setdefault(module.name.rpartition(".")[0], {})
        last.pop(size, None)
        last[size] = module.name
    # The trunk is the container whose children have the most sizes; inside a stage there is only one or two.
    trunk = max(levels.values(), key=len, default={})
    if len(trunk) > 1:
        return list(trunk.values())[-4:]
    chain = _longest_chain(seen)
    if len(chain) < 2:
        raise ValueError('no stages found by "auto"; name them: ' + ", ".join(m.name for m in seen))
    wanted = min(4, len(chain))
    return [chain[round((i + 1) * len(chain) / wanted) - 1] for i in range(wanted)]


def _longest_chain(seen: list[_Seen]) -> list[str]:
    """Names of the most numerous brothers with outputs of one shape: the blocks of a transformer or an MLP."""
    chains: dict[tuple, list[str]] = {}
    for module in seen:
        chains.setdefault((module.name.rpartition(".")[0], module.shape), []).append(module.name)
    return max(chains.values(), key=len, default=[])


def _is_pool(module: nn.Module) -> bool:
    return "pool" in type(module).__name__.lower()


def _layout(shape: tuple[int, ...]) -> Layout:
    if len(shape) == 4:
        # Square maps tell their layout; where both readings fit, channels come first.
        return "map_last" if shape[1] == shape[2] != shape[3] else "map"
    return "tokens" if len(shape) == 3 else "vector"


def _stage(name: str, shape: tuple[int, ...]) -> Stage:
    layout = _layout(shape)
    return Stage(name, shape[1] if layout in ("map", "vector") else shape[-1], layout, shape)


def _readable(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Names to offer: the shallowest levels of the net first, at most thirty."""
    return sorted(shapes, key=lambda name: name.count("."))[:30]
