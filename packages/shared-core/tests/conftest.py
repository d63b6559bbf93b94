"""Shapes in the signatures are checked in all tests of this package; features.py stays plain for Dynamo."""

import os

import matplotlib
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")
matplotlib.use("Agg")

install_import_hook(
    [
        "shared_core.ops.divergence",
        "shared_core.ops.gather",
        "shared_core.data.augment",
        "shared_core.data.images",
        "shared_core.data.labels",
        "shared_core.data.sampling",
    ],
    "beartype.beartype",
)
