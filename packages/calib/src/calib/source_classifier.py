"""The classifier of a run: opened by its name with given weights, or trained on the source first.

>>> classifier = the_classifier(config, domains, seed=0, out=Path("runs/digits"), device=torch.device("cpu"))
"""

from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from shared_core.data.masks import ArrayMasks
from shared_core.run.processes import is_main
from shared_core.run.seal import check_seal, seal
from shared_core.run.weights import read_weights, save_weights
from torch import nn
from torch.utils.data import Dataset

from calib.classifiers import Normalized, open_classifier
from calib.config import AdaptConfig
from calib.data import Domains, normalization
from calib.segmentation import SegmenterSettings, tiny_segmenter, train_segmenter
from calib.streets import SceneFiles
from calib.supervised import train_classifier


def build_classifier(config: AdaptConfig, domains: Domains) -> nn.Module:
    """The classifier that a configuration names, of images in [0, 1], with given or first weights."""
    if config.classifier == "small:segmenter":
        if isinstance(domains.source_train, SceneFiles) and config.weights is None:
            raise ValueError(
                f"small:segmenter learns from images in memory, and {config.source} is read file by file: "
                "name a classifier of your own (file.py:function), or weights"
            )
        net: nn.Module = tiny_segmenter(domains.num_classes, domains.channels)
        if config.weights is not None:
            read_weights(net, config.weights)
        return net
    net = open_classifier(
        config.classifier, domains.num_classes, domains.channels, config.weights, config.pretrained
    )
    if config.classifier.endswith(".onnx"):
        return net
    return Normalized(net, *normalization(config, domains.channels))


def the_classifier(
    config: AdaptConfig, domains: Domains, seed: int, out: Path, device: torch.device
) -> nn.Module:
    """The deployed classifier; one without weights is trained on the source, once per run folder."""
    torch.manual_seed(seed)
    classifier = build_classifier(config, domains)
    ready = config.weights is not None or config.pretrained or not config.classifier.startswith("small:")
    if ready:
        return classifier.eval()
    kept = out / "classifier.safetensors"
    if not kept.is_file():
        # Every process trains it, alike, for a training's check of its loss is one that all take part in.
        train_on(config, classifier, domains.source_train, domains.segmentation, seed, device)
        if is_main():
            out.mkdir(parents=True, exist_ok=True)
            save_weights(bare(classifier), kept)
            seal(out, [kept.name])
    if dist.is_initialized():
        dist.barrier()
    check_seal(out, [kept.name])
    read_weights(bare(classifier), kept)
    return classifier.to(device).eval()


def bare(classifier: nn.Module) -> nn.Module:
    """The net without the normalisation around it: its weights are what `weights` of another run can name."""
    return classifier.net if isinstance(classifier, Normalized) else classifier


def train_on(
    config: AdaptConfig, net: nn.Module, dataset: Dataset, segmentation: bool, seed: int, device: torch.device
) -> None:
    """Train a classifier or segmenter with labels, in place."""
    t = config.training
    if segmentation:
        masks = cast(ArrayMasks, dataset)
        settings = SegmenterSettings(epochs=round(t.epochs), batch_size=t.batch_size)
        train_segmenter(net, masks.images, masks.masks, settings, seed, config.ignore_label)
        return
    train_classifier(
        net, dataset, t.epochs, t.batch_size, t.learning_rate, t.weight_decay, seed, device, config.workers
    )
