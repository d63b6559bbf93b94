"""Find the stages of a classifier and read their outputs as maps.

A stage is a named submodule whose output is a map (batch, channels, height, width), channels-last maps
(batch, height, width, channels), tokens (batch, tokens, channels) or vectors (batch, channels).  Shapes come
from dry runs on two image sizes: what changes with the height of the images is the height of a map, so that any
``nn.Module`` will do, on square and on other images.

    >>> from torchvision.models import resnet18
    >>> [stage.name for stage in find_stages(resnet18(), torch.zeros(2, 3, 64, 64))]
    ['layer1', 'layer2', 'layer3', 'layer4']
"""

import contextlib
import difflib
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from shared_core.ops.features import plain_module
from shared_core.ops.snapshot import Snapshot
from torch import Tensor, nn

from corsd.maps import LAYOUTS, Layout, Reading, as_map, read_layout


class Stage(NamedTuple):
    """A place in the net where relations are read; see :func:`corsd.maps.as_map` for ``grid`` and ``prefix``."""

    name: str
    channels: int
    layout: Layout
    shape: tuple[int, ...]
    grid: tuple[int, int] | None = None
    prefix: int = 0

    def map(self, feature: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch channels height width"]:
        """An output of this stage as a channels-first map."""
        return as_map(feature, self.layout, self.grid, self.prefix)


class _Seen(NamedTuple):
    name: str
    shape: tuple[int, ...]
    taller: tuple[int, ...] | None


def find_stages(
    net: nn.Module,
    example: Float[Tensor, "batch ..."],
    names: Sequence[str] | str = "auto",
    layout: Layout | Mapping[str, Layout] | None = None,
    prefix_tokens: int | None = None,
) -> list[Stage]:
    """The stages of ``net``, shallow to deep, with channels and layout read off dry runs on ``example``.

    "auto" takes, for a net that shrinks its maps, the last module of its trunk at each of the (up to four)
    smallest sizes, and for a net of equal blocks, such as a vision transformer, four blocks at even distances.
    Both must hold a sixth of the net's modules, so that no stem or part of a block is taken for them.

    Args:
        layout: what the dry runs cannot tell, for all stages or by name: "map" (channels first), "map_last",
            "tokens" or "vector".
        prefix_tokens: class and register tokens before the patch tokens, where they cannot be counted.

    Raises:
        ValueError: a name is not a submodule (close names are listed), was not called, gives no tensor, or has
            an output whose axes are ambiguous.
    """
    net = plain_module(net)
    _check_wishes(layout, prefix_tokens)
    if isinstance(net, torch.jit.ScriptModule):
        raise TypeError(
            "net is TorchScript, whose submodules do not run in Python: give the nn.Module it was made from"
        )
    if prefix_tokens is None and isinstance(getattr(net, "num_prefix_tokens", None), int):
        prefix_tokens = net.num_prefix_tokens  # pyright: ignore[reportAssignmentType]
    seen = _dry_runs(net, example)
    size = (int(example.shape[-2]), int(example.shape[-1])) if example.dim() == 4 else None

    def reading(module: _Seen) -> Reading | str:
        wish = layout.get(module.name) if isinstance(layout, Mapping) else layout
        return read_layout(module.shape, module.taller, size, wish, prefix_tokens)

    if isinstance(names, str):
        if names != "auto":
            raise ValueError(f'stages={names!r}: give a list of submodule names, or "auto"')
        names = _choose(net, seen, {module.name: reading(module) for module in seen})
    found = {module.name: module for module in seen}
    known = dict(net.named_modules(remove_duplicate=False))
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=5)
            raise ValueError(
                f"the net has no submodule {name!r}; "
                + (f"close names: {', '.join(close)}; " if close else "")
                + f"stages that can be read: {', '.join(_readable(found))}"
            )
        if name not in found:
            raise ValueError(
                f"submodule {name!r} gave no single tensor in a forward pass, so it cannot be a stage; "
                f"stages that can be read: {', '.join(_readable(found))}"
            )
    unknown = sorted(set(layout) - set(names)) if isinstance(layout, Mapping) else []
    if unknown:
        raise ValueError(
            f"layout names {', '.join(unknown)}, which are no stages; they are {', '.join(names)}"
        )
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"stages={list(names)}: name at least one stage, and none of them twice")
    order = {module.name: position for position, module in enumerate(seen)}
    stages = []
    for name in sorted(names, key=order.__getitem__):
        read = reading(found[name])
        if isinstance(read, str):
            raise ValueError(
                f"stage {name!r} has an output of shape {found[name].shape}, and {read}: say what it is by "
                f"layout= (one of {', '.join(LAYOUTS)}) and prefix_tokens=, or name another submodule"
            )
        stages.append(Stage(name, read.channels, read.layout, found[name].shape, read.grid, read.prefix))
    return stages


def _check_wishes(layout: Layout | Mapping[str, Layout] | None, prefix_tokens: int | None) -> None:
    for wish in layout.values() if isinstance(layout, Mapping) else [layout]:
        if wish is not None and wish not in LAYOUTS:
            raise ValueError(f"layout={wish!r}; choose one of {', '.join(LAYOUTS)}")
    if prefix_tokens is not None and (isinstance(prefix_tokens, bool) or prefix_tokens < 0):
        raise ValueError(f"prefix_tokens={prefix_tokens}; give a number of tokens, from 0 up")


def _dry_runs(net: nn.Module, example: Tensor) -> list[_Seen]:
    """Every submodule with a single floating-point output, in the order in which they finish.

    The second run sees images of twice the height.  A net that cannot take them ends it early; what ran until
    then is known all the same.
    """
    shapes = _dry_run(net, example)
    taller: dict[str, tuple[int, ...]] = {}
    if example.dim() == 4 and any(len(shape) in (3, 4) for shape in shapes.values()):
        # Whatever a net of one size says to another size.
        with contextlib.suppress(Exception):
            _dry_run(net, torch.cat([example, example], 2), taller)
    return [_Seen(name, shape, taller.get(name)) for name, shape in shapes.items()]


def _dry_run(
    net: nn.Module, example: Tensor, seen: dict[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[int, ...]]:
    seen = {} if seen is None else seen
    hooks = []

    def watch(name: str):
        def hook(_module, _inputs, output):
            if isinstance(output, Tensor) and output.is_floating_point() and output.dim() in (2, 3, 4):
                seen.pop(name, None)
                seen[name] = tuple(output.shape)

        return hook

    # Flags only, and no call of eval() and train(): some layers act there (LoRA merges its weights).
    modes = {module: module.training for module in net.modules()}
    before = Snapshot(net)
    try:
        for name, module in net.named_modules(remove_duplicate=False):
            if name:
                hooks.append(module.register_forward_hook(watch(name)))
        for module in modes:
            module.training = False
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A copy, because a net may work in place on what it is given.
            net(example.clone())
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
        before.restore()
    return seen


def _choose(net: nn.Module, seen: list[_Seen], readings: Mapping[str, Reading | str]) -> list[str]:
    levels: dict[str, dict[tuple[int, ...], str]] = {}
    children: dict[str, list[str]] = {}
    for module in seen:
        read = readings[module.name]
        if isinstance(read, str) or read.layout not in ("map", "map_last"):
            continue
        # What does not grow with the images comes after the pooling, as a head of 1 x 1 convolutions.
        if _is_pool(net.get_submodule(module.name)) or module.shape == module.taller:
            continue
        size = module.shape[2:] if read.layout == "map" else module.shape[1:3]
        parent = module.name.rpartition(".")[0]
        children.setdefault(parent, []).append(module.name)
        last = levels.setdefault(parent, {})
        last.pop(size, None)
        last[size] = module.name
    # The trunk is the container whose children have the most sizes; inside a stage there is only one or two.
    large = [sizes for parent, sizes in levels.items() if _is_large(children[parent], seen)]
    trunk = max(large, key=len, default={})
    if len(trunk) > 1:
        return list(trunk.values())[-4:]
    chain = _longest_chain([m for m in seen if not isinstance(readings[m.name], str)], seen)
    if len(chain) < 2:
        names = _readable({m.name: None for m in seen})
        raise ValueError('no stages found by "auto"; name them: ' + ", ".join(names))
    wanted = min(4, len(chain))
    return [chain[round((i + 1) * len(chain) / wanted) - 1] for i in range(wanted)]


def _longest_chain(read: list[_Seen], seen: list[_Seen]) -> list[str]:
    """Names of the most numerous brothers with outputs of one shape: the blocks of a transformer or an MLP."""
    chains: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for module in read:
        chains.setdefault((module.name.rpartition(".")[0], module.shape), []).append(module.name)
    return max((names for names in chains.values() if _is_large(names, seen)), key=len, default=[])


def _is_large(names: list[str], seen: list[_Seen]) -> bool:
    """Whether a sixth of the net or more lies in these modules: a stem, or a block's layers, are no trunk."""
    within = tuple(f"{name}." for name in names)
    return 6 * sum(f"{module.name}.".startswith(within) for module in seen) >= len(seen)


def _is_pool(module: nn.Module) -> bool:
    return "pool" in type(module).__name__.lower()


def _readable(names: Mapping[str, object]) -> list[str]:
    """Names to offer: the shallowest levels of the net first, at most thirty."""
    return sorted(names, key=lambda name: name.count("."))[:30]
