"""A run's tracker receives every part of the losses, every validator and both learning rates."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from calib.config import AdaptConfig
from calib.data import open_domains
from calib.run import run_cell
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


def test_weights_and_biases(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    config = AdaptConfig.model_validate({**tiny, "steps": 2, "tracker": "wandb"})
    run_cell(config, 0, tmp_path / "run", open_domains(config), device("cpu"), resume=False)
    assert ended == [("calib", "run"), "end"]
    assert heard >= TAGS
