"""The baselines of a run, a row each: both accuracies, and what of the classifier was touched for them."""

import time
from typing import Any

import torch
from shared_core.data.arrays import ArrayImages
from shared_core.data.loader import test_loader
from torch.utils.data import Dataset

from calib.attachment import CalibratedClassifier
from calib.baselines import METHODS, Labelled, NotApplicableError, Settings, target_supervised
from calib.config import AdaptConfig
from calib.data import Domains
from calib.evaluate import both_domains


def baseline_rows(
    config: AdaptConfig, model: CalibratedClassifier, domains: Domains, seed: int, device: torch.device
) -> list[dict[str, Any]]:
    """A row for each baseline: both accuracies, and what of the model's classifier it touches."""
    if not config.baselines:
        return []
    source = Labelled(all_images(domains.source_train), labels_in(domains.source_train))
    target = all_images(domains.target_train)
    classifier = model.classifier
    settings = Settings(
        steps=config.steps,
        batch_size=config.batch_size,
        epsilon=config.epsilon,
        output=model.output,
        outputs=model.outputs,
    )
    rows: list[dict[str, Any]] = []
    for name in config.baselines:
        begun = time.perf_counter()
        try:
            if name == "target_supervised":
                bound = Labelled(target, labels_in(domains.target_train))
                adapted = target_supervised(classifier, bound, settings, seed)
            else:
                adapted = METHODS[name](classifier, source, target, settings, seed)
        except NotApplicableError as error:
            rows.append({"method": name, "not_applicable": str(error)})
            continue
        scores = {
            f"{domain}_after": scores["accuracy"]
            for domain, scores in both_domains(
                adapted.predict, domains.source_test, domains.target_test, domains.num_classes, device
            ).items()
        }
        seconds = time.perf_counter() - begun
        rows.append({"method": name, **scores, "touched": adapted.touched, "seconds": seconds})
    return rows


def all_images(dataset: Dataset) -> torch.Tensor:
    """All images of a data set, as bytes; of one in memory without a copy."""
    if isinstance(dataset, ArrayImages):
        return dataset.images
    return torch.cat([images for images, _ in test_loader(dataset, 500)])


def labels_in(dataset: Dataset) -> torch.Tensor:
    """All labels of a data set, in the order of `all_images`."""
    if isinstance(dataset, ArrayImages):
        return dataset.labels
    return torch.cat([labels for _, labels in test_loader(dataset, 500)])
