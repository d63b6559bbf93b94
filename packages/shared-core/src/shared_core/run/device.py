"""The device that a run was told to use."""

import torch


def choose_device(name: str) -> torch.device:
    """ "auto" is the first CUDA GPU, if there is one, else the CPU; "mps" wants to be named.

    Raises ValueError for a device that is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} is not here ({first}); choose auto or cpu") from error
