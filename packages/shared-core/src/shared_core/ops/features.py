"""Capture the outputs of named submodules while a network runs.

    >>> capture = FeatureCapture(net, ["layer1", "layer2"])
    >>> with capture:
    ...     logits = net(images)
    >>> features = capture.pop()        # {"layer1": ..., "layer2": ...}

The network is changed only inside the `with`: no hook, module or tensor stays behind.
"""

import difflib
from collections.abc import Sequence

from torch import Tensor, nn


class FeatureCapture:
    """Records the output tensor of each named submodule of `net` for calls inside the `with` block.

    If a module is called more than once inside the block, its last output is kept: a net called twice gives
    the features of the second call.

    Raises ValueError for a name that is not a submodule, TypeError (in the call of the net) if a module
    returns something other than one tensor, and RuntimeError (in `pop`) if a module was never called.
    """

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        self.names = list(names)
        self._modules = _named_modules(net, self.names)
        self._store: dict[str, Tensor] = {}
        self._handles: list = []

    def __enter__(self) -> "FeatureCapture":
        if self._handles:
            raise RuntimeError("this FeatureCapture is already active: leave the first `with` block")
        self._store.clear()
        self._handles = [
            module.register_forward_hook(_recorder(self._store, name))
            for name, module in zip(self.names, self._modules, strict=True)
        ]
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
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


def _recorder(store: dict[str, Tensor], name: str):
    def record(module: nn.Module, args: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"module {name!r} returns a {type(output).__name__}, not one tensor: "
                "capture a module inside it that does"
            )
        store[name] = output

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
    return [modules[name] for name in names]
