"""The door of :func:`calib.adapt`: arguments of another kind or outside of their range are refused by name.

What arguments cannot be together is in :mod:`calib.refusals`, what data cannot be in :mod:`calib.domains`.
"""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from calib.attachment import CalibratedClassifier
from calib.neighbours import Neighbours
from calib.step import Critics, Weights
from calib.views import Views

KINDS = {"weights": Weights, "views": Views, "neighbours": Neighbours, "critics": Critics}
COUNTS = {
    **dict.fromkeys(("steps", "batch_size", "accumulate", "patch", "patches", "feature_stride"), 1),
    **dict.fromkeys(("validate_every", "validation_images", "log_every", "checkpoint_every"), 1),
    **dict.fromkeys(("workers", "seed"), 0),
}
"""Whole numbers, and the least that each may be."""
RATES = ("learning_rate", "critic_learning_rate")


def check_adapt(model: Any, given: Mapping[str, Any]) -> None:
    """Raises TypeError or ValueError for a model or an argument that :func:`calib.adapt` cannot take."""
    if not isinstance(model, CalibratedClassifier):
        raise TypeError(
            f"model is a {type(model).__name__}; give what calib.attach(classifier, calibrator) returned"
        )
    for name, kind in KINDS.items():
        if given[name] is not None and not isinstance(given[name], kind):
            raise TypeError(
                f"{name} is a {type(given[name]).__name__}; give a calib.{kind.__name__}(...) or None"
            )
    for name, least in COUNTS.items():
        value = given[name]
        # Of these three `refusals` says what they may be, together.
        bounded = name not in ("steps", "batch_size", "accumulate")
        if isinstance(value, bool) or not hasattr(value, "__index__") or (bounded and value < least):
            raise ValueError(f"{name} is {value!r}; give a whole number from {least} up")
    for name in RATES:
        value = given[name]
        if value is None and name != "learning_rate":
            continue
        if not _is_number(value) or not value > 0:
            raise ValueError(f"{name} is {value!r}; give a number above 0")
    for name in ("weight_decay", "source_tolerance"):
        value = given[name]
        # Without a bound on what the source may lose the tolerance is infinite.
        if not ((_is_number(value) or value == math.inf) and value >= 0):
            raise ValueError(f"{name} is {value!r}; give a number from 0 up")
    betas, ema = given["betas"], given["ema"]
    pair = isinstance(betas, tuple | list) and len(betas) == 2
    if not pair or not all(_is_number(beta) and 0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas is {betas!r}; give two numbers in [0, 1), such as (0.9, 0.999)")
    if ema is not None and not (_is_number(ema) and 0 <= ema < 1):
        raise ValueError(f"ema is {ema!r}; give a decay in [0, 1), or None for no average")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
