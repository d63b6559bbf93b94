"""A distilled net as a folder: every argument and weight comes back, and the card says what result.json says."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub.hub_mixin
import pytest
import torch
from corsd import DistilledNet
from corsd.config import TrainConfig
from corsd.run import run
from corsd.trained import open_trained
from safetensors.torch import load_file
from shared_core.data.preprocess import Preprocess
from shared_core.testing import assert_same_state
from torch import nn

PREPROCESS = Preprocess(16, 1, (0.4,), (0.3,), False)
PHOTOS = Preprocess(64, 3, (0.1, 0.2, 0.3), (1.0, 1.0, 0.5), True)
BASE: dict[str, Any] = {
    "model": "small:resnet10",
    "class_names": ["one", "two", "three"],
    "preprocess": PREPROCESS,
    "width": 4,
    "exits": (),
    "norm": "batch",
}
CHANGES: list[dict[str, Any]] = [
    {},
    {"model": "small:resnet18"},
    {"model": "torchvision:squeezenet1_1", "width": None, "preprocess": PHOTOS},
    {"class_names": ["Hund", "Katze", "Mäuse | Vögel", "und\nso weiter"]},
    {"preprocess": PHOTOS},
    {"width": 6},
    {"exits": ("layer1", "layer3", "layer4")},
    {"exits": ("layer2", "layer4"), "norm": "group"},
    {"result": {"dataset": "digits", "method": "corsd", "accuracy": 12.5}},
]  # fmt: skip


def made(**changes: Any) -> DistilledNet:
    torch.manual_seed(0)
    net = DistilledNet(**{**BASE, **changes})
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize("changes", CHANGES)
def test_every_argument_and_weight_comes_back(changes: dict[str, Any], tmp_path: Path) -> None:
    net = made(**changes)
    net.save_pretrained(tmp_path)
    again = DistilledNet.from_pretrained(tmp_path)
    assert again.settings() == net.settings()
    assert again.preprocess == net.preprocess
    assert again.result == net.result
    assert not again.training
    assert_same_state(dict(again.state_dict()), dict(net.state_dict()))
    p = net.preprocess
    images = torch.randint(0, 256, (2, p.channels, p.size, p.size), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(again(p(images)), net(p(images)))
    names = {path.name for path in tmp_path.iterdir()} - {"result.json"}
    assert names == {"config.json", "model.safetensors", "README.md"}


def test_every_argument_is_tried() -> None:
    """A new argument of the constructor must come with a case above."""
    import inspect

    tried = {name for changes in CHANGES for name in changes}
    assert tried == set(inspect.signature(DistilledNet.__init__).parameters) - {"self", "net"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    settings = {
        "model": "small:resnet10", "width": 4, "epochs": 2, "batch_size": 30, "images_per_class": 3, "threads": 1,
        "controls": ["ce"], "device": "cpu", "relations": {"exits": "detached"},
    }  # fmt: skip
    run(TrainConfig.model_validate(settings), out)
    return out


def test_a_run_becomes_a_folder_with_a_card(trained: Path, tmp_path: Path) -> None:
    net = DistilledNet.from_run(trained)
    net.save_pretrained(tmp_path)
    own = open_trained(trained / "cells" / "corsd-seed0")
    again = DistilledNet.from_pretrained(tmp_path)
    assert_same_state(dict(again.net.state_dict()), dict(own.net.state_dict()))
    assert again.class_names == own.class_names
    whole = json.loads((trained / "result.json").read_text())
    text = (tmp_path / "README.md").read_text()
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results[0].metric_value == whole["accuracies"][0]
    assert f"| gain over cross-entropy, points | {whole['gain']:.4g} |" in text
    assert "from_pretrained" in text
    images = torch.rand(1, 1, 8, 8)
    logits, depth = again.early_exit(threshold=1e-6)(images)
    assert depth == 0
    assert logits.shape == (1, 10)
    assert set(load_file(tmp_path / "model.safetensors")) == set(again.state_dict())


def test_it_is_pushed_as_it_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            pushed["token"] = token

        def create_repo(self, repo_id: str, **settings: Any) -> Any:
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path: Path, **settings: Any) -> str:
            pushed.update(settings, files={path.name for path in folder_path.iterdir()})
            return "address"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    assert made().push_to_hub("me/net", token="t", branch="b") == "address"
    assert pushed["repo_id"] == "me/net"
    assert (pushed["token"], pushed["revision"]) == ("t", "b")
    assert pushed["files"] == {"config.json", "model.safetensors", "README.md"}


def test_a_net_from_a_file_of_ones_own_is_passed(tmp_path: Path) -> None:
    own = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    net = DistilledNet(**{**BASE, "model": "mine.py:build", "net": own})
    net.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"built by mine\.py:build: build it yourself and pass it as net="):
        DistilledNet.from_pretrained(tmp_path)
    again = DistilledNet.from_pretrained(tmp_path, net=nn.Sequential(nn.Flatten(), nn.Linear(256, 3)))
    assert_same_state(dict(again.state_dict()), dict(net.state_dict()))
    with pytest.raises(ValueError, match="does not hold the weights of this net"):
        DistilledNet.from_pretrained(tmp_path, net=nn.Sequential(nn.Flatten(), nn.Linear(256, 4)))
    with pytest.raises(ValueError, match="trained without exits"):
        again.early_exit()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": "fsd.hub.HubScene"}, "holds fsd.hub.HubScene, not corsd.DistilledNet"),
        ({"format": 7, "corsd": "9.9"}, r"format 7, written by corsd 9\.9"),
        ({"depth": 3}, "does not know: depth"),
        ({"model": "small:resnet99"}, "there is no net small:resnet99"),
        ({"preprocess": {"size": 8}}, "describes no net"),
        ({"preprocess": 3}, "describes no net"),
        ({"width": 8}, "does not hold the weights of this net"),
        ({"class_names": None}, "describes no net"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path, as_a_user: None
) -> None:
    made().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=message):
        DistilledNet.from_pretrained(tmp_path)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read the configuration"):
        DistilledNet.from_run(tmp_path)
