"""A pipeline of our own that shares its weights with the caller's, so that the caller's stays as it is.

Freezing, eval mode, attention processors, slicing, LoRA layers and moves to a device or type act on the copy alone. Its
parameters are frozen views of the same memory: a copy takes no memory for weights, and sees changes made in place.

    >>> own = own_copy(pipeline)
    >>> own.unet.conv_in.weight.data_ptr() == pipeline.unet.conv_in.weight.data_ptr()
    True
"""

import copy
import warnings
from typing import Any

from torch import Tensor, nn


def own_copy(pipeline: Any) -> Any:
    """Return the pipeline with networks of its own in eval mode, frozen, on the same weights.

    Raises ValueError for a network that cannot be copied, such as one with offloading hooks.
    """
    nets = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    memo: dict[int, Any] = {}
    for net in nets.values():
        for parameter in net.parameters():
            # Quantised parameters are of other classes and know themselves how they are copied.
            if type(parameter) is nn.Parameter:
                memo.setdefault(id(parameter), nn.Parameter(parameter.detach(), requires_grad=False))
        for buffer in net.buffers():
            if type(buffer) is Tensor:
                memo.setdefault(id(buffer), buffer.detach())
    own = copy.copy(pipeline)
    for name, net in nets.items():
        try:
            copied = copy.deepcopy(net, memo)
        except Exception as error:
            raise ValueError(
                f"the {name} of the pipeline cannot be copied ({type(error).__name__}: {error}). If it is offloaded, "
                "call pipeline.remove_all_hooks(), or open its folder with from_pretrained(..., offload=True)"
            ) from error
        _warn_of_compiled(name, net)
        vars(own)[name] = copied.requires_grad_(False).eval()
    return own


def _warn_of_compiled(name: str, net: nn.Module) -> None:
    """torch copies `torch.compile(net)` with its settings, but not what `net.compile()` left behind."""
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in net.modules()):
        warnings.warn(
            f"the {name} of the pipeline is compiled in place, which is lost in the prior's copy: it runs uncompiled. "
            f"Give pipeline.{name} = torch.compile(pipeline.{name}), or call prior.pipeline.{name}.compile()",
            stacklevel=4,
        )
