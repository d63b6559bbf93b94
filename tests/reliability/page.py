"""Put what the reliability suite counted into docs/reliability.md.

python tests/reliability/page.py
"""

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs/reliability.md"
FIGURES = Path(__file__).with_name("figures.json")
MARKS = re.compile(r"(<!-- made by tests/reliability/page\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def table(record: dict[str, Any]) -> str:
    """A row per kind of mishap and how it ended, with the number of cases."""
    figures: dict[str, dict[str, int]] = record["figures"]
    rows = [f"| {what} | {how} | {count} |" for what, ends in figures.items() for how, count in ends.items()]
    total = sum(count for ends in figures.values() for count in ends.values())
    mode = "The full run" if record["full"] else "The short run, as on every push"
    head = ["| mishap | how it ended | cases |", "|---|---|---|"]
    return "\n".join(
        [*head, *rows, "", f"{mode}: {total} cases of the three methods; no other end was seen."]
    )


def page(text: str, record: dict[str, Any]) -> str:
    """The page's text with the table between its two marks.  Raises ValueError for a page without them."""
    text, count = MARKS.subn(lambda found: f"{found[1]}{table(record)}\n{found[2]}", text)
    if count != 1:
        raise ValueError(f"{PAGE} has no place for the table")
    return text


if __name__ == "__main__":
    PAGE.write_text(
        page(PAGE.read_text(encoding="utf-8"), json.loads(FIGURES.read_text(encoding="utf-8"))),
        encoding="utf-8",
    )
