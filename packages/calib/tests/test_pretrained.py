"""A saved calibrator comes back bit for bit with everything it was built from; what is no such file is refused."""

import json
from pathlib import Path

import pytest
import torch
from calib.calibrator import Calibrator, value_range_of
from calib.pretrained import ARGUMENTS, settings
from safetensors.torch import load_file, save_file
from torch import nn


def saved(folder: Path, **arguments) -> Calibrator:
    torch.manual_seed(0)
    made = Calibrator(**({"width": 4, "blocks": 1} | arguments)).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"channels": 1, "epsilon": 0.45, "width": 6, "blocks": 2, "mode": "positive"},
        {"body": "depthwise", "mode": "released", "value_range": (-1.0, 1.0)},
        {"body": "lowres", "value_range": value_range_of((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))},
        {"body": "constant", "channels": 5, "epsilon": 1 / 3, "value_range": (0.0, 255.0)},
    ],
)
def test_every_argument_and_weight_comes_back(tmp_path: Path, arguments: dict) -> None:
    made = saved(tmp_path / "night", **arguments)
    found = Calibrator.from_pretrained(tmp_path / "night")
    assert settings(found) == settings(made)
    assert set(ARGUMENTS) < set(settings(made))
    assert not found.training
    for name, value in made.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    low, high = made.low, made.high
    x = low + (high - low) * torch.rand(2, made.channels, 19, 21)
    with torch.no_grad():
        assert torch.equal(found(x), made(x))
        assert not torch.equal(found(x), x)


def test_the_folder_says_what_is_in_it(tmp_path: Path) -> None:
    saved(tmp_path, epsilon=0.3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibrator.safetensors", "config.json"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["epsilon"] == 0.3
    assert config["epsilon_unit"] == "share of the value range"
    assert config["format"] == 1


def test_files_that_may_hold_code_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pickled").mkdir()
    torch.save({"epsilon": 0.2}, tmp_path / "pickled" / "calibrator.pt")
    with pytest.raises(
        ValueError, match=r"there is no calibrator.safetensors .*calibrator\.pt may hold code"
    ):
        Calibrator.from_pretrained(tmp_path / "pickled")
    with pytest.raises(ValueError, match=r"not a safetensors file .*may hold code and are not read"):
        Calibrator.from_pretrained(tmp_path / "pickled" / "calibrator.pt")
    with pytest.raises(ValueError, match="there is no file"):
        Calibrator.from_pretrained(tmp_path / "nothing")


def test_another_format_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"format": 2, "calib": "9.0"}
    tensors = load_file(tmp_path / "calibrator.safetensors")
    save_file(tensors, tmp_path / "calibrator.safetensors", {"config": json.dumps(config)})
    with pytest.raises(ValueError, match=r"format 2, written by calib 9\.0; this version reads format 1"):
        Calibrator.from_pretrained(tmp_path)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no calibrator"):
        Calibrator.from_pretrained(tmp_path / "other.safetensors")


def test_an_edited_or_half_written_folder_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("0.2", "0.9"))
    with pytest.raises(ValueError, match="disagree"):
        Calibrator.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text[:20])
    with pytest.raises(ValueError, match="cannot be read"):
        Calibrator.from_pretrained(tmp_path)


def test_weights_of_another_calibrator_are_refused(tmp_path: Path) -> None:
    made = saved(tmp_path)
    tensors = load_file(tmp_path / "calibrator.safetensors")
    config = json.dumps(settings(made) | {"width": 8})
    save_file(tensors, tmp_path / "mixed.safetensors", {"config": config})
    with pytest.raises(ValueError, match=r"does not fit together: .*size mismatch"):
        Calibrator.from_pretrained(tmp_path / "mixed.safetensors")
