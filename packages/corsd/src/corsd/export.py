"""Export the plain net: the classifier and its metadata, nothing of the distiller or of a control.

The input is what :class:`shared_core.data.preprocess.Preprocess` makes of images, float32 (batch, channels,
size, size), for any batch size; the output are the logits.  The metadata say how to prepare images and what
outputs mean.
"""

import json
import os
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from jaxtyping import Float
from shared_core.onnx_files import place
from shared_core.ops.outputs import pick_logits
from shared_core.run.atomic import read_json
from torch import Tensor, nn

from corsd.trained import Trained


def export(trained: Trained, format: str, out: Path) -> None:
    """Write the net to ``out``, whole or not at all.

    - "safetensors": the net's own state dict; metadata in the file's header.
    - "onnx": for onnxruntime and others; metadata as ``metadata_props``.  Needs the extra ``onnx``.
    - "torch_export": for ``torch.export.load``; metadata as the extra file ``metadata.json``.

    Raises:
        ValueError: another format, a folder that is not there, or a net that the format cannot hold.
        ImportError: the extra is missing; the message names it.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; choose {', '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to write {out.name} to")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        temporary = Path(folder) / ("net.pt2" if format == "torch_export" else out.name)
        FORMATS[format](trained, temporary)
        if format == "onnx":
            # A large one comes in two files.
            place(Path(folder), out)
        else:
            os.replace(temporary, out)


def describe(trained: Trained) -> dict[str, str]:
    """The metadata, as text because every format holds text: lists and records are JSON."""
    result = trained.folder / "result.json"
    accuracy = read_json(result)["accuracy"] if result.is_file() else None
    return {
        "corsd": metadata.version("corsd"),
        "net": trained.config.model,
        "width": json.dumps(trained.config.width),
        "method": trained.config.method,
        "dataset": trained.config.data,
        "class_names": json.dumps(trained.class_names),
        "preprocess": json.dumps(trained.preprocess.record()),
        "test_accuracy_percent": json.dumps(accuracy),
    }


def _safetensors(trained: Trained, path: Path) -> None:
    from safetensors.torch import save_model

    save_model(trained.net, str(path), metadata=describe(trained))


def _onnx(trained: Trained, path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX export needs its extra: pip install 'corsd[onnx]'") from error
    program = torch.onnx.export(
        _logits_only(trained),
        (_example(trained),),
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    if program is None:
        raise ValueError("this net cannot be exported to ONNX")
    program.model.metadata_props.update(describe(trained))
    program.save(str(path))


def _torch_export(trained: Trained, path: Path) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(_logits_only(trained), (_example(trained),), dynamic_shapes=shapes)
    torch.export.save(program, str(path), extra_files={"metadata.json": json.dumps(describe(trained))})


class _Logits(nn.Module):
    """The logits alone of a net that answers with more."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        return pick_logits(self.net(images))


@torch.no_grad()
def _logits_only(trained: Trained) -> nn.Module:
    net = trained.net.cpu().eval()
    return net if isinstance(net(_example(trained)), Tensor) else _Logits(net).eval()


def _example(trained: Trained) -> torch.Tensor:
    # Two images, because torch takes a batch of one for a constant.
    p = trained.preprocess
    return torch.zeros(2, p.channels, p.size, p.size)


FORMATS: dict[str, Callable[[Trained, Path], None]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "torch_export": _torch_export,
}
