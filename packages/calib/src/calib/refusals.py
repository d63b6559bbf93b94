"""What :func:`calib.adapt` refuses before it looks at any data: arguments that cannot be, or not together."""

from accelerate import Accelerator
from shared_core.run.guard import FiniteGuard
from shared_core.run.processes import PRECISION
from torch import Tensor

from calib import validators
from calib.attachment import CalibratedClassifier, probe
from calib.features import Features
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


def try_out(
    model: CalibratedClassifier, features: Features | None, weights: Weights, images: Tensor
) -> Tensor | None:
    """The features of two images, None without.  Raises ValueError where the classifier cannot be used as asked."""
    found = probe(model, features, images) if features else None
    if weights.name_classes() and model.ask(images).dim() != 2:
        raise ValueError(
            "weights.views and weights.hold name one class an image, and this classifier answers per pixel: give 0"
        )
    return found


def accepted(guard: FiniteGuard, accelerator: Accelerator, step: int, parts: dict[str, Tensor]) -> bool:
    """Whether a step's parts are finite, under the guard's policy; to be asked once a step, with all of them."""
    # A loss scaler lets gradients overflow on purpose now and then, and leaves out such a step by itself.
    if accelerator.scaler is not None:
        parts = {name: part for name, part in parts.items() if not name.endswith("gradient_norm")}
    return guard.accepts(parts, step)
