"""Capture the outputs of named submodules while a network runs.

    >>> capture = FeatureCapture(net, ["layer1", "layer2"])
    >>> with capture:
    ...     logits = net(images)
    >>> features = capture.pop()        # {"layer1": ..., "layer2": ...}

The network is changed only inside the `with`: no hook, module or tensor stays behind.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn


class FeatureCapture:
    """Records the output of the named submodules of `net` for calls inside the `with` block.

    What is recorded is what a submodule's `forward` returns, before any forward hook of its own.  If it runs
    more than once inside the block, the last output is kept.  `net` may be inside DistributedDataParallel,
    under autocast, or compiled in place by `net.compile()`, before or after.

    Raises ValueError for a name that is not a submodule, TypeError (in the call of the net) if a submodule
    returns something other than one tensor, and RuntimeError (in `pop`) if one never ran.
    """

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        self.names = list(names)
        self._store: dict[str, Tensor] = {}
        self._modules = _named_modules(net, self.names)
        self._recorders: list[Callable[..., Tensor]] = []
        self._own_forwards: list[Callable[..., Any] | None] = []
        self._active = False

    def __enter__(self) -> "FeatureCapture":
        if self._active:
            raise RuntimeError("this FeatureCapture is already active: leave the first `with` block")
        self._store.clear()
        # Usually None: `forward` is the class's.  Others (accelerate) put one into the module as well.
        own_forwards = [vars(module).get("forward") for module in self._modules]
        if not self._recorders or own_forwards != self._own_forwards:
            # Kept over `with` blocks, because compiled code is compiled anew for each new function.
            self._own_forwards = own_forwards
            self._recorders = [
                _recorder(self._store, name, module)
                for name, module in zip(self.names, self._modules, strict=True)
            ]
        for module, recorder in zip(self._modules, self._recorders, strict=True):
            # In place of a hook: compiled code does not look whether hooks were added since
            # (torch._dynamo.config.skip_nnmodule_hook_guards), but it does look for a `forward` here.
            module.forward = recorder
        self._active = True
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for module, own_forward in zip(self._modules, self._own_forwards, strict=True):
            if own_forward is None:
                del module.forward
            else:
                module.forward = own_forward
        self._active = False
        if error is not None:
            self._store.clear()

    def pop(self) -> dict[str, Tensor]:
        """The captured outputs in the order of `names`; the store is empty afterwards."""
        missing = [name for name in self.names if name not in self._store]
        if missing:
            raise RuntimeError(
                f"no output of {', '.join(missing)} was captured: call the net inside the `with` block, "
                "and name only modules that its forward runs"
            )
        features = {name: self._store[name] for name in self.names}
        self._store.clear()
        return features


def _recorder(store: dict[str, Tensor], name: str, module: nn.Module) -> Callable[..., Tensor]:
    forward = module.forward

    def record(*args: Any, **kwargs: Any) -> Tensor:
        output = forward(*args, **kwargs)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"module {name!r} returns a {type(output).__name__}, not one tensor: "
                "capture a module inside it that does"
            )
        store[name] = output
        return output

    return record


def _named_modules(net: nn.Module, names: list[str]) -> list[nn.Module]:
    if hasattr(net, "_orig_mod"):
        raise ValueError(
            "net is the wrapper made by torch.compile(net): use net.compile() and give net itself"
        )
    if not names:
        raise ValueError("names is empty: give at least one submodule to capture")
    if len(set(names)) < len(names):
        raise ValueError(f"names {names} has an entry twice: each submodule is captured once")
    modules = dict(net.named_modules(remove_duplicate=False))
    modules.pop("")
    for name in names:
        if name not in modules:
            close = difflib.get_close_matches(name, modules, n=3)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            raise ValueError(f"net has no submodule {name!r}: {hint}the names are {', '.join(modules)}")
    chosen = [modules[name] for name in names]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"names {names} has two names of one shared module: capture it under one of them")
    return chosen
