"""The numbers of a run in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from shared_core.run.report import cards, table

NAMES = {
    "fsd": "FSD",
    "sds": "SDS",
    "sds-annealed": "SDS, annealed",
    "cfd": "CFD",
    "sdi": "SDI",
    "ism": "ISM",
    "csd": "CSD",
    "nfsd": "NFSD",
    "vsd": "VSD",
}
NUMBERS = {
    "pairwise_distance": "distance between seeds",
    "minimum_distance": "distance of the closest two",
    "distinct": "distinct objects",
    "view_consistency": "view consistency",
    "quality": "distance from the prior's pictures",
    "vendi": "effective number of objects",
    "volume_distance": "difference in shape (1 - IoU)",
    "enclosed_share": "hollow share",
    "floaters": "floating pieces",
    "network_calls": "network calls per object",
    "seconds": "seconds per object",
    "peak_memory_gb": "peak memory (GB)",
}
Row = Mapping[str, Any]


def method_name(guidance: str) -> str:
    """As papers write it."""
    return NAMES.get(guidance, guidance)


def key_numbers(rows: Sequence[Row]) -> Markup:
    """Cards for one method, a column per method for several, a line per prompt and method for several prompts."""
    shown = {key: name for key, name in NUMBERS.items() if any(row.get(key) is not None for row in rows)}
    if len(rows) == 1:
        return cards({name: _value(rows[0], key) for key, name in shown.items()})
    if len({row["prompt"] for row in rows}) == 1:
        lines = [
            {"": name, **{method_name(row["guidance"]): _value(row, key) for row in rows}}
            for key, name in shown.items()
        ]
        return table(lines, f"{_seeds(rows)} each.")
    return table(
        [
            {"prompt": row["prompt"], "guidance": method_name(row["guidance"])}
            | {name: _value(row, key) for key, name in shown.items()}
            for row in rows
        ]
    )


def comparison(rows: Sequence[Row]) -> list[str]:
    """The first method against each other one of the same prompt: diversity, and what it cost."""
    sentences = []
    for first in _firsts(rows):
        for other in rows:
            if other["prompt"] != first["prompt"] or other["guidance"] == first["guidance"]:
                continue
            if first["pairwise_distance"] is None or other["pairwise_distance"] is None:
                continue
            names = [method_name(row["guidance"]) for row in (first, other)]
            ours, theirs = first["pairwise_distance"], other["pairwise_distance"]
            if theirs < 1e-6:
                sentence = f"The seeds of {names[1]} all gave the same object; those of {names[0]} lie {ours:.3f} apart"
            else:
                sentence = (
                    f"The seeds of {names[0]} lie {ours / theirs:.2g} times as far apart as those of {names[1]} "
                    f"({ours:.3f} against {theirs:.3f})"
                )
            if first["distinct"] is not None and other["distinct"] is not None:
                sentence += (
                    f", with {first['distinct']} distinct objects of {len(first['seeds'])} against "
                    f"{other['distinct']} of {len(other['seeds'])}"
                )
            if first["view_consistency"] is not None and other["view_consistency"] is not None:
                sentence += (
                    f"; of an object's views {100 * first['view_consistency']:.0f} % agree, "
                    f"against {100 * other['view_consistency']:.0f} %"
                )
            several = len({row["prompt"] for row in rows}) > 1
            sentences.append(f"{first['prompt']}: {sentence}." if several else f"{sentence}.")
    return sentences


def meaning(rows: Sequence[Row]) -> list[str]:
    """What the numbers say and what they do not."""
    if not rows:
        return []
    words = []
    if any(row["pairwise_distance"] is not None for row in rows):
        words.append(
            "The distance between seeds is the root mean square difference of their pictures from the same view, 0 "
            "for the same object. It says that objects differ, not that they are good: objects that fall apart "
            "differ, too. So read it beside what says how good they are."
        )
    else:
        words.append("One seed has no distance to another: give several to see how much the objects differ.")
    if any(row["view_consistency"] is not None for row in rows):
        words.append(
            "View consistency is the share of an object's views that the prior takes for the same thing, 100 % for an "
            "object that is one all around. The distance from the prior's pictures is that of a view to the nearest "
            "picture that the prior knows, 0 for one of them: lower is better."
        )
    else:
        words.append(
            "This prior cannot name what it sees, so distinct objects and view consistency are unknown: look at the "
            "turntables for faces on several sides and for objects that change on the way around."
        )
    if any(row.get("vendi") is not None for row in rows):
        words.append(
            "The effective number of objects is the Vendi score of the views: 1 if all seeds gave the same, the number "
            "of seeds if they have nothing in common. Shapes are compared as the space that the meshes fill; what is "
            "hollow or floats apart is often a fault."
        )
    if max(len(row["seeds"]) for row in rows) < 8:
        words.append(f"{_seeds(rows)} for each method are few: small differences are chance.")
    return words


def _firsts(rows: Sequence[Row]) -> list[Row]:
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row["prompt"], row)
    return list(found.values())


def _seeds(rows: Sequence[Row]) -> str:
    counts = sorted({len(row["seeds"]) for row in rows})
    words = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    return "One seed" if words == "1" else f"{words} seeds"


def _value(row: Row, key: str) -> Any:
    value = row.get(key)
    if value is None:
        return None
    if key == "distinct":
        return f"{value} of {len(row['seeds'])}"
    if key in ("view_consistency", "enclosed_share"):
        return f"{100 * value:.0f} %"
    if key in ("seconds", "network_calls"):
        return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
    return f"{value:.3g}"
