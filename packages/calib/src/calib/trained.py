"""An adapted classifier, read back from its run folder: for evaluation, prediction, analysis and export."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from shared_core.data.classes import NoCommonClassError
from shared_core.data.open import NoSplitError
from shared_core.data.preprocess import Preprocess, fitted
from shared_core.ops.freeze import checksums, digest
from shared_core.run.atomic import read_json
from shared_core.run.config import load_yaml
from shared_core.run.seal import check_seal
from shared_core.run.weights import read_weights
from torch.utils.data import Dataset

from calib.attachment import CalibratedClassifier
from calib.config import AdaptConfig
from calib.data import Domains, fit_to, has_masks, open_domain
from calib.pretrained import load_calibrator
from calib.source_classifier import attached, bare, build_classifier

DRIFTED = "classifier-drifted.safetensors"


class Trained(NamedTuple):
    """`model` in eval mode on the CPU; `preprocess` is None where images keep their size (segmentation)."""

    model: CalibratedClassifier
    config: AdaptConfig
    class_names: list[str]
    segmentation: bool
    preprocess: Preprocess | None
    folder: Path

    @property
    def channels(self) -> int:
        return self.model.calibrator.channels


def open_trained(folder: Path, calibrator: Path | None = None) -> Trained:
    """The classifier of a run folder with one adaptation, behind its calibrator or another domain's.

    Raises:
        ValueError: the folder holds no finished adaptation, the classifier is not bit for bit the one that was
            adapted, a file is not what the run wrote, or the other calibrator does not fit.
    """
    if not all((folder / name).is_file() for name in ("preprocess.json", "result.json")):
        raise ValueError(f"{folder} holds no finished adaptation: start one with calib adapt, or --resume it")
    check_seal(folder)
    config = load_yaml(AdaptConfig, folder / "config.yaml")
    record = read_json(folder / "preprocess.json")
    preprocess = None if record["preprocess"] is None else _preprocess(record["preprocess"])
    nothing: Any = None
    names, channels, segmentation = record["class_names"], record["channels"], record["segmentation"]
    shape = Domains(nothing, nothing, nothing, nothing, names, channels, segmentation, preprocess)
    with torch.random.fork_rng():
        # A classifier that was given no weights at all has those of its seed.
        torch.manual_seed(config.seeds[0])
        classifier = build_classifier(config, shape).eval()
    if (folder / "classifier.safetensors").is_file():
        read_weights(bare(classifier), folder / "classifier.safetensors")
    result = read_json(folder / "result.json")
    if digest(checksums(classifier)) != result["classifier_digest"]:
        raise ValueError(
            f"the classifier is not the one that {folder} adapted: {config.weights or config.classifier} has "
            "changed since; its calibrator is worth nothing in front of another one"
        )
    if (folder / DRIFTED).is_file():
        read_weights(classifier, folder / DRIFTED)
    front = load_calibrator(calibrator or folder / "calibrator")
    if front.channels != channels:
        raise ValueError(
            f"{calibrator} corrects images of {front.channels} channels, the classifier takes {channels}"
        )
    model = attached(config, classifier, front, result.get("classifier_outputs"))
    return Trained(model.eval(), config, names, segmentation, preprocess, folder)


def cell_folders(run: Path) -> list[Path]:
    """The folders of a run's adaptations, one per seed; of one seed the run itself.

    Raises ConfigError without a run in there.
    """
    config = load_yaml(AdaptConfig, run / "config.yaml")
    if len(config.seeds) == 1:
        return [run]
    return [run / "cells" / f"seed{seed}" for seed in config.seeds]


def open_test(
    trained: Trained, domain: Literal["source", "target"], spec: str | None = None, root: Path | None = None
) -> Dataset:
    """The test images of one domain of the run, or of another data set with the same classes.

    Raises:
        NoCommonClassError: no label of the data set is one of the classifier's classes.
        ValueError: an unknown data set, classes that the classifier does not know, or masks in place of labels.
        FileNotFoundError: data that are not there.
    """
    config = trained.config if root is None else trained.config.model_copy(update={"data_root": root})
    named = spec or getattr(config, domain)
    found = open_domain(config, named, "test", labelled=domain == "source")
    if has_masks(found) != trained.segmentation:
        wanted = "one label per pixel" if trained.segmentation else "one label per image"
        raise ValueError(f"{named} does not fit this run, whose classifier gives {wanted}")
    return fit_to(
        found, trained.class_names, f"the {domain} {named}", trained.preprocess, config.ignore_label
    )


def open_images(trained: Trained, domain: Literal["source", "target"]) -> tuple[Dataset, str]:
    """The test images of one domain of the run, and why they cannot be scored ("" if they can).

    A target may have no labels that fit, or no test images: then its training images are opened.

    Raises ValueError and FileNotFoundError as :func:`open_test`.
    """
    try:
        return open_test(trained, domain), ""
    except (NoCommonClassError, NoSplitError) as error:
        if domain == "source":
            raise
        split, why = ("train" if isinstance(error, NoSplitError) else "test"), str(error)
    found = open_domain(trained.config, trained.config.target, split, labelled=False)
    return (found if trained.preprocess is None else fitted(found, trained.preprocess)), why


def _preprocess(record: dict[str, Any]) -> Preprocess:
    return Preprocess(**{**record, "mean": tuple(record["mean"]), "std": tuple(record["std"])})
