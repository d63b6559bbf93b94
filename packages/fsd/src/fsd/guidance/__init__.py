"""Score distillation methods in one frame."""

from fsd.guidance.frame import Guidance, Guided, View
from fsd.guidance.methods import (
    METHODS,
    AnnealedScoreDistillation,
    ClassifierScoreDistillation,
    ConsistentFlowDistillation,
    FlowScoreDistillation,
    IntervalScoreMatching,
    InversionScoreDistillation,
    NoiseFreeScoreDistillation,
    ScoreDistillation,
    VariationalScoreDistillation,
)

__all__ = [
    "METHODS",
    "AnnealedScoreDistillation",
    "ClassifierScoreDistillation",
    "ConsistentFlowDistillation",
    "FlowScoreDistillation",
    "Guidance",
    "Guided",
    "IntervalScoreMatching",
    "InversionScoreDistillation",
    "NoiseFreeScoreDistillation",
    "ScoreDistillation",
    "VariationalScoreDistillation",
    "View",
]
