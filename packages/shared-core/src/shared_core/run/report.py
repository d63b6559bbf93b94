"""report.html: one file that a person opens, with everything inside it and nothing fetched.

    >>> write_report("runs/a/report.html", "CORSD on digits", [
    ...     cards({"accuracy": "97.8 %", "gain": "+1.2"}),
    ...     heading("Curves"), figure(fig, "Loss parts over steps."),
    ...     table([{"method": "ce", "accuracy": 96.6}]),
    ... ])

Each section function returns a piece of HTML with all text escaped.
"""

import base64
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from shared_core.run.atomic import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shared_core.run.folder import RunFolder

_TEMPLATES = Environment(
    loader=PackageLoader("shared_core.run", "templates"),
    autoescape=select_autoescape(default=True, default_for_string=True),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(
    path: str | os.PathLike[str], title: str, sections: Sequence[Markup], subtitle: str = ""
) -> None:
    """Writes the page, atomically.  Raises TypeError for a section that no function of this module made."""
    for section in sections:
        if not isinstance(section, Markup):
            raise TypeError(f"a section is a {type(section).__name__}; make it with text, table, figure, ...")
    page = _TEMPLATES.get_template("report.html")
    write_text(path, page.render(title=title, subtitle=subtitle, sections=sections))


def heading(words: str) -> Markup:
    """A heading."""
    return _piece("heading", words=words)


def text(words: str) -> Markup:
    """Plain text; an empty line starts a new paragraph."""
    return _piece("text", paragraphs=[p for p in words.split("\n\n") if p.strip()])


def cards(values: Mapping[str, Any]) -> Markup:
    """Key figures side by side: name to value."""
    return _piece("cards", values={name: _cell(value) for name, value in values.items()})


def table(rows: Sequence[Mapping[str, Any]], caption: str = "") -> Markup:
    """Rows as dicts; the columns are the keys in the order in which they first appear.  Floats: 4 digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    body = [[(_cell(row.get(column, "")), _is_number(row.get(column))) for column in columns] for row in rows]
    return _piece("table", columns=columns, body=body, caption=caption)


def figure(fig: "Figure", caption: str = "") -> Markup:
    """A matplotlib figure as a vector picture, on a light ground in both colour schemes."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return _piece("figure", source=_data("image/svg+xml", buffer.getvalue()), caption=caption)


def images(pictures: Sequence[np.ndarray], captions: Sequence[str] | None = None, width: int = 128) -> Markup:
    """A grid of uint8 arrays (h, w), (h, w, 1) or (h, w, 3), each `width` pixels wide on the screen.

    Raises TypeError for another type, ValueError for another shape or a wrong number of captions.
    """
    captions = [""] * len(pictures) if captions is None else captions
    if len(captions) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures but {len(captions)} captions")
    cells = [(_data("image/png", _png(p)), c) for p, c in zip(pictures, captions, strict=True)]
    return _piece("images", cells=cells, width=width)


def video(content: bytes, caption: str = "", width: int = 256) -> Markup:
    """An MP4 (the bytes of the file), `width` pixels wide on the screen, that plays by itself, silently, for ever.

    Raises ValueError for bytes that are no MP4.
    """
    if content[4:8] != b"ftyp":
        raise ValueError("the bytes are no MP4 file; browsers play H.264 in MP4")
    return _piece("video", source=_data("video/mp4", content), caption=caption, width=width)


def warning(words: str) -> Markup:
    """Text in a box that nobody overlooks; an empty line starts a new paragraph."""
    return _piece("warning", paragraphs=[p for p in words.split("\n\n") if p.strip()])


def row(pieces: Sequence[Markup]) -> Markup:
    """Sections side by side, as many as fit."""
    return _piece("row", pieces=pieces)


def settings(folder: "RunFolder") -> list[Markup]:
    """Tables of config.yaml and env.json, the last part of a page."""
    config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    environment = json.loads(folder.environment.read_text(encoding="utf-8"))
    packages = environment.pop("packages")
    flat = dict(_flat(config))
    return [
        heading("Settings and environment"),
        table([{"setting": name, "value": _shown(value)} for name, value in flat.items()], "config.yaml"),
        table([{"what": n, "value": _shown(v)} for n, v in {**environment, **packages}.items()], "env.json"),
    ]


def duration(seconds: float) -> str:
    """3 min 7 s, or 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _piece(name: str, **values: Any) -> Markup:
    return Markup(getattr(_TEMPLATES.get_template("sections.html").module, name)(**values))


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    picture = np.asarray(picture)
    if picture.dtype != np.uint8:
        raise TypeError(f"a picture is {picture.dtype}; it must be uint8, 0 to 255")
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[..., 0]
    if picture.ndim != 2 and not (picture.ndim == 3 and picture.shape[2] == 3):
        raise ValueError(f"a picture has shape {picture.shape}; it must be (h, w), (h, w, 1) or (h, w, 3)")
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
