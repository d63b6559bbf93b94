"""A run's tracker receives every part of the losses, every validator and both learning rates."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from calib.config import AdaptConfig
from calib.data import open_domains
from calib.run import run_cell
from calib.translate import TranslateSettings, train_translation
from shared_core.data.arrays import ArrayImages
from torch import device

TAGS = {
    "pixel",
    "feature",
    "critic_pixel",
    "critic_feature",
    "gradient_norm",
    "rates/calibrator",
    "rates/critics",
}
TAGS |= {
    f"validators/{name}" for name in ("information", "entropy", "neighbourhood", "confusion", "source_kept")
}


# tensorboard's own protobuf files warn, on some versions.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(tiny: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    config = AdaptConfig.model_validate({**tiny, "tracker": "tensorboard"})
    run_cell(config, 0, tmp_path, open_domains(config), device("cpu"), resume=False)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= TAGS
    assert [event.step for event in events.Scalars("validators/entropy")] == [0, 3, 6]


def translation(tracker: str, out: Path) -> None:
    images = ArrayImages(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.arange(8) % 2)
    settings = TranslateSettings(
        size=8,
        channels=1,
        steps=3,
        batch_size=4,
        width=2,
        blocks=0,
        critic_width=2,
        log_every=1,
        tracker=tracker,
    )
    train_translation(images, images, settings, 0, out, device="cpu")


TRANSLATED = {
    "adversarial",
    "cycle",
    "identity",
    "critic_source",
    "critic_target",
    "rates/generators",
    "rates/critics",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_translation_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    translation("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= TRANSLATED
    assert [event.step for event in events.Scalars("cycle")] == [1, 2, 3]
    # The rate falls over the second half of the steps.
    assert [round(event.value / 5e-4, 3) for event in events.Scalars("rates/critics")] == [1.0, 0.667, 0.0]


def test_a_tracker_that_there_is_not_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="tracker is 'mlflow'; choose none, tensorboard, wandb"):
        TranslateSettings(tracker="mlflow")


def faked_wandb(monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], list[Any]]:
    """What a stand-in for wandb is told: the names of numbers; its beginning and its end."""
    heard: set[str] = set()
    ended: list[Any] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            heard.update(values)

        def finish(self) -> None:
            ended.append("end")

    fake: Any = ModuleType("wandb")
    fake.init = lambda project, name, dir: ended.append((project, name)) or Run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return heard, ended


def test_a_translation_in_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, ended = faked_wandb(monkeypatch)
    translation("wandb", tmp_path / "style")
    assert ended == [("calib", "style"), "end"]
    assert heard >= TRANSLATED


def test_weights_and_biases(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, ended = faked_wandb(monkeypatch)
    config = AdaptConfig.model_validate({**tiny, "steps": 2, "tracker": "wandb"})
    run_cell(config, 0, tmp_path / "run", open_domains(config), device("cpu"), resume=False)
    assert ended == [("calib", "run"), "end"]
    assert heard >= TAGS
