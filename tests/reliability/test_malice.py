"""Files of a stranger: nothing runs, nothing fills the memory, and a sentence says what is wrong."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from cases import METHODS, Ended, Runner, Straight, copy, count, resume
from shared_core.run.checkpoint import _sha256


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, int]]:
        return os.open, (str(self.mark), os.O_CREAT)


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_that_holds_code(
    method: str, runner: Runner, place: Path, straight: dict[str, Straight], tmp_path: Path
) -> None:
    out = copy(straight[method].folder, place / f"{method}-evil")
    for name in ("result.json", "object.json"):
        for path in out.rglob(name):
            path.unlink()
    for seal in out.rglob("files.json"):
        seal.unlink()
    for folder in [path for path in out.rglob("step-*") if path.is_dir()]:
        torch.save({"modules": {}, "state": Evil(tmp_path / "mark")}, folder / "state.pt")
        meta = json.loads((folder / "meta.json").read_text())
        file = folder / "state.pt"
        meta["files"]["state.pt"] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        (folder / "meta.json").write_text(json.dumps(meta))
    resume(runner, place, method, out.name).assert_refused("could run code")
    assert not (tmp_path / "mark").exists()
    count("files that hold code", "refused, nothing ran")


def with_weights(runner: Runner, place: Path, method: str, file: str) -> Ended:
    """A run that is to begin with the weights of a file."""
    # Weights are the whole classifier, so a configuration that trains one would be refused before they are read.
    config = yaml.safe_load((place / f"{method}.yaml").read_text())
    config.pop("training", None)
    (place / f"{method}-weights.yaml").write_text(yaml.safe_dump(config))
    flags = [METHODS[method].verb, "--config", f"{method}-weights.yaml", "--weights", file, "--out", "never"]
    return runner(method, *flags, cwd=place)


@pytest.mark.parametrize("method", ["corsd", "calib"])
def test_weights_that_hold_code(method: str, runner: Runner, place: Path, tmp_path: Path) -> None:
    (place / "evil.pt").write_bytes(pickle.dumps(Evil(tmp_path / "mark")))
    with_weights(runner, place, method, "evil.pt").assert_refused("evil.pt")
    torch.save(Evil(tmp_path / "mark"), place / "evil.pt")
    with_weights(runner, place, method, "evil.pt").assert_refused("evil.pt")
    assert not (tmp_path / "mark").exists()
    count("files that hold code", "refused, nothing ran")


def npz_of_pickles(path: Path) -> None:
    array = np.array([{"a": 1}], dtype=object)
    np.savez(path, x_train=array, y_train=array, x_test=array, y_test=array)


def npz_bomb(path: Path) -> None:
    """A few kilobytes that declare 10^15 images."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            header = io.BytesIO()
            shape = (10**15, 8, 8) if name.startswith("x") else (10**15,)
            fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(header, fields)
            archive.writestr(f"{name}.npy", header.getvalue() + b"\0" * 10_000_000)


def no_zip(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + bytes(range(256)) * 10)


@pytest.mark.parametrize("make", [npz_of_pickles, npz_bomb, no_zip])
def test_data_of_a_stranger(make: Callable[[Path], None], runner: Runner, place: Path) -> None:
    make(place / "evil.npz")
    for method, flags in (
        ("corsd", ["train", "--data", "npz:evil.npz"]),
        ("calib", ["adapt", "--source", "npz:evil.npz", "--target", "npz:evil.npz"]),
    ):
        runner(method, *flags, "--out", "never", cwd=place).assert_refused("evil.npz")
        count("bombs: archives, images, YAML, headers", "refused with a sentence")
    assert not (place / "never").exists()


def png(width: int, height: int) -> bytes:
    """A PNG that says it is of this size, and holds one line."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * (3 * min(width, 1000) + 1)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("method", ["corsd", "calib"])
def test_images_that_say_they_are_huge(
    method: str, runner: Runner, place: Path, straight: dict[str, Straight]
) -> None:
    for name, size in {"wide": (2**31 - 1, 2**31 - 1), "large": (100_000, 100_000), "none": (0, 0)}.items():
        (place / f"{name}.png").write_bytes(png(*size))
        ended = runner(method, "predict", straight[method].folder.name, f"{name}.png", cwd=place)
        ended.assert_refused(f"{name}.png")
        count("bombs: archives, images, YAML, headers", "refused with a sentence")


BOMBS = {
    "aliases": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    + "seeds: *a11\n",
    "deep": "[" * 20_000,
    "code": "seeds: !!python/object/apply:os.open [mark, 64]\n",
    "date": "seeds: 2024-99-99\n",
    "recursive": "&a [*a]\n",
    "long": "seeds: " + "9" * 10_000 + "\n",
    "bytes": "seeds: \x00\n",
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("method", METHODS)
def test_configurations_of_a_stranger(method: str, bomb: str, runner: Runner, place: Path) -> None:
    (place / "bomb.yaml").write_text(BOMBS[bomb])
    arguments = [METHODS[method].verb, "--config", "bomb.yaml", "--out", "never"]
    runner(method, *arguments, cwd=place).assert_refused()
    assert not (place / "mark").exists()
    assert not (place / "never").exists()
    count("bombs: archives, images, YAML, headers", "refused with a sentence")


def test_a_header_that_says_it_is_huge(runner: Runner, place: Path, straight: dict[str, Straight]) -> None:
    for header in (
        struct.pack("<Q", 2**60),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b'{"a":null',
    ):
        (place / "evil.pt").write_bytes(header)
        for method in ("corsd", "calib"):
            with_weights(runner, place, method, "evil.pt").assert_refused("evil.pt")
        calibrator = ["predict", straight["calib"].folder.name, "--calibrator", "evil.pt", "large.png"]
        runner("calib", *calibrator, cwd=place).assert_refused("evil.pt")
        count("bombs: archives, images, YAML, headers", "refused with a sentence")
