"""A trained net, read back from its run folder: for evaluation, prediction and export."""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from shared_core.data.classes import in_classes_of
from shared_core.data.open import ArrayImages
from shared_core.data.preprocess import Preprocess, fitted
from shared_core.run import checkpoint
from shared_core.run.atomic import read_json
from shared_core.run.config import load_yaml
from shared_core.run.seal import check_seal
from shared_core.run.weights import read_weights
from torch import nn
from torch.utils.data import Dataset

from corsd import data
from corsd.config import TrainConfig
from corsd.data import Data
from corsd.distiller import Distiller
from corsd.exits import Exits
from corsd.methods import build_method
from corsd.nets import open_net
from corsd.stages import Stage, find_stages

Which = Literal["last", "best"]


class Trained(NamedTuple):
    """``net`` in eval mode on the CPU; ``folder`` is the cell it comes from."""

    net: nn.Module
    config: TrainConfig
    preprocess: Preprocess
    class_names: list[str]
    folder: Path


def open_trained(folder: Path, which: Which = "last") -> Trained:
    """The net of a run folder with one training; "best" is the one that was best on the validation set.

    Raises:
        ValueError: the folder holds no finished training, or none that held a validation set out, or a file of it
            is not what the training wrote.
    """
    if not (folder / "preprocess.json").is_file():
        raise ValueError(f"{folder} holds no finished training: start one with corsd train, or --resume it")
    check_seal(folder)
    config = load_yaml(TrainConfig, folder / "config.yaml")
    record = read_json(folder / "preprocess.json")
    names = record.pop("class_names")
    preprocess = Preprocess(**{**record, "mean": tuple(record["mean"]), "std": tuple(record["std"])})
    weights = folder / ("net.safetensors" if which == "last" else "net-best.safetensors")
    if not weights.is_file():
        raise ValueError(
            f"{folder} has no {weights.name}: only a run with validation above 0 keeps the best net; use last"
        )
    net = open_net(config.model, len(names), preprocess.channels, config.width)
    read_weights(net, weights)
    return Trained(net.eval(), config, preprocess, names, folder)


def cell_folders(run: Path) -> list[Path]:
    """The folders of a run's trainings: its cells, or the run itself if it is one training.

    The first is of the run's own method with its first seed.  Raises ConfigError without a run in there.
    """
    config = load_yaml(TrainConfig, run / "config.yaml")
    methods = list(dict.fromkeys([config.method, *config.controls]))
    if len(methods) * len(config.seeds) == 1:
        return [run]
    return [run / "cells" / f"{method}-seed{seed}" for method in methods for seed in config.seeds]


def open_test(trained: Trained, spec: str | None = None, root: Path | None = None) -> Dataset:
    """The test images of the run's data set, or of another one with the same classes, as the net wants them.

    Raises:
        ValueError: an unknown data set, or classes that the net does not know.
    """
    changed = {name: value for name, value in {"data": spec, "data_root": root}.items() if value is not None}
    config = trained.config.model_copy(update=changed)
    found = in_classes_of(data.open_split(config, "test"), trained.class_names, f"{config.data} (test)")
    return fitted(found, trained.preprocess)


def open_exits(trained: Trained) -> tuple[list[Stage], Exits] | None:
    """The shallow classifiers and where they hang, or None if the run trained none."""
    weights = trained.folder / "exits.safetensors"
    if not weights.is_file():
        return None
    relations, p = trained.config.relations, trained.preprocess
    stages = find_stages(trained.net, torch.zeros(2, p.channels, p.size, p.size), relations.stages)
    channels = [stage.channels for stage in stages]
    exits = Exits(channels[:-1], channels[-1], len(trained.class_names), relations.norm)
    read_weights(exits, weights)
    return stages[:-1], exits.eval()


def open_distiller(trained: Trained) -> Distiller | None:
    """The distiller at its last checkpoint, around a net of its own; None if another method was trained.

    Raises:
        CheckpointError: there is no whole checkpoint.
    """
    config, names, p = trained.config, trained.class_names, trained.preprocess
    net = open_net(config.model, len(names), p.channels, config.width)
    nothing = ArrayImages(
        torch.zeros(0, p.channels, p.size, p.size, dtype=torch.uint8), torch.zeros(0).long(), names
    )
    unused = Data(nothing, None, nothing, nothing.labels, names, p)
    distiller = build_method(config, net, unused, config.seeds[0], steps=1)
    if not isinstance(distiller, Distiller):
        return None
    distiller.load_state_dict(checkpoint.load(trained.folder / "checkpoints").tensors["method"])
    return distiller.eval()
