"""A published calibrator: every argument and weight comes back, and the card says what result.json says."""

import inspect
import json
from pathlib import Path
from typing import Any

import huggingface_hub.hub_mixin
import pytest
import torch
from calib import Calibrator
from calib.hub import HubCalibrator
from calib.pretrained import settings
from shared_core import hub
from shared_core.testing import assert_same_state
from torch import nn

SMALL = {"width": 2, "blocks": 1}
CHANGES: list[dict[str, Any]] = [
    {"channels": 1},
    {"epsilon": 0.45},
    {"width": 3},
    {"blocks": 2},
    {"body": "depthwise"},
    {"body": "lowres"},
    {"body": "constant"},
    {"mode": "positive"},
    {"mode": "released"},
    {"value_range": (-1.0, 1.0)},
    {"value_range": ((-2.1, -2.0, -1.8), (2.2, 2.4, 2.6))},
]


def made(**changes: Any) -> HubCalibrator:
    torch.manual_seed(0)
    calibrator = HubCalibrator(**{**SMALL, **changes}).eval()
    for parameter in calibrator.parameters():
        nn.init.normal_(parameter, std=0.1)
    return calibrator


@pytest.mark.parametrize("changes", CHANGES)
def test_every_argument_and_weight_comes_back(changes: dict[str, Any], tmp_path: Path) -> None:
    calibrator = made(**changes)
    calibrator.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "calibrator.safetensors",
        "README.md",
    }
    for again in (HubCalibrator.from_pretrained(tmp_path), Calibrator.from_pretrained(tmp_path)):
        assert settings(again) == settings(calibrator)
        assert_same_state(dict(again.state_dict()), dict(calibrator.state_dict()))
        assert not again.training


def test_every_argument_is_tried() -> None:
    """A new argument of the constructor must come with a case above."""
    assert {name for changes in CHANGES for name in changes} == set(
        inspect.signature(Calibrator.__init__).parameters
    ) - {"self"}


def test_a_run_becomes_a_folder_with_a_card(adapted: Path, tmp_path: Path) -> None:
    calibrator = HubCalibrator.from_run(adapted)
    calibrator.save_pretrained(tmp_path)
    again = HubCalibrator.from_pretrained(tmp_path)
    assert again.result == calibrator.result
    own = Calibrator.from_pretrained(adapted / "calibrator")
    assert_same_state(dict(again.state_dict()), dict(own.state_dict()))
    result = json.loads((adapted / "result.json").read_text())
    text = (tmp_path / "README.md").read_text()
    assert f"the target, with it, % | {result['target_after']:.2f} |" in text
    assert result["classifier_digest"] in text
    # A card is for others: it does not tell where the data lay.
    assert str(Path(result["source"].partition(":")[2].partition("#")[0]).parent) not in text
    assert huggingface_hub.ModelCard.load(tmp_path / "README.md").data.library_name == "calib-uda"


def test_the_card_warns(adapted: Path) -> None:
    calibrator = HubCalibrator.from_run(adapted)
    calibrator.result |= {"oracle": True}
    assert "> **ORACLE: target labels chose" in str(calibrator.generate_model_card())


def test_a_plain_calibrator_is_pushed_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            pushed["token"] = token

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path: Path, **_: Any) -> str:
            for path in folder_path.iterdir():
                (tmp_path / path.name).write_bytes(path.read_bytes())
            return "address"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    monkeypatch.setattr(hub, "fetch", lambda name, files, **settings: tmp_path)
    torch.manual_seed(0)
    calibrator = Calibrator(width=2, blocks=1, epsilon=0.3)
    assert calibrator.push_to_hub("me/night", token="t") == "address"
    assert pushed["token"] == "t"
    again = Calibrator.from_pretrained("me/night")
    assert settings(again) == settings(calibrator)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        HubCalibrator.from_pretrained(tmp_path / "nothing")
    (tmp_path / "config.json").write_text('{"class": "corsd.DistilledNet"}')
    with pytest.raises(
        ValueError, match=r"no calibrator\.safetensors .*the folder holds corsd\.DistilledNet"
    ):
        HubCalibrator.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"there is no calibrator\.safetensors"):
        HubCalibrator.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2, "calib": "9.0"}, r"format 2, written by calib 9\.0"),
        ({"depth": 3}, "does not know: depth"),
        ({"width": 5}, "does not fit together"),
        ({"body": "paper"}, "does not fit together"),
    ],
)
def test_headers_that_do_not_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    made().save_pretrained(tmp_path)
    config = json.dumps({**json.loads((tmp_path / "config.json").read_text()), **change})
    (tmp_path / "config.json").write_text(config)
    tensors = load_file(tmp_path / "calibrator.safetensors")
    save_file(tensors, tmp_path / "calibrator.safetensors", {"config": config})
    with pytest.raises(ValueError, match=message):
        HubCalibrator.from_pretrained(tmp_path)
    save_file(tensors, tmp_path / "calibrator.safetensors", {"config": "[1"})
    with pytest.raises(ValueError, match="header's config cannot be read"):
        HubCalibrator.from_pretrained(tmp_path)
