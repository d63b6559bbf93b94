"""Our docstrings as Markdown, for mkdocstrings (named in mkdocs.yml).

Docstrings are read in an editor first: arguments and examples stand in them as plain lines, and cross references
have roles.  On the site a module shows its first paragraph and its tables only, since its example is in the
tutorials.
"""

import re
from typing import Any

from griffe import Extension, Module, Object

ROLE = re.compile(r":(?:class|func|mod|meth|data):(?=`)")
ARGUMENT = re.compile(r"(\w+(?:, \w+)*): ")
RULE = re.compile(r"={4,}[ =]*$")


class Prose(Extension):
    """Rewrites every docstring while the sources are read."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Called once for each module, class, function and attribute."""
        if obj.docstring:
            text = ROLE.sub("", obj.docstring.value)
            obj.docstring.value = opening(text) if isinstance(obj, Module) else as_markdown(text)


def opening(text: str) -> str:
    """The first paragraph, and tables in Markdown."""
    first, *more = text.split("\n\n")
    return "\n\n".join([first, *(part for part in more if part.startswith("|"))])


def as_markdown(text: str) -> str:
    """Doctests and ruled tables in fences, and `name: meaning` lines as a list."""
    if re.search(r"^(Args|Returns):$", text, flags=re.MULTILINE):
        return text
    lines: list[str] = []
    block = ""  # what the line before belongs to: "", "doctest", "table" or "argument"
    rules = sum(bool(RULE.match(line)) for line in text.split("\n"))
    for line in text.split("\n"):
        before = block
        rules -= bool(RULE.match(line))
        if before == "table" or RULE.match(line):
            block = "table"
        elif line.lstrip().startswith(">>> ") or (before == "doctest" and line.strip()):
            block = "doctest"
        elif ARGUMENT.match(line) or (before == "argument" and line.startswith("    ")):
            block = "argument"
        else:
            block = ""
        if block != before:
            lines += ["```"] * (before == "doctest") + [""]
            lines += (
                [{"doctest": "```python", "table": "```text"}[block]] if block in ("doctest", "table") else []
            )
        lines.append(ARGUMENT.sub(r"- **\1**: ", line, count=1) if block == "argument" else line)
        if block == "table" and RULE.match(line) and rules == 0:
            lines.append("```")
            block = ""
    return "\n".join([*lines, "```"] if block == "doctest" else lines)
