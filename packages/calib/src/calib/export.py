"""Export a calibrator alone, with the classifier's normalisation, or fused with the classifier.

>>> export(model, "night.onnx", "onnx")                                        # images to corrected images
>>> export(model, "fused.onnx", "onnx", what="fused", size=(224, 224))         # images to logits

Every form takes `images`, float32 (batch, channels, height, width) in the calibrator's value range, and `alpha`,
one number from 0 (off) to 1; in ONNX it may be left out and is then 1.  Off gives the images bit for bit (under
onnxruntime a -0 becomes 0).  In an exported graph nothing can raise: an image with a value outside of the range passes
through uncorrected, and alpha is cut to [0, 1] (not a number: 0).
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from shared_core.onnx_files import place
from shared_core.ops.freeze import checksums, digest
from torch import Tensor, nn

from calib.answers import Reading
from calib.attachment import CalibratedClassifier
from calib.calibrator import MIN_SIZE, Calibrator
from calib.classifiers import Normalize, Normalized, OnnxClassifier
from calib.pretrained import settings

OUTPUTS = {"calibrator": "calibrated", "normalized": "normalized", "fused": "logits"}
SUMMARY = (
    *("source", "target", "source_before", "source_after", "target_before", "target_after"),
    *("parameter_ratio", "latency_ratio", "classifier_unchanged", "selection", "oracle", "compat"),
)
"""What of a run's result.json goes into the metadata."""


class Deployed(nn.Module):
    """What is exported: the calibrator, and behind it the normalisation or the classifier, if any."""

    def __init__(self, calibrator: Calibrator, behind: nn.Module | None, name: str) -> None:
        super().__init__()
        self.calibrator = calibrator
        if behind is not None:
            self.add_module(name, behind)
        self.behind = None if behind is None else name
        self.read: Reading | None = None

    def forward(
        self, images: Float[Tensor, "batch channels height width"], alpha: Float[Tensor, ""]
    ) -> Tensor:
        """Corrected images, normalised ones, or logits as `read` finds them in the classifier's answer."""
        calibrated = self.calibrator(images, alpha)
        answer = calibrated if self.behind is None else self.get_submodule(self.behind)(calibrated)
        return answer if self.read is None else self.read(answer)


def export(
    model: Calibrator | CalibratedClassifier,
    path: str | os.PathLike[str],
    format: str = "safetensors",
    what: str = "calibrator",
    *,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `model`, or its calibrator, to the file `path`, whole or not at all.

    Args:
        format: "safetensors" (weights; :meth:`Calibrator.from_pretrained` reads them), "onnx" (needs the extra
            `onnx`), or "torch_export" (for `torch.export.load`, so call it .pt2; metadata in metadata.json).
        what: "calibrator"; "normalized", followed by (x - mean) / std; "fused", followed by the classifier, whose
            answer is read as `model.logits` reads it: logits of two classes or more, whatever the classifier answers.
        size: fixed (height, width); None takes any size from 8 by 8 up.  Fused with a classifier that takes one
            size only, name that size.  The batch may have any size in any case.
        mean, std: of "normalized", one number per channel in the value range's unit; by default those of a
            classifier that is a :class:`calib.classifiers.Normalized`.
        metadata: further entries, such as :func:`summary` of a run's result.

    Raises:
        ValueError: another format or part, a missing folder, or a classifier that the format cannot hold.
        ImportError: the extra is missing; the message names it.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; choose {', '.join(FORMATS)}")
    if what not in OUTPUTS:
        raise ValueError(f"what is {what!r}; choose {', '.join(OUTPUTS)}")
    if size is not None and min(size) < MIN_SIZE:
        raise ValueError(f"size is {size}; height and width start at {MIN_SIZE}")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} to")
    entries = describe(model, what) | dict(metadata or {})
    deployed = _deployed(model, what, mean, std)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        temporary = Path(folder) / ("net.pt2" if format == "torch_export" else path.name)
        try:
            if what == "fused" and format != "safetensors" and isinstance(model, CalibratedClassifier):
                model.settle(_example(deployed, size)[0].to(model.calibrator.low.device))
                deployed.read = model.reading
            FORMATS[format](deployed, temporary, size, OUTPUTS[what], entries)
        except ImportError:
            raise
        # A classifier is anybody's code, and the exporters have no error of their own that covers it.
        except Exception as error:
            hint = "; if it takes images of one size only, say size=(height, width)" if size is None else ""
            cause = error.__cause__ or error
            reason = next(iter(str(cause).splitlines()), "")
            raise ValueError(
                f"cannot write {what} as {format}{hint}: {type(cause).__name__} {reason}"
            ) from error
        if format == "onnx":
            # A large one comes in two files.
            place(Path(folder), path)
        else:
            os.replace(temporary, path)


def describe(model: Calibrator | CalibratedClassifier, what: str = "calibrator") -> dict[str, str]:
    """The metadata, as text because every format holds text: `config` and lists are JSON."""
    calibrator = model if isinstance(model, Calibrator) else model.calibrator
    config = settings(calibrator)
    found = {name: json.dumps(config[name]) for name in ("epsilon", "value_range", "channels")}
    found |= {"epsilon_unit": config["epsilon_unit"], "output": OUTPUTS[what], "config": json.dumps(config)}
    found |= {"calib": config["calib"], "torch": torch.__version__}
    if not isinstance(model, Calibrator):
        found["classifier_digest"] = digest(checksums(model.classifier))
    return found


def summary(result: Mapping[str, Any]) -> dict[str, str]:
    """The outcome of a run (its result.json) as metadata: accuracies in percent, and how they came about."""
    return {"result": json.dumps({name: result[name] for name in SUMMARY if name in result})}


def _deployed(
    model: Calibrator | CalibratedClassifier,
    what: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Deployed:
    calibrator = model if isinstance(model, Calibrator) else model.calibrator
    classifier = None if isinstance(model, Calibrator) else model.classifier
    if what != "normalized" and not (mean is None and std is None):
        raise ValueError(f"mean and std belong to what='normalized', not to {what!r}")
    behind = None
    if what == "normalized" and mean is None and std is None:
        if not isinstance(classifier, Normalized):
            raise ValueError("what='normalized' needs mean and std: the classifier does not say them")
        behind = classifier.normalize
    elif what == "normalized":
        if mean is None or std is None or len(mean) != calibrator.channels:
            raise ValueError(
                f"mean={mean}, std={std}; give both, one number for each of {calibrator.channels} channels"
            )
        behind = Normalize(mean, std)
    elif what == "fused":
        if classifier is None:
            raise ValueError("what='fused' needs a classifier: export what calib.attach returned")
        if isinstance(classifier, OnnxClassifier):
            raise ValueError(
                "an ONNX classifier cannot be fused by torch: export what='calibrator' as onnx and run it in front"
            )
        if any(isinstance(part, torch.jit.ScriptModule) for part in classifier.modules()):
            raise ValueError(
                "a TorchScript classifier cannot be fused by torch's exporters: export what='calibrator' and run it in "
                "front"
            )
        behind = classifier
    # Copies: tracing must not touch a classifier that is promised to stay as it is.
    name = "classifier" if what == "fused" else "normalize"
    return Deployed(deepcopy(calibrator), deepcopy(behind), name).cpu().eval()


def _safetensors(
    deployed: Deployed, path: Path, size: tuple[int, int] | None, output: str, entries: dict[str, str]
) -> None:
    from safetensors.torch import save_model

    save_model(deployed, str(path), metadata=entries)


def _onnx(
    deployed: Deployed, path: Path, size: tuple[int, int] | None, output: str, entries: dict[str, str]
) -> None:
    try:
        import onnx  # noqa: F401
        from onnxscript import ir
    except ImportError as error:
        raise ImportError("ONNX export needs its extra: pip install 'calib-uda[onnx]'") from error
    free = {0: "batch"} if size else {0: "batch", 2: "height", 3: "width"}
    program = torch.onnx.export(
        deployed,
        _example(deployed, size),
        dynamo=True,
        dynamic_shapes=(free, {}),
        input_names=["images", "alpha"],
        output_names=[output],
        verbose=False,
    )
    if program is None:
        raise ValueError("torch.onnx.export returned nothing")
    graph = program.model.graph
    # An initializer that is an input as well is the input's default.
    (alpha,) = (value for value in graph.inputs if value.name == "alpha")
    alpha.const_value = ir.tensor(torch.tensor(1.0).numpy(), name="alpha")
    graph.register_initializer(alpha)
    program.model.metadata_props.update(entries)
    program.save(str(path))


def _torch_export(
    deployed: Deployed, path: Path, size: tuple[int, int] | None, output: str, entries: dict[str, str]
) -> None:
    free = dict.fromkeys((0,) if size else (0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(deployed, _example(deployed, size), dynamic_shapes=(free, {}))
    torch.export.save(program, str(path), extra_files={"metadata.json": json.dumps(entries)})


def _example(deployed: Deployed, size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    # Sizes that are no special case of the padding, and two images: torch takes a batch of one for a constant.
    calibrator = deployed.calibrator
    middle = (calibrator.low + calibrator.high) / 2
    return middle.expand(2, -1, *(size or (33, 42))).contiguous(), torch.tensor(1.0)


FORMATS: dict[str, Callable[..., None]] = {
    "safetensors": _safetensors,
    "onnx": _onnx,
    "torch_export": _torch_export,
}
