"""Pages by hand: parts are filled in at their marks and nothing else changes."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def filled(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.core.marks import filled

    return filled


def test_parts_stand_at_their_marks_and_words_stay(filled):
    page = "# Words\n\n<!-- filled: a -->\nold\n<!-- end -->\n\nmore\n<!-- filled: b -->\n<!-- end -->\n"
    once = filled(page, {"a": "| 1 |\n", "b": "two\n\nthree"})
    assert once == (
        "# Words\n\n<!-- filled: a -->\n| 1 |\n<!-- end -->\n\nmore\n"
        "<!-- filled: b -->\ntwo\n\nthree\n<!-- end -->\n"
    )
    assert filled(once, {"a": "| 1 |", "b": "two\n\nthree"}) == once
    assert filled(once, {"a": "", "b": ""}) == page.replace("old\n", "")


def test_a_part_without_its_mark_is_an_error(filled):
    with pytest.raises(ValueError, match="one mark each for b; it has a"):
        filled("<!-- filled: a -->\n<!-- end -->\n", {"a": "1", "b": "2"})
