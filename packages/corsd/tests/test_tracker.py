"""A run's tracker receives every part of the loss, the validation and the learning rate."""

import sys
from types import ModuleType

import pytest
from corsd.config import TrainConfig
from corsd.train import train_cell

TINY = {
    "data": "digits", "model": "small:resnet10", "width": 4, "images_per_class": 4, "augment": "none", "epochs": 1,
    "batch_size": 12, "log_every": 1, "validation": 0.5, "threads": 1, "device": "cpu",
}  # fmt: skip
TAGS = {"loss", "lr", "accuracy", "validation", "images"}
TAGS |= {f"parts/{name}" for name in ("ce", "triplet", "aux_ce", "aux_kl", "relation", "logit_relation")}
TAGS |= {f"relations/layer{n}/{pair}" for n in (1, 2, 3, 4) for pair in ("same", "other")}


# tensorboard's own protobuf files warn, on some versions.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    train_cell(TrainConfig(**TINY, tracker="tensorboard"), 0, tmp_path / "run")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= TAGS
    assert [event.step for event in events.Scalars("lr")] == [1, 2, 3]


def test_weights_and_biases(tmp_path, monkeypatch):
    heard, ended = {}, []

    class Run:
        def log(self, values, step):
            heard.setdefault(step, {}).update(values)

        def finish(self):
            ended.append(True)

    fake = ModuleType("wandb")
    fake.init = lambda project, name, dir: ended.append((project, name)) or Run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train_cell(TrainConfig(**TINY, tracker="wandb"), 0, tmp_path / "run")
    assert ended == [("corsd", "run"), True]
    assert {name for values in heard.values() for name in values} >= TAGS
