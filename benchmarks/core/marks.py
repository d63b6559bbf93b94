"""Pages written by hand, with tables and sentences of numbers filled in between marks.

A mark is `<!-- filled: NAME -->`, and what is filled in ends at `<!-- end -->`.

>>> filled("One\\n<!-- filled: x -->\\n<!-- end -->\\n", {"x": "two"})
'One\\n<!-- filled: x -->\\ntwo\\n<!-- end -->\\n'
"""

import re
from collections.abc import Mapping

MARKS = re.compile(r"(<!-- filled: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, parts: Mapping[str, str]) -> str:
    """The page with every part at its mark; a mark without a part becomes empty.

    Raises:
        ValueError: a part has no mark or several.
    """
    names = [found[2] for found in MARKS.finditer(text)]
    wrong = [name for name in parts if names.count(name) != 1]
    if wrong:
        raise ValueError(f"the page needs one mark each for {', '.join(wrong)}; it has {', '.join(names)}")

    def part(found: re.Match[str]) -> str:
        own = parts.get(found[2], "").strip("\n")
        return f"{found[1]}{own}\n{found[3]}" if own else f"{found[1]}{found[3]}"

    return MARKS.sub(part, text)
