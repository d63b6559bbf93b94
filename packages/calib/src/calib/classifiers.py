"""Classifiers by name, with what they want done to images inside; ONNX files as modules without gradient.

>>> net = open_classifier("torchvision:resnet18", num_classes=10, weights="resnet18.safetensors")
>>> classifier = Normalized(net, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
>>> classifier = open_classifier("vendor.onnx")
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from shared_core.fitting_weights import load_weights
from shared_core.nets import open_net
from shared_core.onnx_files import file_digests, read_graph
from shared_core.ops.inputs import check_images
from torch import Tensor, nn

from calib.answers import as_logits, check_outputs, decide
from calib.nets import dtn, lenet

SMALL = {"small:dtn": dtn, "small:lenet": lenet}
ONNX_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}
PROBES = 16
PASSING = (
    "Identity",
    "Cast",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "QuantizeLinear",
    "DequantizeLinear",
)
"""Operators that leave the meaning of what goes through them."""
LINEAR = ("Gemm", "MatMul", "Conv", "LogSoftmax", "QLinearMatMul", "QGemm")
"""Operators whose results are logits; a sum (Add) may be one of anything."""


def open_classifier(
    spec: str,
    num_classes: int | None = None,
    channels: int = 3,
    weights: str | os.PathLike[str] | None = None,
    pretrained: bool = False,
    new_head: bool = False,
    output: str | int | None = None,
    outputs: str = "auto",
) -> nn.Module:
    """The classifier that `spec` names, in eval mode; normalisation is not part of it, see :class:`Normalized`.

    - `small:dtn`, `small:lenet`: the paper's nets for 32 by 32 pixels (they need `num_classes`);
    - `torchvision:NAME`, `timm:NAME`, `path/to/file.py:function`: see :func:`shared_core.nets.open_net`;
    - `path/to/model.onnx`: :class:`OnnxClassifier`.

    `output` and `outputs` are those of the latter.

    `weights` is a safetensors file and must fit to the last layer; `pretrained` asks torchvision or timm for
    published weights (a download), which must fit too, unless `new_head` asks for a fresh last layer to be trained.

    Raises:
        ValueError: an unknown kind or name (the known ones are listed), or weights that do not fit.
        ImportError: an ONNX file without onnxruntime.
    """
    if spec.endswith(".onnx"):
        if weights is not None or pretrained:
            raise ValueError(f"{spec} holds its own weights: leave weights and pretrained out")
        return OnnxClassifier(spec, output, outputs)
    net = open_net(spec, num_classes, channels, pretrained, builders=SMALL, new_head=new_head)
    if weights is not None:
        try:
            load_weights(net, weights)
        except ValueError as error:
            raise ValueError(
                f"{error}\na classifier stays as it is here, so a layer without its weights would never learn: give "
                "the number of classes (num_classes) and channels that it was trained with"
            ) from error
    return net.eval()


class Normalize(nn.Module):
    """(x - mean) / std per channel.

    Raises:
        ValueError: the lengths differ, or a std is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not std or min(std) <= 0:
            raise ValueError(
                f"mean {tuple(mean)} and std {tuple(std)} need one number per channel, std above 0"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Normalised images, of the same shape and type."""
        # One mean for all channels serves images of any number of them.
        check_images("images", images, len(self.mean) if len(self.mean) > 1 else None)
        return (images - self.mean.to(images.dtype)) / self.std.to(images.dtype)


class Normalized(nn.Module):
    """`net` on normalised images: a classifier of images in [0, 1], as its net was trained."""

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalize, self.net = Normalize(mean, std), net

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Any:
        """The net's answer to images in [0, 1]: logits, and whatever it adds to them while it trains."""
        return self.net(self.normalize(images))


class OnnxClassifier(nn.Module):
    """An ONNX file under onnxruntime on the CPU: images in [0, 1] to logits, without gradient.

    A model that takes uint8 gets round(255 x); one with a fixed batch is run as often as needed.  Probabilities are
    returned as their logarithm, so that a softmax gives them back, and one column as two classes.

    Args:
        output: name or place of the output to take; by default the only one, or the only one of floats.
        outputs: what it is, "logits", "probabilities", or "auto": decided once, by the graph's last operator where that
            tells, else by the answers to 16 random images at the first call; `self.outputs` says how.

    Raises:
        ValueError: no ONNX file, or not one image input and one clear output (their names are listed).
        FileNotFoundError: a file that the model keeps its weights in is missing.
        ImportError: onnxruntime is missing; the message names the extra.
    """

    def __init__(
        self, path: str | os.PathLike[str], output: str | int | None = None, outputs: str = "auto"
    ) -> None:
        super().__init__()
        check_outputs(outputs)
        self.path, self.output = Path(path).expanduser(), output
        _check_extra(self.path)
        graph = read_graph(self.path)
        # Before onnxruntime opens it, whose error for a missing file names none.
        self._digests = file_digests(self.path, graph)
        self._session = _session(self.path)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise ValueError(
                f"{path} takes {len(inputs)} inputs ({', '.join(i.name for i in inputs)}); a classifier takes one, "
                "images: give the others a default in the file, or wrap it in a module of yours"
            )
        self._input = inputs[0]
        if self._input.type not in ONNX_TYPES or len(self._input.shape) != 4:
            raise ValueError(
                f"{path} takes {self._input.type} of shape {self._input.shape}; images are (batch, channels, height, "
                f"width) of {', '.join(ONNX_TYPES)}"
            )
        self._output = _chosen_output(self._session.get_outputs(), output, self.path)
        self._asked = outputs
        self.outputs = _last_operator(graph, self._output) if outputs == "auto" else outputs

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Logits, float32 and on the device of the images.

        Raises:
            ValueError: the file fixes another number of channels, height or width, or `outputs` has to be said.
        """
        check_images("images", images)
        wanted = self._input.shape
        for axis, name in enumerate(("channels", "height", "width"), start=1):
            if isinstance(wanted[axis], int) and wanted[axis] != images.shape[axis]:
                raise ValueError(
                    f"images have {name} {images.shape[axis]}; {self.path.name} takes {name} {wanted[axis]} only"
                )
        if self.outputs == "auto":
            # Not by these images: what an image is answered must not depend on those beside it.
            generator = torch.Generator().manual_seed(0)
            probes = torch.rand(PROBES, *images.shape[1:], generator=generator)
            try:
                self.outputs = decide(self._answers(probes))
            except ValueError as error:
                raise ValueError(f"{self.path}: {error}") from error
        return as_logits(self._answers(images), self.outputs).to(images.device)

    def _answers(self, images: Tensor) -> Tensor:
        pixels = images.detach().float().cpu().numpy()
        kind = ONNX_TYPES[self._input.type]
        pixels = (pixels * 255).round().clip(0, 255).astype(kind) if kind is np.uint8 else pixels.astype(kind)
        fixed = self._input.shape[0]
        batch = fixed if isinstance(fixed, int) else max(len(pixels), 1)
        parts = [
            self._run(pixels[start : start + batch], batch) for start in range(0, max(len(pixels), 1), batch)
        ]
        return torch.from_numpy(np.concatenate(parts)).float()

    def _run(self, pixels: np.ndarray, batch: int) -> np.ndarray:
        count = len(pixels)
        # The last part of a fixed batch is filled up with its last image.
        short = 0 < count < batch
        full = np.concatenate([pixels, np.repeat(pixels[-1:], batch - count, 0)]) if short else pixels
        (answer,) = self._session.run([self._output], {self._input.name: full})
        return answer[:count]

    def get_extra_state(self) -> dict[str, Any]:
        """SHA-256 of every file of the model, so that checksums tell one ONNX classifier from another."""
        return self._digests

    def set_extra_state(self, state: Any) -> None:
        """Raises ValueError for the state of another file: an ONNX classifier cannot take weights."""
        if state != self.get_extra_state():
            raise ValueError(f"the state is of another ONNX file than {self.path}")

    def __reduce__(self) -> tuple[type, tuple[Path, str | int | None, str]]:
        # A session can be neither copied nor pickled; it is opened again.
        return type(self), (self.path, self.output, self.outputs)


def _check_extra(path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{path} needs onnxruntime: pip install 'calib-uda[onnx]'") from error
    if not path.is_file():
        raise ValueError(f"there is no file {path}")


def _session(path: Path) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    # onnxruntime has one class per status, which share no base but Exception.
    except Exception as error:
        raise ValueError(f"{path} cannot be opened as an ONNX model: {error}") from error


def _last_operator(model: Any, output: str) -> str:
    """What the operator that gives the output says of it; "auto" where it says nothing."""
    makers = {name: node for node in model.graph.node for name in node.output}
    while output in makers and makers[output].op_type in PASSING:
        output = makers[output].input[0]
    kind = makers[output].op_type if output in makers else ""
    return "probabilities" if kind in ("Softmax", "Sigmoid") else "logits" if kind in LINEAR else "auto"


def _chosen_output(outputs: Sequence[Any], name: str | int | None, path: Path) -> str:
    names = [output.name for output in outputs]
    if isinstance(name, int) and 0 <= name < len(names):
        return names[name]
    if name is not None:
        if name not in names:
            raise ValueError(f"{path} has no output {name!r}; it has {', '.join(names)}")
        return str(name)
    floats = [output.name for output in outputs if output.type in ONNX_TYPES and "uint8" not in output.type]
    if len(floats) != 1:
        raise ValueError(
            f"{path} has the outputs {', '.join(names)}: say which one is the logits with output=..."
            if floats
            else f"{path} gives no floats: its outputs are {', '.join(names)}; logits or probabilities are needed"
        )
    return floats[0]
