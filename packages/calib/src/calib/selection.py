"""Which calibrator of a run is kept: the best by a validator among those that spare the source domain."""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from shared_core.ops.host import read_back
from torch import Tensor, nn


class Selection:
    """The best calibrator seen so far.

    Args:
        by: the validator's name, or "last" for the newest one with finite answers.
        source_tolerance: points of source accuracy that may go; a calibrator that loses more is kept only as
            long as there is no other.
    """

    STATE = ("kept_before", "score", "step", "validators", "weights")

    def __init__(self, by: str, source_tolerance: float) -> None:
        self.by, self.source_tolerance = by, source_tolerance
        self.kept_before: float | None = None
        self.score: list[float] | None = None
        self.step = 0
        self.validators: dict[str, float] = {}
        self.weights: dict[str, Tensor] = {}

    def consider(self, step: int, validators: Mapping[str, float], calibrator: nn.Module) -> bool:
        """Take this calibrator if it is the best so far; the first one considered should be the identity.

        Raises ValueError for a validator that is not known: the sample was too small for it, or there is no critic.
        """
        if self.by != "last" and self.by not in validators:
            needs = "a critic" if self.by == "confusion" else "three or more target images to validate on"
            raise ValueError(
                f"selection is {self.by!r}, which needs {needs}: give that, or choose information, entropy or last"
            )
        if self.kept_before is None:
            self.kept_before = validators["source_kept"]
        if not all(math.isfinite(value) for value in validators.values()):
            # Answers that are no numbers, however high one validator is; only the first one stands till another comes.
            if self.score is not None:
                return False
            return self._take([-1.0, -math.inf], step, validators, calibrator)
        spares = validators["source_kept"] >= self.kept_before - self.source_tolerance
        score = [0.0, float(step)] if self.by == "last" else [float(spares), validators[self.by]]
        if self.score is not None and score <= self.score:
            return False
        return self._take(score, step, validators, calibrator)

    def _take(
        self, score: list[float], step: int, validators: Mapping[str, float], calibrator: nn.Module
    ) -> bool:
        self.score, self.step, self.validators = score, step, dict(validators)
        self.weights = {
            name: read_back(value, "the calibrator that is kept").clone()
            for name, value in calibrator.state_dict().items()
        }
        return True

    def state_dict(self) -> dict[str, Any]:
        """Everything but the rule, for the checkpoint."""
        return deepcopy({name: getattr(self, name) for name in self.STATE})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what `state_dict` gave.  Raises KeyError for the state of something else."""
        for name in self.STATE:
            setattr(self, name, deepcopy(state[name]))
