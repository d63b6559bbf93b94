"""The classifier of a run: opened by its name with the weights that it has, or trained on the source first.

>>> classifier = the_classifier(config, domains, seed=0, out=Path("runs/digits"), device=torch.device("cpu"))
"""

import shutil
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from shared_core.data.augment import to_float
from shared_core.data.loader import test_loader
from shared_core.data.masks import ArrayMasks
from shared_core.fitting_weights import load_weights
from shared_core.ops.snapshot import Snapshot
from shared_core.run.processes import is_main
from shared_core.run.seal import check_seal, seal
from shared_core.run.weights import read_weights, save_weights
from torch import nn
from torch.utils.data import Dataset

from calib.attachment import CalibratedClassifier, attach
from calib.calibrator import Calibrator
from calib.classifiers import Normalized, OnnxClassifier, open_classifier
from calib.config import AdaptConfig
from calib.data import Domains, normalization
from calib.needs import PUBLISHED, is_trained_here
from calib.segmentation import SegmenterSettings, tiny_segmenter, train_segmenter
from calib.streets import SceneFiles
from calib.supervised import reading_of, train_classifier


def build_classifier(config: AdaptConfig, domains: Domains) -> nn.Module:
    """The classifier that a configuration names, of images in [0, 1], with given or first weights."""
    if config.classifier == "small:segmenter":
        net: nn.Module = tiny_segmenter(domains.num_classes, domains.channels)
        if config.weights is not None:
            load_weights(net, config.weights)
        return net
    net = open_classifier(
        config.classifier,
        domains.num_classes,
        domains.channels,
        config.weights,
        config.pretrained,
        # One that is trained here may start with a last layer of its own.
        new_head=config.train_classifier,
        output=config.output,
        outputs=config.outputs,
    )
    if config.classifier.endswith(".onnx"):
        return net
    return Normalized(net, *normalization(config, domains.channels))


def origin(config: AdaptConfig) -> str:
    """Where the classifier's weights come from: how a sentence that starts with "The classifier" goes on."""
    given = "its first weights"
    if config.weights is not None:
        given = f"the weights of {config.weights}"
    elif config.pretrained and config.classifier.startswith(PUBLISHED):
        given = "published weights"
    elif not config.classifier.startswith(("small:", *PUBLISHED)):
        given = f"the weights that {config.classifier} gives it"
    return f"was trained on the source first, from {given}" if is_trained_here(config) else f"has {given}"


def check_training(config: AdaptConfig, classifier: nn.Module, domains: Domains) -> None:
    """Raises ValueError if the run trains its classifier and cannot: it answers two source images, to find out.

    Raises TypeError where its logits are no tensor of numbers.
    """
    if not is_trained_here(config):
        return
    name, instead = config.classifier, "give it weights, and leave train_classifier out"
    if name.endswith(".onnx"):
        raise ValueError(
            f"{name} cannot be trained: an ONNX file has no gradient; leave train_classifier out"
        )
    if isinstance(domains.source_train, SceneFiles):
        raise ValueError(
            f"{name} learns from images in memory, and {config.source} is read file by file: {instead}, "
            "or name a classifier of your own (file.py:function)"
        )
    images, labels = next(iter(test_loader(domains.source_train, 2)))
    try:
        read = reading_of(classifier, domains.source_train, config.output, config.outputs)
        answers = [read(classifier(to_float(images)))]
        # And what the first step runs; no statistics of batch norm and no random numbers are left of it.
        before = Snapshot(classifier)
        with torch.no_grad():
            answers.append(read.training(classifier.train()(to_float(images))))
        before.restore()
        classifier.eval()
    # What nets raise that do not fit the images: torch's own errors, and the assertions of timm's.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{name} cannot take source images of shape {tuple(images.shape)}: {error}"
        ) from error
    wanted = (len(labels), domains.num_classes, *labels.shape[1:])
    for answer in answers:
        if answer.shape != wanted:
            raise ValueError(
                f"{name} answers with shape {tuple(answer.shape)}; to be trained on {config.source} it must be {wanted}"
            )
    if not answers[0].requires_grad:
        raise ValueError(f"{name} cannot be trained: its answers give no gradient to any weight; {instead}")


def the_classifier(
    config: AdaptConfig, domains: Domains, seed: int, out: Path, device: torch.device
) -> nn.Module:
    """The deployed classifier; one that :func:`is_trained_here` is trained once per run folder.

    Raises SystemExit, 130 or 143, when the process was told to stop; the next call goes on with the training.
    """
    torch.manual_seed(seed)
    classifier = build_classifier(config, domains)
    if not is_trained_here(config):
        return classifier.eval()
    kept = out / "classifier.safetensors"
    if not kept.is_file():
        # Every process trains it, alike, for a training's check of its loss is one that all take part in.
        halfway = out / "classifier-checkpoints"
        train_on(config, classifier, domains.source_train, domains.segmentation, seed, device, halfway)
        if is_main():
            out.mkdir(parents=True, exist_ok=True)
            save_weights(bare(classifier), kept)
            seal(out, [kept.name])
            shutil.rmtree(halfway, ignore_errors=True)
    if dist.is_initialized():
        dist.barrier()
    check_seal(out, [kept.name])
    read_weights(bare(classifier), kept)
    return classifier.to(device).eval()


def attached(
    config: AdaptConfig, classifier: nn.Module, calibrator: Calibrator, outputs: str | None = None
) -> CalibratedClassifier:
    """Both together, answers read as the configuration says, or as it was found out before (`outputs`)."""
    if isinstance(classifier, OnnxClassifier):
        # Its answers are logits by the time they come.
        return attach(classifier, calibrator, outputs="logits")
    return attach(classifier, calibrator, output=config.output, outputs=outputs or config.outputs)


def bare(classifier: nn.Module) -> nn.Module:
    """The net without the normalisation around it: its weights are what `weights` of another run can name."""
    return classifier.net if isinstance(classifier, Normalized) else classifier


def train_on(
    config: AdaptConfig,
    net: nn.Module,
    dataset: Dataset,
    segmentation: bool,
    seed: int,
    device: torch.device,
    checkpoints: Path,
) -> None:
    """Train a classifier with labels, in place, going on from `checkpoints`; or a small segmenter, in one go."""
    t = config.training
    if segmentation:
        masks = cast(ArrayMasks, dataset)
        settings = SegmenterSettings(epochs=round(t.epochs), batch_size=t.batch_size)
        train_segmenter(
            net.to(device),
            masks.images,
            masks.masks,
            settings,
            seed,
            config.ignore_label,
            config.output,
            config.outputs,
        )
        return
    train_classifier(
        net,
        dataset,
        t.epochs,
        t.batch_size,
        t.learning_rate,
        t.weight_decay,
        seed,
        device,
        config.workers,
        checkpoints,
        config.checkpoint_every,
        config.output,
        config.outputs,
    )
