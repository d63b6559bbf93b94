"""Configuration files as people write them: YAML in which a word is a word, a number a number, and no key comes twice.

YAML 1.1 reads `off`, `no`, `on` and `yes` as truth values, `010` as 8, `1:30` as 90, `2024-01-01` as a date and `1e-3`
as text.  Here, as in YAML 1.2, only `true` and `false` are truth values, and these are two words, two texts, a text
and the number 0.001.
"""

import os
import re
from pathlib import Path
from typing import Any

import yaml


class YamlError(ValueError):
    """The file cannot be used; the message says why, with the line where there is one."""


class _Loader(yaml.SafeLoader):
    """Plain values only, with the rules above."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
):
    _kind = re.compile(rf"^(?:{_pattern})$")
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", _kind, [*_first, *([""] if _tag == "null" else [])]
    )


def _integer(loader: yaml.SafeLoader, node: yaml.Node) -> int:
    return int(str(loader.construct_scalar(node)).replace("_", ""), 0)  # pyright: ignore[reportArgumentType]


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else None
        if name is not None and name in seen:
            raise YamlError(f"line {key.start_mark.line + 1}: the key {name!r} is there twice; keep one")
        seen.add(name)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """The keys and values of a file; an empty one has none.  `a.b: 1` is the same as `a: {b: 1}`.

    Raises YamlError for a file that is not there, not UTF-8, not YAML, holds no keys or one of them twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise YamlError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise YamlError(f"cannot read the configuration {path}: it is not a text file in UTF-8") from error
    try:
        values = yaml.load(text, _Loader)
    except YamlError as error:
        raise YamlError(f"{path}, {error}") from error
    except yaml.YAMLError as error:
        tab = next((n for n, line in enumerate(text.splitlines(), 1) if re.match(r" *\t", line)), None)
        if tab is not None:
            raise YamlError(f"{path}, line {tab}: a tab cannot indent YAML; use blanks") from error
        raise YamlError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except (RecursionError, ValueError, TypeError) as error:
        # Lists within lists without end; a number of more digits than Python reads; a list as a key.
        raise YamlError(f"{path} is not a configuration: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise YamlError(f"{path} must hold `key: value` lines, it holds a {type(values).__name__}")
    try:
        return _nested(values)
    except YamlError as error:
        raise YamlError(f"{path}: {error}") from error


def _nested(values: dict[Any, Any]) -> dict[Any, Any]:
    """Dotted keys as records inside records."""
    found: dict[Any, Any] = {}
    for key, value in values.items():
        if not (isinstance(key, str) and "." in key.strip(".")):
            if isinstance(found.get(key), dict) and isinstance(value, dict):
                # The record came in dotted keys before.
                value = _together(found[key], value, f"{key}.")
            elif key in found:
                raise YamlError(f"{key!r} is there twice; keep one")
            found[key] = value
            continue
        *records, name = key.split(".")
        inner: dict[Any, Any] = {name: value}
        for record in reversed(records):
            inner = {record: inner}
        found = _together(found, inner, "")
    return found


def _together(one: dict[Any, Any], other: dict[Any, Any], prefix: str) -> dict[Any, Any]:
    found = dict(one)
    for key, value in other.items():
        if key not in found:
            found[key] = value
        elif isinstance(found[key], dict) and isinstance(value, dict):
            found[key] = _together(found[key], value, f"{prefix}{key}.")
        else:
            raise YamlError(f"'{prefix}{key}' is there twice; keep one")
    return found
