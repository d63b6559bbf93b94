"""A calibrator as a folder, or as one file: what a device needs for one domain, a few hundred kilobytes.

>>> calibrator.save_pretrained("night/")                    # calibrator.safetensors and config.json
>>> calibrator = Calibrator.from_pretrained("night/")       # or a file that calib.export wrote

The safetensors file holds the weights, and in its header everything that :class:`calib.Calibrator` is built from;
config.json says the same to a person.  Neither can hold code.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from shared_core.run.atomic import read_json, write_bytes, write_json

if TYPE_CHECKING:
    from calib.calibrator import Calibrator

FORMAT = 1
WEIGHTS = "calibrator.safetensors"
CONFIG = "config.json"
ARGUMENTS = ("channels", "epsilon", "width", "blocks", "body", "mode", "value_range")


def settings(calibrator: "Calibrator") -> dict[str, Any]:
    """Every constructor argument, the unit of epsilon, and the versions of the format and of calib."""
    from calib import __version__
    from calib.calibrator import EPSILON_UNIT

    found = {name: getattr(calibrator, name) for name in ARGUMENTS if name != "body"}
    found |= {"body": calibrator.body_name, "epsilon_unit": EPSILON_UNIT}
    return {"format": FORMAT, "calib": __version__} | found


def save_calibrator(calibrator: "Calibrator", folder: str | os.PathLike[str]) -> None:
    """Write `calibrator.safetensors` and `config.json` into `folder`, made if it is not there."""
    folder = Path(folder)
    config = settings(calibrator)
    state = {name: value.detach().cpu().contiguous() for name, value in calibrator.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(state, {"config": json.dumps(config)}))
    write_json(folder / CONFIG, config)


def load_calibrator(path: str | os.PathLike[str]) -> "Calibrator":
    """The calibrator of a folder of `save_calibrator`, or of a file that `calib.export` wrote, in eval mode.

    Raises:
        ValueError: nothing there, a file of another kind, another format, or parts that do not belong together.
    """
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        others = sorted(
            p.name for p in path.glob("*") if p.suffix in {".pt", ".pth", ".bin", ".pkl", ".ckpt"}
        )
        hint = f"; {', '.join(others)} may hold code and is not read" if others else ""
        hint = hint or _other_class(path)
        raise ValueError(
            f"there is no {WEIGHTS} in {path}{hint}" if path.is_dir() else f"there is no file {path}"
        )
    try:
        with safe_open(file, "pt") as opened:
            header = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{file} is not a safetensors file ({error}); files of other kinds may hold code and are not read"
        ) from error
    if "config" not in header:
        raise ValueError(f"{file} holds no calibrator: its header has no config")
    config = _record(file, header["config"])
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{file} has format {config.get('format')!r}, written by calib {config.get('calib')}; this version reads "
            f"format {FORMAT}: install the calib that wrote it, or save it anew"
        )
    unknown = sorted(set(config) - {*ARGUMENTS, "format", "calib", "epsilon_unit"})
    if unknown:
        raise ValueError(f"{file} has settings that this version does not know: {', '.join(unknown[:5])}")
    if path.is_dir() and read_json(path / CONFIG) != config:
        raise ValueError(
            f"{path / CONFIG} and the header of {WEIGHTS} disagree: the folder was written halfway or edited; "
            "save the calibrator anew"
        )
    return _build(file, config, state)


def _build(file: Path, config: dict[str, Any], state: dict[str, Any]) -> "Calibrator":
    from calib.calibrator import Calibrator

    # A file with the classifier inside holds the calibrator under this prefix.
    if any(name.startswith("calibrator.") for name in state):
        state = {n.removeprefix("calibrator."): v for n, v in state.items() if n.startswith("calibrator.")}
    try:
        arguments = {name: config[name] for name in ARGUMENTS}
        arguments["value_range"] = tuple(config["value_range"])
        calibrator = Calibrator(**arguments)
        calibrator.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file} does not fit together: {' '.join(str(error).split())}") from error
    return calibrator.eval()


def _other_class(folder: Path) -> str:
    """Whose folder it is, where its config.json says so."""
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["class"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f": the folder holds {kind}"


def _record(file: Path, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file} holds no calibrator: its header's config cannot be read ({error})"
        ) from error
