"""A published scene: every argument and weight comes back, and the card says what object.json says."""

import inspect
import json
from pathlib import Path
from typing import Any

import huggingface_hub.hub_mixin
import pytest
import torch
from fsd import grid_scene, hash_scene
from fsd.cameras import place
from fsd.hub import HubScene, arguments_of
from fsd.scene import Scene, load_scene
from shared_core.testing import assert_same_state
from torch import nn

GRID: dict[str, Any] = {"builder": "grid", "resolution": 5, "samples": 8}
HASH: dict[str, Any] = {
    "builder": "hash", "levels": 3, "log2_size": 8, "base": 4, "finest": 16, "width": 8, "samples": 8,
}  # fmt: skip
RENDERING: list[dict[str, Any]] = [
    {"samples": 6}, {"fine_samples": 4}, {"bounds": "sphere"}, {"normals": "analytic"}, {"occupancy": 6},
    {"shading": True}, {"marching": True, "occupancy": 6}, {"chunk": 100},
]  # fmt: skip
SHARED: list[dict[str, Any]] = [
    {"radius": 1.5}, {"blob_scale": 3.0}, {"blob_width": 0.4}, {"offset": 0.1}, {"background": "learned"},
    {"background": "map", "color": (0.1, 0.2, 0.3)}, *RENDERING,
]  # fmt: skip
CHANGES = [
    *({**GRID, **change} for change in [{}, {"resolution": 7}, *SHARED]),
    *(
        {**HASH, **change}
        for change in [{}, {"levels": 2}, {"features": 3}, {"log2_size": 9}, {"base": 5}, *SHARED]
    ),
    *({**HASH, **change} for change in [{"finest": 20}, {"width": 4}]),
]


def made(**arguments: Any) -> HubScene:
    torch.manual_seed(0)
    scene = HubScene(**arguments)
    for parameter in scene.parameters():
        nn.init.normal_(parameter)
    return scene


@pytest.mark.parametrize("arguments", CHANGES)
def test_every_argument_and_weight_comes_back(arguments: dict[str, Any], tmp_path: Path) -> None:
    scene = made(**arguments)
    scene.save_pretrained(tmp_path)
    again = HubScene.from_pretrained(tmp_path)
    assert again.settings() == scene.settings()
    assert_same_state(dict(again.state_dict()), dict(scene.state_dict()))
    for name in ("samples", "fine_samples", "bounds", "normals", "shading", "chunk", "marching"):
        assert getattr(again, name) == getattr(scene, name)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_every_argument_is_tried() -> None:
    """A new argument of a builder must come with a case above."""
    for builder in ("grid", "hash"):
        tried = {name for change in CHANGES if change["builder"] == builder for name in change}
        assert tried == {"builder", *arguments_of(builder)}
        function = {"grid": grid_scene, "hash": hash_scene}[builder]
        own = set(inspect.signature(function).parameters) | set(inspect.signature(Scene.__init__).parameters)
        assert set(arguments_of(builder)) == own - {"rendering", "self", "field"} - (
            {"background"} - set(arguments_of(builder))
        )


def test_an_object_of_a_run_becomes_a_folder_with_a_card(made_up_run: Path, tmp_path: Path) -> None:
    scene = HubScene.from_run(made_up_run, 1)
    scene.save_pretrained(tmp_path)
    again = HubScene.from_pretrained(tmp_path)
    own = load_scene(made_up_run / "objects" / "a-toy-fsd-seed1" / "scene.safetensors")
    with torch.no_grad():
        one, other = (s.render(place([40.0]), 12) for s in (own, again))
    assert torch.equal(one.image, other.image)
    assert again.result == scene.result
    text = (tmp_path / "README.md").read_text()
    assert "# a toy, in 3D" in text
    assert "| what the prior calls it | blue box |" in text
    assert "(views.png)" in text
    assert (tmp_path / "views.png").read_bytes() == (
        own_views := made_up_run / "objects" / "a-toy-fsd-seed1" / "views.png"
    ).read_bytes()
    assert own_views.is_file()
    assert huggingface_hub.ModelCard.load(tmp_path / "README.md").data.pipeline_tag == "text-to-3d"
    with pytest.raises(ValueError, match="has 4 finished objects; number is 4"):
        HubScene.from_run(made_up_run, 4)


def test_a_plain_scene_is_saved_and_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            pushed["token"] = token

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, folder_path: Path, **_: Any) -> str:
            pushed["files"] = {path.name for path in folder_path.iterdir()}
            return "address"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    scene = grid_scene(5, samples=8)
    assert scene.push_to_hub("me/mug", token="t") == "address"
    assert pushed == {"token": "t", "files": {"config.json", "model.safetensors", "README.md"}}
    scene.save_pretrained(tmp_path)
    again = Scene.from_pretrained(tmp_path)
    assert_same_state(dict(again.state_dict()), dict(scene.state_dict()))
    by_hand = Scene(scene.field, scene.background)
    with pytest.raises(ValueError, match="put together by hand"):
        by_hand.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": "corsd.DistilledNet"}, "holds corsd.DistilledNet, not fsd.hub.HubScene"),
        ({"format": 2, "fsd": "9.0"}, r"format 2, written by fsd 9\.0"),
        ({"depth": 3}, "does not know: depth"),
        ({"levels": 3}, "a grid scene has no levels"),
        ({"builder": "sphere"}, "builder='sphere'; it is one of grid, hash"),
        ({"resolution": 6}, "does not hold together: .*size mismatch"),
        ({"color": "red"}, "does not hold together|color"),
    ],
)
def test_folders_that_do_not_fit_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    made(**GRID).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=message):
        HubScene.from_pretrained(tmp_path)


def test_broken_weights_are_refused(tmp_path: Path) -> None:
    made(**GRID).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="does not hold together"):
        HubScene.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="does not hold together"):
        HubScene.from_pretrained(tmp_path)
