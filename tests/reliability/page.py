"""Put what the reliability suite counted into docs/reliability.md.

python tests/reliability/page.py figures.json
"""

import json
import re
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/reliability.md"


def table(figures: dict[str, dict[str, int]]) -> str:
    """A row per kind of mishap and how it ended, with the number of cases."""
    rows = [f"| {what} | {how} | {count} |" for what, ends in figures.items() for how, count in ends.items()]
    total = sum(count for ends in figures.values() for count in ends.values())
    head = ["| mishap | how it ended | cases |", "|---|---|---|"]
    return "\n".join([*head, *rows, "", f"{total} cases of the three methods; no other end was seen."])


def main(figures: Path) -> None:
    """Write the table between the page's two marks."""
    text = PAGE.read_text(encoding="utf-8")
    new = table(json.loads(figures.read_text(encoding="utf-8")))
    marks = r"(<!-- made by tests/reliability/page\.py -->\n).*?(<!-- end -->)"
    text, count = re.subn(marks, lambda found: f"{found[1]}{new}\n{found[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{PAGE} has no place for the table")
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
