"""Settings that would do nothing are refused by name, so that nobody compares two runs that are the same.

>>> NEEDS = [Need("optim.momentum", lambda c: c.optim.schedule != "onecycle", "optim.schedule cosine or constant")]
>>> refuse_idle(config, NEEDS)
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pydantic


class Need(NamedTuple):
    """Settings (dotted keys, with blanks between) that act only where `acts` says so; `wants` says it in words."""

    keys: str
    acts: Callable[[Any], Any]
    wants: str


def refuse_idle(config: pydantic.BaseModel, needs: Iterable[Need]) -> None:
    """Raises ValueError naming the first settings that differ from their default and do nothing in this run.

    Asked before a run and not when a record is read: a run of several methods has settings that one of them ignores.
    """
    lines = []
    for need in needs:
        given = [key for key in need.keys.split() if is_changed(config, key)]
        if given and not need.acts(config):
            verb = "does" if len(given) == 1 else "do"
            lines.append(f"{', '.join(given)} {verb} nothing here and must be left out; needed: {need.wants}")
    if lines:
        raise ValueError("\n".join(lines[:3]))


def is_changed(config: pydantic.BaseModel, key: str) -> bool:
    """Whether the setting of this dotted key differs from its default."""
    value: Any = config
    default: Any = None
    for name in key.split("."):
        default = type(value).model_fields[name].get_default(call_default_factory=True)
        value = getattr(value, name)
    return value != default


def keys_of(cls: type[pydantic.BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a configuration, those of records inside included, in order."""
    found: list[str] = []
    for name, field in cls.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
            found += keys_of(kind, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found
