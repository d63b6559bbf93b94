"""A light-weight calibrator in front of a frozen classifier (arXiv 1911.12796), for PyTorch.

import calib
model = calib.attach(classifier, calib.Calibrator(channels=3, epsilon=0.2), value_range=(0.0, 1.0))
report = calib.adapt(model, source=source_loader, target=target_loader)
model(images); model.verify()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calib.adaptation import AdaptReport, adapt
    from calib.attachment import CalibratedClassifier, ClassifierChangedError, attach
    from calib.blackbox import distil_surrogate
    from calib.calibrator import Calibrator, value_range_of
    from calib.classifiers import Normalized, OnnxClassifier, open_classifier
    from calib.critics import FeatureCritic, PixelCritic, PixelwiseFeatureCritic
    from calib.losses import calibrator_loss, critic_loss
    from calib.neighbours import Neighbours
    from calib.step import Critics, Weights
    from calib.views import Views

__version__ = "0.1.0"

__all__ = [
    "AdaptReport",
    "CalibratedClassifier",
    "Calibrator",
    "ClassifierChangedError",
    "Critics",
    "FeatureCritic",
    "Neighbours",
    "Normalized",
    "OnnxClassifier",
    "PixelCritic",
    "PixelwiseFeatureCritic",
    "Views",
    "Weights",
    "adapt",
    "attach",
    "calibrator_loss",
    "critic_loss",
    "distil_surrogate",
    "open_classifier",
    "value_range_of",
]

# Modules are imported when a name is first used: the command line answers --help without torch.
_HOMES = {
    "AdaptReport": "adaptation",
    "adapt": "adaptation",
    "CalibratedClassifier": "attachment",
    "ClassifierChangedError": "attachment",
    "attach": "attachment",
    "distil_surrogate": "blackbox",
    "Normalized": "classifiers",
    "OnnxClassifier": "classifiers",
    "open_classifier": "classifiers",
    "Calibrator": "calibrator",
    "value_range_of": "calibrator",
    "FeatureCritic": "critics",
    "PixelCritic": "critics",
    "PixelwiseFeatureCritic": "critics",
    "calibrator_loss": "losses",
    "critic_loss": "losses",
    "Neighbours": "neighbours",
    "Critics": "step",
    "Views": "views",
    "Weights": "step",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"calib.{_HOMES[name]}"), name)
