"""The baselines of a run, a row each: both accuracies, and what of the classifier was touched for them."""

import time
from collections.abc import Sized
from typing import Any, cast

import torch
from shared_core.data.arrays import ArrayImages
from shared_core.data.loader import dealt_loader
from shared_core.ops.gather import everywhere, in_turn, rank, world_size
from torch.utils.data import Dataset

from calib.attachment import CalibratedClassifier
from calib.baselines import METHODS, Labelled, NotApplicableError, Settings, target_supervised
from calib.config import AdaptConfig
from calib.data import Domains
from calib.evaluate import both_domains


def baseline_rows(
    config: AdaptConfig, model: CalibratedClassifier, domains: Domains, seed: int, device: torch.device
) -> list[dict[str, Any]]:
    """A row for each baseline: both accuracies, and what of the model's classifier it touches.

    Of several processes each does every n-th baseline, and all get all rows: every process must call it.
    """
    if not config.baselines:
        return []
    source = Labelled(*all_items(domains.source_train, config.workers, shared=True))
    target = Labelled(*all_items(domains.target_train, config.workers, shared=True))
    settings = Settings(
        steps=config.steps,
        batch_size=config.batch_size,
        epsilon=config.epsilon,
        output=model.output,
        outputs=model.outputs,
    )

    def row(name: str) -> dict[str, Any]:
        begun = time.perf_counter()
        try:
            if name == "target_supervised":
                adapted = target_supervised(model.classifier, target, settings, seed)
            else:
                adapted = METHODS[name](model.classifier, source, target.images, settings, seed)
        except NotApplicableError as error:
            return {"method": name, "not_applicable": str(error)}
        tests = (domains.source_test, domains.target_test, domains.num_classes, device)
        evaluated = both_domains(adapted.predict, *tests, workers=config.workers)
        scores = {f"{domain}_after": found["accuracy"] for domain, found in evaluated.items()}
        seconds = time.perf_counter() - begun
        return {"method": name, **scores, "touched": adapted.touched, "seconds": seconds}

    dealt = everywhere(lambda: [row(name) for name in config.baselines[rank() :: world_size()]])
    return [dealt[n % len(dealt)][n // len(dealt)] for n in range(len(config.baselines))]


def all_items(dataset: Dataset, workers: int = 0, shared: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of a data set, as bytes, and all labels; of one in memory without a copy.

    With `shared` all processes must call it: each decodes batches in turn, and all get all of them.
    """
    if isinstance(dataset, ArrayImages):
        return dataset.images, dataset.labels
    part = (rank(), world_size()) if shared else (0, 1)
    mine = iter(dealt_loader(dataset, 500, workers, *part))
    count = -(-len(cast(Sized, dataset)) // 500)
    batches = list(in_turn(count, lambda _: next(mine)) if shared else mine)
    return torch.cat([images for images, *_ in batches]), torch.cat([labels for _, labels, *_ in batches])
