"""Class-oriented relational self-distillation (CORSD, arXiv 2305.00918) for PyTorch classifiers.

import corsd
distiller = corsd.Distiller(net, stages="auto", num_classes=100)
out = distiller(images, labels)
out.loss.backward()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corsd.balanced import PlanBatches, balanced_plan, with_views
    from corsd.distiller import Distiller, Output
    from corsd.exits import EarlyExit, Exits
    from corsd.hub import DistilledNet
    from corsd.losses import Variant, Weights
    from corsd.pairs import TripletDataset, collate_triplets, triplet_plan
    from corsd.relational import RelationalDistiller, RelationalWeights
    from corsd.stages import find_stages

__version__ = "0.1.0"

__all__ = [
    "DistilledNet",
    "Distiller",
    "EarlyExit",
    "Exits",
    "Output",
    "PlanBatches",
    "RelationalDistiller",
    "RelationalWeights",
    "TripletDataset",
    "Variant",
    "Weights",
    "balanced_plan",
    "collate_triplets",
    "find_stages",
    "triplet_plan",
    "with_views",
]

# Modules are imported when a name is first used: the command line answers --help without torch.
_HOMES = {
    "PlanBatches": "balanced",
    "balanced_plan": "balanced",
    "with_views": "balanced",
    "DistilledNet": "hub",
    "Distiller": "distiller",
    "Output": "distiller",
    "EarlyExit": "exits",
    "Exits": "exits",
    "Variant": "losses",
    "Weights": "losses",
    "RelationalDistiller": "relational",
    "RelationalWeights": "relational",
    "TripletDataset": "pairs",
    "collate_triplets": "pairs",
    "triplet_plan": "pairs",
    "find_stages": "stages",
}


def __getattr__(name: str) -> Any:
    if name in {"baselines", "ensemble", "mixing", "relation", "rows", *_HOMES.values()}:
        return import_module(f"corsd.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"corsd.{_HOMES[name]}"), name)
