"""The device that a run was told to use, and whether it has processes beside it."""

import os

import torch

from shared_core.run.config import ConfigError


def one_process(command: str) -> None:
    """Raises ConfigError if torchrun started several processes of a command that trains in one."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1":
        raise ConfigError(
            f"{command} trains in one process, and here are {world} (WORLD_SIZE): start it without torchrun"
        )


def choose_device(name: str) -> torch.device:
    """ "auto" is the first GPU, if there is one.  Raises ValueError for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} is not here ({first}); choose auto or cpu") from error
