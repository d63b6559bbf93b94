"""Keep a small run folder and checkpoint of the current version of each package, for test_compat.py.

    python tests/compat/make.py [corsd calib-uda fsd shared-core]

Writes tests/compat/VERSION/PACKAGE/, where VERSION is the package's own:

    squares.npz  ...                  the data, which the configurations name from where they stand
    finished/                         a run folder as it was left
    stopped/                          the same run, killed half-way: a checkpoint and no result

Run it before a release, with the version that is released; afterwards the folder stays as it is.
"""

import os
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
MIDDLE = 4
STEPS = 8


def squares(path: Path) -> None:
    """Two domains of four classes: a bright square in the quadrant that is the class; dusk is dim and tinted."""
    arrays: dict[str, Any] = {"class_names": np.array(["nw", "ne", "sw", "se"])}
    for number, (domain, split) in enumerate((d, s) for d in ("day", "dusk") for s in ("train", "test")):
        generator = np.random.default_rng(number)
        labels = np.arange(24 if split == "train" else 12) % 4
        images = generator.integers(0, 4, (len(labels), 16, 16, 3)) * 10
        for image, label in zip(images, labels, strict=True):
            row, column = 8 * (label // 2) + 1, 8 * (label % 2) + 1
            image[row : row + 6, column : column + 6] += 150
        images = images // 2 + np.array([90, 30, 60]) if domain == "dusk" else images
        arrays |= {f"x_{domain}_{split}": images.astype(np.uint8), f"y_{domain}_{split}": labels}
    np.savez_compressed(path, **arrays)


def corsd() -> None:
    """A net of four channels with early exits, eight steps."""
    from corsd.config import TrainConfig
    from corsd.run import run

    squares(Path("squares.npz"))
    settings = {
        "data": "npz:squares.npz#day", "model": "small:resnet10", "width": 4, "epochs": STEPS, "batch_size": 24,
        "augment": "crop", "threads": 1, "device": "cpu", "log_every": 1, "checkpoint_every": MIDDLE,
        "relations": {"stages": ["layer2", "layer4"], "exits": "detached"},
        "optim": {"lr": 0.01, "momentum": 0.0, "schedule": "cosine"},  # no momentum: half the size
    }  # fmt: skip
    run(TrainConfig.model_validate(settings), Path("finished"))
    stop(
        Path("finished"),
        Path("stopped"),
        ["result.json", "net.safetensors", "exits.safetensors", "preprocess.json"],
    )


CLASSIFIER = '''"""The deployed classifier of the run that is kept here."""

from torch import nn


def build(num_classes: int) -> nn.Module:
    features = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(features, nn.Linear(8 * 16, num_classes))
'''


def calib_uda() -> None:
    """A calibrator in front of a classifier in a file, eight steps."""
    from calib.config import AdaptConfig
    from calib.run import run
    from safetensors.torch import save_file

    squares(Path("squares.npz"))
    Path("classifier.py").write_text(CLASSIFIER, encoding="utf-8")
    torch.manual_seed(0)
    weights = {"0.0.weight": torch.randn(8, 3, 4, 4) / 7, "0.0.bias": torch.zeros(8)}
    weights |= {"1.weight": torch.randn(4, 128) / 11, "1.bias": torch.zeros(4)}
    save_file(weights, "classifier.safetensors")
    settings = {
        "source": "npz:squares.npz#day", "target": "npz:squares.npz#dusk", "image_size": 16,
        "classifier": "classifier.py:build", "weights": "classifier.safetensors", "body": "lowres", "width": 2,
        "blocks": 1, "steps": STEPS, "batch_size": 12, "validate_every": 2, "validation_images": 12, "log_every": 1,
        "checkpoint_every": MIDDLE, "threads": 1, "device": "cpu", "selection": "last",
        "loss": {"feature": 0.0},  # the feature critic alone would be of 6 MB
    }  # fmt: skip
    run(AdaptConfig.model_validate(settings), Path("finished"))
    gone = ["result.json", "calibrator", "adaptation.json", "evaluation.json", "preprocess.json"]
    stop(Path("finished"), Path("stopped"), gone)


def mixture() -> Any:
    """A prior of two pictures, which takes no seconds to make."""
    from fsd.priors.mixture import MixturePrior

    pictures = torch.stack([torch.full((3, 16, 16), 0.8), torch.full((3, 16, 16), -0.6)])
    return MixturePrior(pictures.flatten(1), latent_shape=(3, 16, 16))


def fsd() -> None:
    """Two small objects by two methods, eight steps."""
    import fsd.run
    from fsd.config import GenerateConfig

    prior = mixture()
    fsd.run.build_prior = lambda config, device: prior
    settings = {
        "prompts": ["an object"], "guidance": ["fsd", "sds"], "steps": STEPS, "size": 16, "batch_size": 2, "threads": 1,
        "device": "cpu", "log_every": 1, "picture_every": MIDDLE, "checkpoint_every": MIDDLE, "mesh_resolution": 16,
        "frames": 4, "field": {"resolution": 8, "samples": 8, "background": "learned"},
    }  # fmt: skip
    fsd.run.run(GenerateConfig.model_validate(settings), Path("finished"))
    shutil.copytree("finished", "stopped", symlinks=True)
    Path("stopped/result.json").unlink()
    Path("stopped/report.html").unlink()
    for item in list(Path("stopped/objects").iterdir()):
        shutil.rmtree(item)
        names = [p.name for p in Path("finished/objects", item.name).iterdir()]
        kept = {"config.yaml", "env.json", "metrics.jsonl", "progress.png", "checkpoints"}
        stop(Path("finished/objects", item.name), item, [name for name in names if name not in kept])
    tidy(Path("finished"))


def shared_core() -> None:
    """A folder, its metrics and a checkpoint of everything that one may hold."""
    from shared_core.run import checkpoint
    from shared_core.run.folder import RunFolder, write_json
    from shared_core.run.metrics import MetricsLog

    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    for name in ("stopped", "finished"):
        with RunFolder(name).open({"steps": STEPS, "name": "ä"}) as folder, MetricsLog(folder.metrics) as log:
            for step in range(1, MIDDLE + 1):
                net(torch.ones(1, 3)).sum().backward()
                optimizer.step()
                log.log(step, loss=1 / step, time={"seconds": 0.1})
            state = {"rng": checkpoint.rng_state(), "list": [1, None, "ä"], "tensor": torch.arange(3)}
            checkpoint.save(folder.checkpoints, MIDDLE, {"net": net, "optimizer": optimizer}, state)
            if name == "finished":
                write_json(folder.result, {"loss": 0.25})


def stop(finished: Path, stopped: Path, gone: list[str]) -> None:
    """What a run leaves that was killed right after the checkpoint in the middle; then tidy the finished one."""
    shutil.copytree(finished, stopped, symlinks=True)
    for name in [*gone, "report.html"]:
        path = stopped / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.rmtree(stopped / "checkpoints" / f"step-{STEPS:06d}")
    (stopped / "checkpoints" / "latest").unlink()
    (stopped / "checkpoints" / "latest").symlink_to(f"step-{MIDDLE:06d}")
    tidy(finished)


def tidy(finished: Path) -> None:
    """A page can be written again, and the checkpoint is in the stopped run."""
    (finished / "report.html").unlink(missing_ok=True)
    for checkpoints in finished.rglob("checkpoints"):
        shutil.rmtree(checkpoints)


PACKAGES = {"corsd": corsd, "calib-uda": calib_uda, "fsd": fsd, "shared-core": shared_core}


def main(names: list[str]) -> None:
    """Write the folder of each package anew."""
    torch.set_num_threads(1)
    for name in names or PACKAGES:
        # The import and the kept folder keep their names when a distribution gets another.
        module = import_module("calib" if name == "calib-uda" else name.replace("-", "_"))
        folder = HERE / module.__version__ / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        os.chdir(folder)
        PACKAGES[name]()
        for lock in folder.rglob(".lock"):
            lock.unlink()
        for cache in folder.rglob("__pycache__"):
            shutil.rmtree(cache)
        size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{folder.relative_to(HERE)}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
