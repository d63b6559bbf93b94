"""The calibrator of arXiv 1911.12796: the identity plus a learned, bounded correction of the image.

    G_c(x) = clip(x + delta(x), box),   |delta| <= epsilon                                      (G_c = I + G'_c)

>>> calibrator = Calibrator(channels=3, epsilon=0.2)
>>> corrected = calibrator(images)              # images in [0, 1]: no pixel moves by more than 0.2
>>> calibrator(images, alpha=0.0)               # the off switch: the images, bit for bit

`epsilon` is a share of the value range whatever the images come in: 0.2 is 0.2 for images in [0, 1], 0.4 for
images in [-1, 1] and 51 grey levels of 255 for bytes.  The paper's 0.4, 0.9 and 0.8 are of [-1, 1], so 0.2, 0.45
and 0.4 here.
"""

import os
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from shared_core.ops.host import read_back
from shared_core.ops.inputs import check_images
from torch import Tensor, nn
from torch.nn import functional

from calib.bodies import BODIES, padded_size

FITS = "do the images fit the calibrator?"
EPSILON_UNIT = "share of the value range"
MIN_SIZE = 8
MODES = ("signed", "positive", "released")

ValueRange = tuple[float | Sequence[float], float | Sequence[float]]


class Calibrator(nn.Module):
    """Images in `value_range` to corrected images in `value_range`, of any size from 8 by 8 pixels.

    Whatever the weights, no value moves by more than epsilon times the value range, and at most one unit in the last
    place of the range's larger end for the rounding of the sum.

    Args:
        channels: of the images.
        epsilon: bound of the correction, a share of the value range in (0, 1].
        width, blocks: of the body; the paper uses 8 and 9, or 4 and 9.
        body: "residual" (the paper's), "depthwise", "lowres", "folded" or "constant", see :mod:`calib.bodies`.
        mode: "signed" corrects by epsilon * tanh (the paper's words); "positive" can only brighten, by
            clamp(tanh / 2, 0, epsilon) (the released code's rule, moved so that it starts at the identity);
            "released" is the released code to the letter, with its start near +epsilon and its dropout.
        value_range: (low, high) of the images, each one number or one per channel; see :func:`value_range_of`
            for images that are normalised by mean and standard deviation.

    Raises:
        ValueError: an argument outside of what is named above.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        channels: int = 3,
        epsilon: float = 0.2,
        width: int = 8,
        blocks: int = 9,
        body: str = "residual",
        mode: str = "signed",
        value_range: ValueRange = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if not isinstance(epsilon, Real):
            raise TypeError(f"epsilon is {epsilon!r}; give a number, a share of the value range")
        if not 0 < epsilon <= 1:
            raise ValueError(
                f"epsilon is {epsilon}; it is a share of the value range, above 0 and at most 1 "
                "(0.2 is 51 of 255 grey levels)"
            )
        if body not in BODIES:
            raise ValueError(f"body is {body!r}; choose {', '.join(BODIES)}")
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; choose {', '.join(MODES)}")
        whole = all(isinstance(number, Integral) for number in (channels, width, blocks))
        if not whole or min(channels, width) < 1 or blocks < 0:
            raise ValueError(
                f"channels={channels}, width={width}, blocks={blocks}; give whole numbers, 1 or more, blocks 0 or more"
            )
        self.channels, self.epsilon, self.mode = channels, float(epsilon), mode
        self.width, self.blocks, self.body_name = width, blocks, body
        self.body = BODIES[body](channels, width, blocks)
        # The released net zeroes 5 % of what its tanh gives while it trains.
        self.dropout = nn.Dropout(0.05) if mode == "released" else nn.Identity()
        if mode == "released":
            head = [m for m in self.body.modules() if isinstance(m, nn.Conv2d)]
            for conv in head[-1:]:
                nn.init.normal_(conv.weight, std=0.02)
        self.register_buffer("low", torch.zeros(channels, 1, 1))
        self.register_buffer("high", torch.ones(channels, 1, 1))
        self.set_value_range(value_range)

    def set_value_range(self, value_range: ValueRange) -> None:
        """Say in which range images come from now on; epsilon keeps its meaning."""
        try:
            low, high = (
                torch.as_tensor(end, dtype=torch.float32, device=self.low.device) for end in value_range
            )
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"value_range is {value_range!r}; give (low, high), each one finite number or {self.channels}, one per "
                "channel"
            ) from error
        for end in (low, high):
            if end.dim() > 1 or end.numel() not in (1, self.channels) or not bool(end.isfinite().all()):
                raise ValueError(
                    f"value_range is {value_range}; give (low, high), each one finite number or "
                    f"{self.channels}, one per channel"
                )
        if not bool((low < high).all()):
            raise ValueError(f"value_range is {value_range}; low must be below high")
        self._looked = False
        self.low.copy_(low.reshape(-1, 1, 1).expand_as(self.low))
        self.high.copy_(high.reshape(-1, 1, 1).expand_as(self.high))

    @property
    def value_range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(low, high), one number per channel."""
        return tuple(self.low.flatten().tolist()), tuple(self.high.flatten().tolist())

    def correction(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """delta(x) in the images' own unit, at most epsilon times the value range in size; before the box."""
        check_images("images", images, self.channels)
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        span = self.high.to(wide.dtype) - self.low.to(wide.dtype)
        # In place on what is new here: a large share of a small net's time goes into fresh memory.
        centred = (wide - self.low).mul_(2).div_(span).sub_(1)
        # The body computes in its own type, or autocast's; what bounds its result is as wide as the images.
        own = next(self.body.parameters()).dtype
        raw = torch.tanh(self._raw(centred.to(own)).to(wide.dtype))
        # Weights that overflow leave no number; such a pixel is not corrected.
        raw = raw.nan_to_num(nan=0.0)
        # A hair less than epsilon, since it, the span and their product are rounded, each perhaps upward.
        most = self.epsilon * (1 - 2**-22)
        if self.mode == "signed":
            share = raw.mul_(most)
        elif self.mode == "positive":
            share = (raw / 2).clamp(0.0, most)
        else:
            # The released rule clamps (tanh + 1) / 2 in units of [-1, 1], which span 2.
            share = ((self.dropout(raw) + 1) / 4).clamp(0.0, most)
        return share.mul_(span)

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        alpha: float | Float[Tensor, ""] | Float[Tensor, " batch"] = 1.0,
    ) -> Float[Tensor, "batch channels height width"]:
        """clip(x + alpha * delta(x)); `alpha` in [0, 1], one number or one per image.

        In compiled and exported graphs, where nothing can raise, an image with a value outside of the range
        (or not a number) passes through unchanged, and `alpha` is cut to [0, 1] (not a number: 0).

        Raises:
            ValueError: wrong shape, fewer than 8 pixels, alpha outside [0, 1], values outside of the range.  On a GPU
                values are looked at in the first batch alone, since a look makes the CPU wait for the device; what
                comes later is clipped to the range, and a tensor alpha to [0, 1].
        """
        graph = torch.compiler.is_compiling()
        if not graph:
            self._check(images, alpha)
        if isinstance(alpha, Tensor):
            scale = alpha.to(images.dtype).reshape(-1, 1, 1, 1)
            scale = torch.where(scale > 0, scale.clamp(max=1), torch.zeros_like(scale))
            delta = scale * self.correction(images)
        elif not alpha > 0:
            return images
        else:
            delta = self.correction(images) if alpha >= 1 else alpha * self.correction(images)
        moved = _within(images, delta, self.epsilon * (self.high.float() - self.low.float()))
        low, high = self.low.to(images.dtype), self.high.to(images.dtype)
        if moved.requires_grad or graph:
            # Not clamp: it halves the gradient of a pixel that lies on the bound, as black and white ones do.
            moved = torch.where(moved > high, high, moved)
            moved = torch.where(moved < low, low, moved)
        else:
            moved.clamp_(low, high)
        if isinstance(alpha, Tensor):
            moved = torch.where(scale > 0, moved, images)
        if graph:
            inside = ((images >= low) & (images <= high)).flatten(1).all(1)
            moved = torch.where(inside[:, None, None, None], moved, images)
        return moved

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `calibrator.safetensors` and `config.json`, see :mod:`calib.pretrained`."""
        from calib.pretrained import save_calibrator

        save_calibrator(self, folder)

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:
        """Publish it on the Hugging Face Hub as `owner/name`, see :mod:`calib.hub`; the commit's address.

        `settings` go to `huggingface_hub.ModelHubMixin.push_to_hub`: private, token, branch, commit_message ...
        """
        from calib.hub import HubCalibrator

        return HubCalibrator.of(self).push_to_hub(repo_id, **settings)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **download: Any) -> "Calibrator":
        """The calibrator of a folder that :meth:`save_pretrained` wrote, of an exported safetensors file, or of a
        repository `owner/name` on the Hugging Face Hub.

        `download`, for a repository: revision, token, cache_dir, force_download, local_files_only.

        Raises:
            ValueError: nothing there, a file that may hold code, another format, or files that do not fit.
        """
        from calib.pretrained import load_calibrator

        if not Path(path).exists() and not Path(path).is_absolute() and len(Path(path).parts) == 2:
            from calib.hub import HubCalibrator

            return HubCalibrator.from_pretrained(path, **download)
        return load_calibrator(path)

    def _raw(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tall, wide = (padded_size(self.body_name, size) for size in (height, width))
        if torch.compiler.is_compiling():
            # By index, for any size in one graph: padding and slicing would each bind the graph to a case.
            rows, columns = (torch.arange(size, device=x.device) for size in (tall, wide))
            padded = x[:, :, rows.clamp(max=height - 1)][:, :, :, columns.clamp(max=width - 1)]
            return self.body(padded)[:, :, rows[:height]][:, :, :, columns[:width]]
        if (tall, wide) == (height, width):
            return self.body(x)
        # Replicated: reflection needs more pixels than it adds.
        padded = functional.pad(x, (0, wide - width, 0, tall - height), mode="replicate")
        return self.body(padded)[..., :height, :width]

    def _check(self, images: Tensor, alpha: float | Tensor) -> None:
        if not isinstance(images, Tensor):
            raise TypeError(
                f"images are a {type(images).__name__}; give a tensor of (batch, channels, height, width)"
            )
        if images.dim() != 4 or images.shape[1] != self.channels or min(images.shape[-2:]) < MIN_SIZE:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; this calibrator takes (batch, {self.channels}, height, "
                f"width) with height and width from {MIN_SIZE} up"
            )
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}; give floats in {self._range_words()}")
        # On the CPU every batch is looked at.  Elsewhere a look makes the CPU wait for the device, so that only the
        # first batch is: another range, or bytes divided twice, is a mistake of the pipeline that all batches show.
        here = images.device.type == "cpu"
        looks = here or not self._looked
        self._looked = self._looked or images.numel() > 0
        if not isinstance(alpha, Tensor):
            if not isinstance(alpha, Real):
                raise TypeError(
                    f"alpha is a {type(alpha).__name__}; give a number from 0 (off) to 1, or a tensor of one per image"
                )
            if not 0 <= alpha <= 1:
                raise ValueError(f"alpha is {alpha}; it must be from 0 (off) to 1")
        elif alpha.numel() not in (1, len(images)):
            raise ValueError(
                f"alpha has shape {tuple(alpha.shape)} for {len(images)} images; give one number, or one per image"
            )
        # Not a number compares as False, so it is refused as well.
        elif (looks or alpha.device.type == "cpu") and bool(
            read_back(~((alpha >= 0) & (alpha <= 1)).all(), FITS)
        ):
            raise ValueError(f"alpha is {alpha.tolist()}; each must be from 0 (off) to 1")
        if not looks or not images.numel():
            return
        # In the coarser type of the two: the ends of the range and the images were rounded to their own.
        coarse = min(images.dtype, self.low.dtype, key=lambda dtype: -torch.finfo(dtype).eps)
        images = images.detach().to(coarse)
        low, high = self.low.to(coarse), self.high.to(coarse)
        smallest, largest = images.aminmax()
        if here and bool((low.max() <= smallest) & (largest <= high.min())):
            return
        # Not a number compares as False, or a channel has a range of its own.
        outside = ~((images >= low) & (images <= high)).all()
        bad, first, last = read_back(torch.stack([outside.to(coarse), smallest, largest]), FITS).tolist()
        if bad:
            raise ValueError(
                f"images run from {first:.4g} to {last:.4g}, outside of {self._range_words()}: bring them there, "
                "or say value_range=(low, high) when you build or attach the calibrator"
            )

    def _range_words(self) -> str:
        low, high = ((f"{float(end.min()):.4g}", end) for end in (self.low, self.high))
        if bool((self.low == self.low[0]).all()) and bool((self.high == self.high[0]).all()):
            return f"the value range [{low[0]}, {high[0]}]"
        return f"the value range of each channel ({self.value_range[0]} to {self.value_range[1]})"

    def extra_repr(self) -> str:
        return f"epsilon={self.epsilon} ({EPSILON_UNIT}), mode={self.mode}, body={self.body_name}"


def value_range_of(mean: Sequence[float], std: Sequence[float]) -> ValueRange:
    """The range of images in [0, 1] after (x - mean) / std per channel.

    A hair wider than exact (1e-6 of the span): how a pipeline rounds must not push white out of the range.

    Raises:
        ValueError: the lengths differ, or a std is not positive.
    """
    if len(mean) != len(std) or not std or min(std) <= 0:
        raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} need one number per channel, std above 0")
    low = [(-1e-6 - m) / s for m, s in zip(mean, std, strict=True)]
    high = [(1 + 1e-6 - m) / s for m, s in zip(mean, std, strict=True)]
    return low, high


def _within(images: Tensor, delta: Tensor, most: Tensor) -> Tensor:
    """images + delta in the images' type; in 16 bits rounding must not carry a value further than `most`."""
    moved = (images + delta).to(images.dtype)
    if images.dtype.itemsize > 2:
        return moved
    far = (moved.float() - images.float()).abs() > most
    step = torch.finfo(images.dtype).eps * torch.maximum(moved.float().abs(), images.float().abs())
    nearer = delta.float().sign() * (delta.float().abs() - step).clamp(min=0)
    return torch.where(far, (images.float() + nearer).to(images.dtype), moved)
