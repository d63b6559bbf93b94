"""The device that a run was told to use."""

import torch


def choose_device(name: str) -> torch.device:
    """ "auto" is the first GPU, if there is one.  Raises ValueError for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} is not here ({first}); choose auto or cpu") from error


def means_cpu(name: str) -> bool:
    """Whether a device's name comes to the CPU here.

    Accelerate has to be told: without a GPU, and not told, it takes each process of a torchrun for the only one.
    """
    return name == "cpu" or (
        name == "auto" and not (torch.cuda.is_available() or torch.backends.mps.is_available())
    )
