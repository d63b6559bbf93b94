"""The files of an ONNX model, which may keep its weights in others; needs the package onnx.

>>> model = read_graph("net.onnx")                  # the graph without the weights that lie elsewhere
>>> external_files("net.onnx", model)               # {"net.onnx.data": Path("net.onnx.data")}
>>> file_digests("net.onnx", model)                 # SHA-256 of the file, and of each of the others by its name
>>> place(Path(".new"), Path("net.onnx"))           # an export, whole, where it belongs
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_graph(path: str | os.PathLike[str]) -> Any:
    """The model as onnx reads it, without weights of other files.

    Raises:
        ValueError: not an ONNX model.
        ImportError: the package onnx is missing.
    """
    import onnx

    try:
        return onnx.load(os.fspath(path), load_external_data=False)
    # protobuf has an error of its own in each of its implementations.
    except Exception as error:
        raise ValueError(f"{path} cannot be opened as an ONNX model: {error}") from error


def external_files(path: str | os.PathLike[str], model: Any) -> dict[str, Path]:
    """The other files of a model, by the name that the graph gives them, which is relative to the model's folder.

    Raises FileNotFoundError for one that is not there.
    """
    path, found = Path(path), {}
    for tensor in _tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location")
        if not name or name in found:
            continue
        # A link to the model (a download's cache) may stand beside its data, or point to where they are.
        places = [path.parent / name, path.resolve().parent / name]
        there = next((place for place in places if place.is_file()), None)
        if there is None:
            raise FileNotFoundError(
                f"{path} keeps weights in {name}, which is not there: copy {places[0]} along with the model"
            )
        found[name] = there
    return found


def file_digests(path: str | os.PathLike[str], model: Any) -> dict[str, Any]:
    """{"sha256": of the file} and, where there are others, {"external": {name: sha256}}.  Errors as above."""
    digests: dict[str, Any] = {"sha256": _sha256(Path(path))}
    others = {name: _sha256(other) for name, other in sorted(external_files(path, model).items())}
    return digests | ({"external": others} if others else {})


def place(folder: Path, path: Path) -> None:
    """Move an export, written into `folder` under the name of `path`, and the files beside it, to where `path` says.

    The model comes last, so that no model is ever without its weights.
    """
    for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
        os.replace(file, path.parent / file.name)


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor below, wherever it stands (initialisers, attributes, subgraphs, functions), that lies elsewhere."""
    import onnx

    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in [value] if hasattr(value, "ListFields") else value:
            if not isinstance(part, onnx.TensorProto):
                yield from _tensors(part)
            elif part.data_location == onnx.TensorProto.EXTERNAL:
                yield part


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
