"""Capture the outputs of named submodules while a network runs.

    >>> capture = FeatureCapture(net, ["layer1", "layer2"])
    >>> with capture:
    ...     logits = net(images)
    >>> features = capture.pop()        # {"layer1": ..., "layer2": ...}

The network is changed only inside the `with`: no hook, module or tensor stays behind.
"""

import difflib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from torch import Tensor, nn


class _Kept(NamedTuple):
    """An output as `forward` returned it.

    `version` and `values` tell whether something wrote into `output` since: `values` is a copy, or None where
    earlier passes showed that nothing does; `version` is None where there is none to compare.
    """

    output: Tensor
    version: int | None
    values: Tensor | None
    cut_off: bool


class FeatureCapture:
    """Records the output of the named submodules of `net` for calls inside the `with` block.

    What is recorded is what a submodule's `forward` returns, before any forward hook of its own and before an
    in-place layer behind it overwrites that.  If it runs more than once inside the block, the last output is
    kept.  `net` may be inside DistributedDataParallel, under autocast, or compiled, by `net.compile()` or
    `torch.compile(net)`; names are those of the plain net.  The capture can be copied and pickled with the net.

    Raises ValueError for a name that is not a submodule, TypeError if a submodule is TorchScript or (in the call
    of the net) returns something other than one tensor, and RuntimeError if one never ran (in `pop`) or ran where
    no gradient can reach it (inside of a reentrant activation checkpoint).
    """

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        self.names = list(names)
        self._store: dict[str, _Kept] = {}
        # Per situation (training mode, gradients): the submodules whose output nothing overwrites.
        self._safe: dict[tuple[bool, bool], set[str]] = {}
        self._situation = (False, False)
        self._unwatched: set[str] = set()
        self._net = plain_module(net)
        self._modules = _named_modules(self._net, self.names)
        self._recorders: list[Callable[..., Tensor]] = []
        self._own_forwards: list[Callable[..., Any] | None] = []
        self._active = False

    def __getstate__(self) -> dict[str, Any]:
        # Recorders belong to the modules that they were made for: a copy makes its own.
        fresh = {"_store": {}, "_recorders": [], "_own_forwards": [], "_active": False}
        return {**vars(self), **fresh}

    def __enter__(self) -> "FeatureCapture":
        if self._active:
            raise RuntimeError("this FeatureCapture is already active: leave the first `with` block")
        self._store.clear()
        self._situation = (self._net.training, torch.is_grad_enabled())
        self._unwatched.clear()
        self._unwatched.update(self._safe.get(self._situation, ()))
        # Usually None: `forward` is the class's.  Others (accelerate) put one into the module as well.
        own_forwards = [vars(module).get("forward") for module in self._modules]
        if not self._recorders or own_forwards != self._own_forwards:
            # Kept over `with` blocks, because compiled code is compiled anew for each new function.
            self._own_forwards = own_forwards
            self._recorders = [
                _recorder(self._store, self._unwatched, name, module)
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
        kept = {name: self._store[name] for name in self.names}
        self._store.clear()
        return {name: self._as_returned(name, one) for name, one in kept.items()}

    def _as_returned(self, name: str, kept: _Kept) -> Tensor:
        """The tensor itself if nothing wrote into it, so that copying leaves no trace in the numbers."""
        untouched = kept.version is not None and kept.output._version == kept.version
        if untouched:
            self._safe.setdefault(self._situation, set()).add(name)
        feature = kept.output if untouched else kept.values
        if feature is None:
            self._safe.clear()
            raise RuntimeError(
                f"something wrote into the output of {name!r} in this pass and not in the one before, which "
                "was not expected: what forward returned is lost; call the net again"
            )
        if kept.cut_off and self._situation[1] and not feature.requires_grad and _learns(self._net):
            raise RuntimeError(
                f"module {name!r} runs inside of an activation checkpoint with use_reentrant=True, where no "
                "gradient reaches its output: use torch.utils.checkpoint with use_reentrant=False, or name the "
                "module that is checkpointed as a whole"
            )
        return feature


def plain_module(net: nn.Module) -> nn.Module:
    """The network inside of the wrappers of `torch.compile`, DistributedDataParallel and DataParallel."""
    while True:
        if isinstance(net, nn.parallel.DistributedDataParallel | nn.DataParallel):
            net = net.module
        elif type(net).__name__ == "OptimizedModule":  # its home, torch._dynamo, takes seconds to import
            net = net.get_submodule("_orig_mod")
        else:
            return net


def _recorder(
    store: dict[str, _Kept], unwatched: set[str], name: str, module: nn.Module
) -> Callable[..., Tensor]:
    forward = module.forward

    def record(*args: Any, **kwargs: Any) -> Tensor:
        output = forward(*args, **kwargs)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"module {name!r} returns a {type(output).__name__}, not one tensor: "
                "capture a module inside it that does"
            )
        # Compiled code and inference tensors keep no version.
        if torch.compiler.is_compiling() or output.is_inference():
            store[name] = _Kept(output, None, output.clone(), False)
        else:
            values = None if name in unwatched else output.clone()
            cut_off = not torch.is_grad_enabled() and _in_reentrant_checkpoint()
            store[name] = _Kept(output, output._version, values, cut_off)
        return output

    return record


def _in_reentrant_checkpoint() -> bool:
    code = torch.utils.checkpoint.CheckpointFunction.forward.__code__
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


def _learns(net: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in net.parameters())


def _named_modules(net: nn.Module, names: list[str]) -> list[nn.Module]:
    if isinstance(net, torch.jit.ScriptModule):
        raise TypeError(
            "net is TorchScript, whose submodules do not run in Python: give the nn.Module it was made from"
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
        if isinstance(modules[name], torch.jit.ScriptModule):
            raise TypeError(
                f"submodule {name!r} is TorchScript, which does not run in Python: name a module around it"
            )
    chosen = [modules[name] for name in names]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"names {names} has two names of one shared module: capture it under one of them")
    return chosen
