"""Class-oriented relational self-distillation (CORSD, arXiv 2305.00918) for PyTorch classifiers.

import corsd
distiller = corsd.Distiller(net, stages="auto", num_classes=100)
out = distiller(images, labels)
out.loss.backward()
"""

from corsd.distiller import Distiller, Output
from corsd.exits import EarlyExit, Exits
from corsd.losses import Variant, Weights
from corsd.pairs import TripletDataset, collate_triplets, triplet_plan
from corsd.stages import find_stages

__version__ = "0.1.0"

__all__ = [
    "Distiller",
    "EarlyExit",
    "Exits",
    "Output",
    "TripletDataset",
    "Variant",
    "Weights",
    "collate_triplets",
    "find_stages",
    "triplet_plan",
]
