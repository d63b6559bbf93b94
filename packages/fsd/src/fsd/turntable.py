"""A scene once around, as an MP4 that browsers play or a GIF.

>>> frames = turntable_frames(scene, frames=48, size=64)          # uint8 (48, 64, 64, 3)
>>> write_video(frames, "turntable.mp4")
>>> write_video(frames, "turntable.gif")
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fsd.cameras import turntable
from fsd.inputs import check_array, check_tensor


def turntable_frames(
    scene: Any,
    frames: int = 48,
    size: int = 64,
    elevation_deg: float = 15.0,
    background: float | None = 0.5,
    chunk: int = 4,
) -> UInt8[np.ndarray, "frames size size 3"]:
    """Pictures from `frames` cameras around the scene, from its front on.

    They stand on a grey of the level `background`, or on the scene's own with None; `chunk` views are rendered
    at a time.  Raises ValueError for no frame.
    """
    if frames < 1:
        raise ValueError(f"frames={frames}; give at least one")
    cameras = turntable(frames, elevation_deg=elevation_deg).to(_device(scene))
    ground = None if background is None else torch.full((3,), background, device=_device(scene))
    with torch.no_grad():
        parts = [
            scene.render(cameras[start : start + chunk], size, background=ground).image
            for start in range(0, frames, chunk)
        ]
    return to_bytes(torch.cat(parts))


def to_bytes(images: Float[Tensor, "n 3 h w"]) -> UInt8[np.ndarray, "n h w 3"]:
    """From [0, 1], rounded; what lies outside is cut off."""
    check_tensor("images", images, "n 3 h w", "images of three colours, channels before height")
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def write_video(
    frames: UInt8[np.ndarray, "n h w 3"], path: str | os.PathLike[str], fps: int = 16, side: int = 256
) -> None:
    """Writes .mp4 (H.264, even sides) or .gif (repeats for ever), frames below `side` pixels scaled up to it.

    Raises ValueError for another suffix or no frame.
    """
    path = Path(os.path.expanduser(path))
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"{path.name}: a video ends in .mp4 or .gif")
    check_array(
        "frames", frames, "n h w 3", "pictures of three colours as bytes: fsd.turntable.to_bytes(images)"
    )
    if not len(frames):
        raise ValueError(f"{path.name}: there is no frame to write")
    shown = enlarge(frames, side)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        _write_gif(shown, path, fps)
    else:
        _write_mp4(shown, path, fps)


def enlarge(frames: UInt8[np.ndarray, "n h w 3"], side: int) -> np.ndarray:
    """The frames with their longer side scaled up to `side` (Lanczos); larger ones stay as they are."""
    from PIL import Image

    height, width = frames.shape[1:3]
    scale = side / max(height, width)
    if scale <= 1:
        return frames
    wanted = (round(width * scale), round(height * scale))
    return np.stack([np.asarray(Image.fromarray(f).resize(wanted, Image.Resampling.LANCZOS)) for f in frames])


def _write_mp4(frames: np.ndarray, path: Path, fps: int) -> None:
    from imageio_ffmpeg import write_frames

    # yuv420p, the only form that every browser plays, halves the colour planes: sides must be even.
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    height, width = frames.shape[1:3]
    # The index comes first, so that a page starts to play before it has read the whole file.
    parameters = ["-crf", "20", "-movflags", "+faststart"]
    writer = write_frames(
        str(path),
        (width, height),
        fps=fps,
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        output_params=parameters,
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def _write_gif(frames: np.ndarray, path: Path, fps: int) -> None:
    from PIL import Image

    # One palette for all frames, taken from a strip of them: palettes of their own would flicker.
    sample = frames[:: max(1, len(frames) // 8)]
    palette = Image.fromarray(np.concatenate(list(sample), 1)).quantize(255)
    pictures = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)


def _device(scene: Any) -> torch.device:
    return next((tensor.device for tensor in scene.parameters()), torch.device("cpu"))
