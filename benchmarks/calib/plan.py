"""What calib/accuracy.py measures: pairs of domains and their settings, rows and what each changes, tiers, seeds.

>>> configuration("usps-mnist", "calibrator views").loss.views
1.0
"""

from pathlib import Path
from typing import Any

from calib.config import PRESETS, AdaptConfig

DATA = Path(__file__).parents[3] / "shared" / "data"

SEEDS = (1, 2, 3)
DIGITS: dict[str, Any] = {
    "data_root": DATA / "torchvision",
    "classifier": "small:dtn",
    "image_size": 32,
    "channels": 3,
    "steps": 500,
    "blocks": 3,
    "ema": 0.995,
    "optim": {"schedule": "cosine"},
    "validation_images": 1000,
    "threads": 1,
    "device": "cpu",
    "log_every": 50,
    "checkpoint_every": 500,
}
CAMVID = f"npz:{DATA / 'camvid_day_dusk_160x120.npz'}"
PAIRS: dict[str, dict[str, Any]] = {
    "usps-mnist": {**DIGITS, "source": "usps", "target": "mnist", "loss": {"source": 1.0}},
    "mnist-usps": {
        **DIGITS,
        "source": "mnist",
        "target": "usps",
        "loss": {"source": 0.3},
        "training": {"epochs": 3},
    },
    "camvid-day-dusk": {
        **{name: value for name, value in DIGITS.items() if name not in ("data_root", "image_size")},
        "source": f"{CAMVID}#day",
        "target": f"{CAMVID}#dusk",
        "classifier": "small:segmenter",
        "num_classes": 11,
        "ignore": 11,
        "epsilon": 0.1,
        "steps": 150,
        "batch_size": 4,
        "patch": 8,
        "patches": 4,
        "feature_stride": 4,
        "loss": {"source": 3.0},
        "optim": {"schedule": "cosine", "learning_rate": 2e-4},
        "validate_every": 50,
        "validation_images": 40,
        "training": {"epochs": 40, "batch_size": 8},
    },
}

NEIGHBOURS: dict[str, Any] = {
    "loss": {"views": 1.0, "hold": 3.0},
    "views": {"count": 2},
    "neighbours": {"count": 10},
}
# Neighbours without the game: no critics, small batches and three times the images.
TAUGHT: dict[str, Any] = {
    "loss": {"pixel": 0.0, "feature": 0.0, "views": 1.0, "hold": 3.0},
    "views": {"count": 2},
    "neighbours": {"count": 10, "every": 2000},
    "batch_size": 16,
    "steps": 6000,
    "validate_every": 1000,
    "checkpoint_every": 1000,
}
# The same from images moved a little at every step, which are never seen twice, and so for longer.
SHAKEN: dict[str, Any] = {**TAUGHT, "views": {**TAUGHT["views"], "shake": 0.15}, "steps": 10_000}
# Of translations: a classifier that is nearly right from the start, so that answers can say who is near.  One view
# will do then, of twice the images.
TRANSLATED_TAUGHT: dict[str, Any] = {
    **SHAKEN,
    "views": {"count": 1, "shear": 0.15, "shake": 0.15},
    "neighbours": {"count": 5, "answers": 0.25, "restart": 0.1, "images": 40_000, "every": 2000},
    "steps": 6000,
}
# Row: the tier from which it is run, and what it changes; a string is a baseline of the same name.
ROWS: dict[str, tuple[int, dict[str, Any] | str]] = {
    "calibrator": (1, {}),
    "moment matching": (1, "moment_matching"),
    "random correction": (1, "random_correction"),
    "bn-adapt": (1, "bn_adapt"),
    "SHOT-IM": (1, "shot_im"),
    "DANN": (1, "dann"),
    "calibrator 1000 steps": (1, {"steps": 1000}),
    "calibrator views": (1, {"loss": {"views": 1.0, "hold": 3.0}}),
    "calibrator neighbours": (1, NEIGHBOURS),
    "calibrator neighbours lowres": (1, {**NEIGHBOURS, "body": "lowres"}),
    "calibrator neighbours folded": (1, {**NEIGHBOURS, "body": "folded", "width": 8}),
    "calibrator taught": (1, TAUGHT),
    "calibrator taught shaken": (1, SHAKEN),
    "calibrator taught folded": (1, {**TAUGHT, "body": "folded", "width": 8}),
    "surest view": (1, "surest_view"),
    "neighbours": (1, "neighbours"),
    "calibrator lowres 3 blocks": (1, {"body": "lowres"}),
    "TENT": (1, "tent"),
    "target supervised": (1, "target_supervised"),
    "ADDA": (1, "adda"),
    "Deep CORAL": (1, "deep_coral"),
    "calibrator constant": (1, {"body": "constant"}),
    "calibrator translated": (1, {}),
    "calibrator translated taught": (1, TRANSLATED_TAUGHT),
    "calibrator released": (1, {"mode": "released", "compat": "released", "selection": "last"}),
    "calibrator full schedule": (2, {}),
    "calibrator taught with critics": (3, {**TAUGHT, "loss": NEIGHBOURS["loss"]}),
    "calibrator lowres": (3, {"body": "lowres", "blocks": 9}),
    "calibrator pixel only": (3, {"loss": {"feature": 0.0}}),
    "calibrator feature only": (3, {"loss": {"pixel": 0.0}}),
    "calibrator last": (3, {"selection": "last"}),
}
# Of its configurations, in units of the value range.
RELEASED_EPSILON = {"usps-mnist": 0.45, "mnist-usps": 0.2}
# Rows whose source images are a CycleGAN's, one for all seeds, and its settings beside the preset "digits" of
# `calib translate`: as in the paper, and of images that stand as the target's do.
TRANSLATED: dict[str, dict[str, Any]] = {
    "calibrator translated": {},
    "calibrator translated taught": {"pose": True, "channels": 1},
}
# The preset of the pair with the paper's constants: hours a seed.
FULL_SCHEDULE = "calibrator full schedule"
# Rows with a source classifier of their own, and what it is called: the paper's route trains it on the translations,
# the preset for 250 or 300 epochs.
CLASSIFIERS = {
    "calibrator translated": "classifier-translated",
    "calibrator translated taught": "classifier-posed",
    FULL_SCHEDULE: "classifier-full-schedule",
}

# Whom calib/to_90.py races.
RACERS = (
    *("calibrator", "calibrator, constant rate"),
    *("calibrator views", "calibrator neighbours", "calibrator taught"),
    *("DANN", "DANN of pytorch-adapt", "DANN of skada"),
)


def planned(pairs: list[str], tier: int) -> list[tuple[str, str, int]]:
    """(pair, method, seed), method by method, so that an interrupted run leaves whole methods."""
    wanted = [row for row, (at, _) in ROWS.items() if at <= tier]
    return [
        (pair, row, seed)
        for row in wanted
        for pair in pairs
        for seed in SEEDS
        # Baselines know one label per image.
        if not (pair.startswith("camvid") and row != "calibrator")
    ]


def changed(pair: str, row: str) -> dict[str, Any]:
    """What the method changes of the pair's settings."""
    changes = ROWS[row][1]
    if row == FULL_SCHEDULE:
        return {"preset": pair}
    if isinstance(changes, str):
        return {"baselines": [changes]}
    released = {"epsilon": RELEASED_EPSILON[pair]} if changes.get("compat") == "released" else {}
    return changes | released


def configuration(pair: str, row: str) -> AdaptConfig:
    """The pair's settings with what the method changes."""
    values, changes = dict(PAIRS[pair]), changed(pair, row)
    if row == FULL_SCHEDULE:
        machine = {name: values[name] for name in ("data_root", "threads", "device")}
        return AdaptConfig.model_validate({**PRESETS[pair]().model_dump(), **machine})
    for name, value in changes.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return AdaptConfig.model_validate(values)
