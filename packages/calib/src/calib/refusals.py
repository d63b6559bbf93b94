"""What :func:`calib.adapt` refuses before it looks at any data: arguments that cannot be, or not together."""

from shared_core.run.processes import PRECISION

from calib import validators
from calib.step import Weights


def check_arguments(
    compat: str,
    selection: str,
    schedule: str,
    precision: str,
    steps: int,
    batch_size: int,
    accumulate: int,
    world: int,
) -> None:
    """Raises ValueError for an unknown name, numbers that do not divide, or what fp16 cannot do."""
    named = {
        "compat": (compat, ("none", "released")),
        "selection": (selection, validators.NAMES),
        "schedule": (schedule, ("constant", "cosine")),
        "precision": (precision, tuple(PRECISION)),
    }
    for name, (given, allowed) in named.items():
        if given not in allowed:
            raise ValueError(f"{name} is {given!r}; choose {', '.join(allowed)}")
    if steps < 1 or accumulate < 1 or batch_size % (accumulate * world) or batch_size < 1:
        raise ValueError(
            f"steps={steps}, batch_size={batch_size}, accumulate={accumulate} on {world} processes: give 1 or more, "
            "and a batch size that they divide"
        )
    if precision == "fp16" and accumulate > 1:
        raise ValueError(
            "fp16 scales its loss anew after each player's step, which accumulate above 1 shares: use bf16"
        )


def check_released(mode: str, weights: Weights) -> None:
    """Raises ValueError for half of the released code's faults, which would be neither its figures nor ours."""
    if mode != "released":
        raise ValueError(
            "compat 'released' is the released code as it is, whose correction only brightens: build the calibrator "
            f"with mode='released' (it has {mode!r})"
        )
    if weights.name_classes():
        raise ValueError(
            "compat 'released' is the released code as it is: leave weights.views and weights.hold 0"
        )
