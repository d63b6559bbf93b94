"""Frames of a scene, and the files made of them."""

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from fsd.cameras import Cameras
from fsd.turntable import enlarge, to_bytes, turntable_frames, write_video
from PIL import Image
from torch import Tensor, nn


class Compass(nn.Module):
    """Not a scene: a picture whose red tells the camera's azimuth, on the background in its upper half."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.25))
        self.largest_batch = 0

    def render(self, cameras: Cameras, size: int, background: Tensor | None = None) -> SimpleNamespace:
        self.largest_batch = max(self.largest_batch, len(cameras))
        image = self.level.expand(len(cameras), 3, size, size).clone()
        image[:, 0] = (cameras.azimuth_deg / 360)[:, None, None]
        image[:, :, : size // 2] = 1.0 if background is None else background[None, :, None, None]
        return SimpleNamespace(image=image)


def stripes(count: int, height: int, width: int) -> np.ndarray:
    """A bright bar that moves to the right."""
    frames = np.full((count, height, width, 3), 40, np.uint8)
    for number, frame in enumerate(frames):
        frame[:, number * width // count :][:, : width // 4] = (220, 120, 60)
    return frames


def decoded(path: Path) -> tuple[np.ndarray, str]:
    """All frames, and what ffmpeg says of the stream; imageio's own reader leaves its pipes open."""
    program = imageio_ffmpeg.get_ffmpeg_exe()
    said = subprocess.run([program, "-i", path], stderr=subprocess.PIPE, text=True, check=False).stderr
    stream = next(line for line in said.splitlines() if "Video:" in line)
    width, height = (int(side) for side in re.findall(r", (\d+)x(\d+)", stream)[0])
    command = [program, "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3), stream


def test_frames_go_once_around_from_the_front() -> None:
    scene = Compass()
    frames = turntable_frames(scene, frames=9, size=8, chunk=4)
    assert frames.shape == (9, 8, 8, 3)
    assert frames.dtype == np.uint8
    expected = [round(255 * k / 9) for k in range(9)]
    assert np.abs(frames[:, -1, 0, 0].astype(int) - expected).max() <= 1
    assert np.all(frames[:, 0] == 128)
    assert scene.largest_batch == 4


def test_the_scenes_own_background_with_none() -> None:
    assert np.all(turntable_frames(Compass(), frames=2, size=8, background=None)[:, 0] == 255)
    with pytest.raises(ValueError, match="frames=0"):
        turntable_frames(Compass(), frames=0)


def test_bytes_are_rounded_and_cut_off() -> None:
    levels = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0]).view(5, 1, 1, 1).expand(5, 3, 1, 1)
    assert to_bytes(levels)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47)])
def test_mp4_holds_every_frame_in_even_sides(tmp_path: Path, height: int, width: int) -> None:
    frames = stripes(12, height, width)
    write_video(frames, tmp_path / "new" / "a.mp4", side=0)
    read, stream = decoded(tmp_path / "new" / "a.mp4")
    assert all(word in stream for word in ("h264", "yuv420p", "16 fps")), stream
    assert read.shape == (12, height + height % 2, width + width % 2, 3)
    assert np.abs(read[:, :height, :width].astype(int) - frames).mean() < 12


def test_gif_repeats_and_keeps_its_colours(tmp_path: Path) -> None:
    frames = stripes(10, 64, 64)
    write_video(frames, tmp_path / "a.gif", fps=10, side=0)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (10, 0, 100)
        gif.seek(7)
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frames[7]).max() <= 8


def test_small_frames_are_enlarged_smoothly_and_large_ones_left(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 16).astype(np.uint8)[None, None, :, None], (2, 16, 1, 3))
    large = enlarge(ramp, 64)
    assert large.shape == (2, 64, 64, 3)
    assert len(np.unique(large[0, 32, :, 0])) > 40
    assert enlarge(ramp, 8) is ramp
    write_video(ramp, tmp_path / "a.mp4")
    assert decoded(tmp_path / "a.mp4")[0].shape == (2, 256, 256, 3)


def test_other_suffixes_and_no_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.avi: a video ends in .mp4 or .gif"):
        write_video(stripes(2, 8, 8), tmp_path / "a.avi")
    with pytest.raises(ValueError, match="no frame"):
        write_video(stripes(2, 8, 8)[:0], tmp_path / "a.gif")
