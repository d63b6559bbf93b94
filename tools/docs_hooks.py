"""What mkdocs does to our pages besides Markdown (named in mkdocs.yml).

- formulas become MathML, which browsers draw by themselves: no script, no font, no server;
- `<!-- help: corsd train -->` becomes what the command prints;
- `<!-- settings: corsd.config.TrainConfig -->` becomes a table of the model's fields, nested ones with a dot;
- `<!-- names: corsd -->` becomes a table of the package's public names, linked to their place on the page;
- each examples/notebooks/*.py is offered as a notebook, too.
"""

import ast
import contextlib
import html
import importlib
import io
import os
import re
import types
import typing
import unicodedata
from pathlib import Path
from typing import Any, Literal

import jupytext
import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
STYLED = re.compile(r'<mi mathvariant="(script|double-struck)">([A-Z])</mi>')
DIRECTIVE = re.compile(r"^<!-- (help|settings|names): (.+?) -->$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts pages that the menu does not name, such as new results, at its end."""
    named = set(re.findall(r"[\w/.-]+\.md", str(config.nav)))
    pages = sorted(
        path.relative_to(config.docs_dir).as_posix() for path in Path(config.docs_dir).rglob("*.md")
    )
    menu = config.nav or []
    menu[-1]["All methods"] += [page for page in pages if page not in named]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the notebooks."""
    for source in sorted((ROOT / "examples/notebooks").glob("*.py")):
        text = jupytext.writes(jupytext.read(source), fmt="ipynb")
        files.append(File.generated(config, f"notebooks/{source.stem}.ipynb", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in the directives."""
    fill = {"help": help_text, "settings": settings_table, "names": names_table}
    return DIRECTIVE.sub(lambda found: fill[found[1]](found[2]), markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draws the formulas."""
    return FORMULA.sub(lambda found: math_ml(html.unescape(found[3]), found[1] == "div"), content)


def on_post_build(config: MkDocsConfig) -> None:
    """Takes away the page for missing addresses: only a server would show it, and at the root of its own."""
    Path(config.site_dir, "404.html").unlink(missing_ok=True)


def math_ml(latex: str, block: bool) -> str:
    """One formula; a PluginError, which ends the build, if a command in it is not understood."""
    known = latex.strip().replace(r"\arg", r"\mathrm{arg}\,")
    text = latex2mathml.converter.convert(known, display="block" if block else "inline")
    if "\\" in text:
        raise PluginError(f"latex2mathml does not know a command of {latex.strip()!r}")
    # A tilde would else float far above its letter.
    text = text.replace("<mover><", '<mover accent="true"><')
    text = STYLED.sub(lambda found: f"<mi>{styled_letter(found[1], found[2])}</mi>", text)
    return text if block else f'<span class="inline-math">{text}</span>'


def styled_letter(style: str, letter: str) -> str:
    """A letter of its own: browsers pass over MathML's `mathvariant`."""
    name = f"{style.upper()} CAPITAL {letter}"
    try:
        return unicodedata.lookup(f"MATHEMATICAL {name}")
    except KeyError:  # a few are older than the others and have the plain name
        return unicodedata.lookup(name)


def help_text(command: str) -> str:
    """What `command --help` prints, at 80 columns."""
    package, *rest = command.split()
    main = importlib.import_module(f"{package}.cli").main
    said = io.StringIO()
    columns, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "80"
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([*rest, "--help"])
    finally:
        del os.environ["COLUMNS"]
        os.environ.update({"COLUMNS": columns} if columns is not None else {})
    if "usage:" not in said.getvalue():
        raise PluginError(f"{command} --help printed no usage")
    return f"```text\n$ {command} --help\n{said.getvalue().strip()}\n```"


def settings_table(path: str) -> str:
    """Key, values, default and meaning of every field of a pydantic model."""
    module, name = path.rsplit(".", 1)
    rows = settings(getattr(importlib.import_module(module), name))
    return "\n".join(["| key | values | default | what |", "|---|---|---|---|", *rows])


def settings(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The table's rows; a nested model's fields follow under its key and a dot."""
    rows = []
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            rows += settings(field.annotation, f"{prefix}{key}.")
            continue
        default = field.get_default(call_default_factory=True)
        cells = [f"`{prefix}{key}`", values(field.annotation), f"`{default!r}`", field.description or ""]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def values(annotation: Any) -> str:
    """A type in the words of a YAML file."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return values(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(values(one) for one in inner)
    if origin in (tuple, list):
        return f"list of {values(inner[0])}"
    if origin is dict:
        return "mapping"
    plain = {str: "text", int: "whole number", float: "number", bool: "true, false", Path: "path"}
    return "null" if annotation in (None, type(None)) else plain.get(annotation, "`" + str(annotation) + "`")


def names_table(package: str) -> str:
    """Every public name, linked to its documentation, with the first sentence of its docstring."""
    module = importlib.import_module(package)
    rows = []
    for name in module.__all__:
        thing = getattr(module, name)
        home = thing.__name__ if isinstance(thing, types.ModuleType) else f"{thing.__module__}.{name}"
        rows.append(f"| [`{package}.{name}`][{home}] | {first_sentence(home, name, thing)} |")
    return "\n".join(["| name | what |", "|---|---|", *rows])


def first_sentence(home: str, name: str, thing: Any) -> str:
    """Of the docstring as written: dataclasses without one are given their signature by Python."""
    written = thing.__doc__ or ""
    if not isinstance(thing, types.ModuleType):
        source = Path(importlib.import_module(thing.__module__).__file__ or "").read_text(encoding="utf-8")
        node = next(n for n in ast.parse(source).body if getattr(n, "name", None) == name)
        assert isinstance(node, ast.ClassDef | ast.FunctionDef)
        written = ast.get_docstring(node) or ""
    if not written:
        raise PluginError(f"{home} has no docstring")
    paragraph = " ".join(written.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.;])\s", re.sub(r":\w+:(?=`)", "", paragraph))[0]
    return sentence.rstrip(".;:").replace("|", "\\|")
