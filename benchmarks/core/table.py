"""The results of a study as one CSV table: a line a run, in the order of its key, with all that pages quote.

A record is a dict; a column that it lacks, or whose value is None, is empty, and reads as absent.  Text stands as it
is, all other values as JSON, and shares of the columns in `percent` times 100, digit by digit, so that the same
number comes back.  `ran_on()` makes the columns that say with what a run was made.
"""

import csv
import fcntl
import io
import json
import os
import shlex
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from shared_core.run.atomic import write_bytes
from shared_core.run.environment import describe

Record = dict[str, Any]

RAN_ON = ("commit", "uncommitted", "versions", "machine", "command")


class Table(NamedTuple):
    """A file and its columns; `key` names those in which no two lines are alike, and by which they are sorted."""

    path: Path
    columns: tuple[str, ...]
    key: tuple[str, ...]
    text: frozenset[str]
    percent: frozenset[str] = frozenset()


def read(table: Table) -> list[Record]:
    """The records, without their empty columns; none where there is no file.

    Raises:
        ValueError: the file has other columns.
    """
    if not table.path.is_file():
        return []
    with open(table.path, encoding="utf-8", newline="") as file:
        names, *lines = csv.reader(file)
    if tuple(names) != table.columns:
        raise ValueError(f"{table.path} has the columns {', '.join(names)}, not {', '.join(table.columns)}")
    return [
        {name: _value(table, name, cell) for name, cell in zip(names, line, strict=True) if cell}
        for line in lines
    ]


def put(table: Table, *records: Record) -> None:
    """Add records, in place of those of the same key, whole or not at all; processes take turns.

    Raises:
        ValueError: a record has a value for which there is no column.
    """
    table.path.parent.mkdir(parents=True, exist_ok=True)
    # The folder is the lock: no file of its own has to lie beside the table.
    folder = os.open(table.path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        known = {key_of(table, record): record for record in [*read(table), *records]}
        write_bytes(table.path, _csv(table, [known[key] for key in sorted(known)]))
    finally:
        os.close(folder)


def key_of(table: Table, record: Record) -> tuple[Any, ...]:
    """What the record's line is found by."""
    return tuple(record[name] for name in table.key)


def ran_on(environment: Record | None = None) -> Record:
    """Commit, versions, machine and command of this process, or as `describe()` had found them."""
    found = describe() if environment is None else environment
    tree = found["git"] or {}
    return {
        "commit": tree.get("commit"),
        "uncommitted": tree.get("changed"),
        "versions": {"python": found["python"], **found["packages"]},
        "machine": {name: found[name] for name in ("platform", "machine", "cpus", "torch_threads", "gpus")},
        "command": shlex.join(found["command"]),
    }


def _csv(table: Table, records: Sequence[Record]) -> bytes:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(table.columns)
    for record in records:
        unknown = [name for name in record if name not in table.columns and record[name] is not None]
        if unknown:
            raise ValueError(f"{table.path.name} has no column for {', '.join(unknown)}")
        lines.writerow([_cell(table, name, record.get(name)) for name in table.columns])
    return text.getvalue().encode()


def _cell(table: Table, name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in table.percent:
        return format(Decimal(repr(float(value))).scaleb(2), "f")
    return value if name in table.text else json.dumps(value)


def _value(table: Table, name: str, cell: str) -> Any:
    if name in table.percent:
        return float(Decimal(cell).scaleb(-2))
    return cell if name in table.text else json.loads(cell)
