"""The live viewer serves its page and holds the meshes of the seed that the slider names."""

import builtins
import shutil
import socket
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsd.live import UPRIGHT, side_by_side, view
from fsd.objects import finished


@pytest.fixture
def server(made_up_run: Path) -> Iterator[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with warnings.catch_warnings():
        # viser's own libraries still use what websockets and asyncio have renamed.
        warnings.simplefilter("ignore", DeprecationWarning)
        server = view(made_up_run, port=port)
        yield server
        server.stop()


def test_the_page_is_served_and_the_slider_changes_the_meshes(server: Any) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.get_port()}", timeout=20) as page:
        assert page.status == 200
        assert b"<html" in page.read()
    assert server.scene.get_handle_by_name("/a-toy-fsd-seed0") is not None
    assert server.scene.get_handle_by_name("/a-toy-sds-seed0") is not None
    (slider,) = [handle for handle in handles(server) if getattr(handle, "label", "") == "seed"]
    slider.value = 1
    assert server.scene.get_handle_by_name("/a-toy-fsd-seed0") is None
    assert server.scene.get_handle_by_name("/a-toy-fsd-seed1") is not None


def handles(server: Any) -> list[Any]:
    return list(server.gui._gui_input_handle_from_uuid.values())


def test_methods_stand_side_by_side_from_the_left(made_up_run: Path) -> None:
    shown = side_by_side(finished(made_up_run), "a toy", 1)
    assert [(one.guidance, x) for one, x in shown] == [
        ("fsd", pytest.approx(1.1)),
        ("sds", pytest.approx(-1.1)),
    ]
    assert side_by_side(finished(made_up_run), "a toy", 7) == []


def test_upright_turns_a_glb_to_the_axes_of_the_world() -> None:
    w, *axis = UPRIGHT
    assert w == 0
    half_turn = 2 * np.outer(axis, axis) - np.eye(3)
    assert np.allclose(half_turn @ [0, 1, 0], [0, 0, 1])  # up
    assert np.allclose(half_turn @ [0, 0, 1], [0, 1, 0])  # front


def test_errors(made_up_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = "a-toy-sds-seed2"
    shutil.copytree(made_up_run / "objects" / lost, tmp_path / "objects" / lost)
    with pytest.raises(ValueError, match="holds no mesh"):
        view(tmp_path)
    real = builtins.__import__

    def without_viser(name: str, *rest: Any, **more: Any) -> Any:
        if name == "viser":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_viser)
    with pytest.raises(ImportError, match=r'pip install "fsd\[viewer\]"'):
        view(made_up_run)
