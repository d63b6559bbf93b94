"""docs/reliability.md says what is stored, and what is stored is what the suite counts.

Outside of tests/reliability/, which writes figures only when all its tests have passed.
"""

import ast
import json
import re
import runpy
from pathlib import Path

import pytest

SUITE = Path(__file__).parent / "reliability"
PAGE = runpy.run_path(str(SUITE / "page.py"))
STORED = json.loads(PAGE["FIGURES"].read_text(encoding="utf-8"))


def counted() -> list[re.Pattern[str]]:
    """The kind of mishap in each call of count() in the suite; what the test fills in matches anything."""
    found = []
    for file in sorted(SUITE.glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "count":
                what = node.args[0]
                parts = what.values if isinstance(what, ast.JoinedStr) else [what]
                words = [re.escape(p.value) if isinstance(p, ast.Constant) else r"\w+" for p in parts]
                found.append(re.compile("".join(words)))
    return found


def test_the_page_shows_what_is_stored() -> None:
    """Run `python tests/reliability/page.py` after a new measurement."""
    text = PAGE["PAGE"].read_text(encoding="utf-8")
    assert PAGE["page"](text, STORED) == text


def test_what_is_stored_is_what_the_suite_counts() -> None:
    """Measure anew as the page says when this fails."""
    patterns = counted()
    assert len(patterns) > 20
    for kind, ends in STORED["figures"].items():
        calls = [pattern for pattern in patterns if pattern.fullmatch(kind)]
        assert calls, f"nothing counts {kind!r} any more"
        # Some end in one way or the other, so these are counted once by two calls.
        assert sum(ends.values()) >= len(calls), f"{kind!r}: {sum(ends.values())} cases of {len(calls)} tests"
    for pattern in patterns:
        assert any(pattern.fullmatch(kind) for kind in STORED["figures"]), f"no case of {pattern.pattern!r}"


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for the table"):
        PAGE["page"]("# Reliability\n", STORED)
