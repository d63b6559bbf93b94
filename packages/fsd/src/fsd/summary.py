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
    "cross_fid": "cross-seed FID",
    "vendi": "effective number of objects",
    "inception_score": "inception score over seeds",
    "kind_entropy": "entropy of kinds",
    "colour_entropy": "entropy of colours",
    "prompt_accuracy": "prompt accuracy",
    "view_consistency": "view consistency",
    "kind_consistency": "the same, of the kind alone",
    "colour_consistency": "the same, of the colour alone",
    "view_accuracy": "sides where they belong",
    "janus_rate": "fronts seen from behind",
    "quality": "distance from the prior's pictures",
    "volume_distance": "difference in shape (1 - IoU)",
    "enclosed_share": "hollow share",
    "floaters": "floating pieces",
    "network_calls": "network calls per object",
    "seconds": "seconds per object",
    "peak_memory_gb": "peak memory (GB)",
}
SHARES = (
    "prompt_accuracy",
    "view_consistency",
    "kind_consistency",
    "colour_consistency",
    "view_accuracy",
    "janus_rate",
    "enclosed_share",
)
Row = Mapping[str, Any]


# What a number says, where one of these was measured.
SENTENCES = {
    ("quality",): (
        "The distance from the prior's pictures is that of a view to the nearest picture that the prior knows, 0 for "
        "one of them: lower is better."
    ),
    ("prompt_accuracy",): (
        "Names come from the judge, a small network that learned the prior's world from other pictures and is right "
        "about 99 of 100 of them; prompt accuracy is the share of the views whose kind and colour are what the prompt "
        "asks for."
    ),
    ("janus_rate", "view_accuracy"): (
        "Sides where they belong is the share of views that show the front, side or back that their camera stands at; "
        "fronts seen from behind, the Janus problem, is the share of views from behind that show a front. Only kinds "
        "with a front have them."
    ),
    ("cross_fid",): (
        "The cross-seed FID is the distance between what the judge sees in the first half of the seeds and in the "
        "second: 0 where both show the same, higher is more diverse, and only numbers of as many seeds compare."
    ),
    ("inception_score", "kind_entropy", "colour_entropy"): (
        "The inception score over seeds is 1 where all seeds got the same name at a view and the number of seeds "
        "where all differ; the entropies are of the seeds' kinds and colours, 0 for one and log n for n alike."
    ),
}
GEOMETRY = (
    "Shapes are compared as the space that the meshes fill; what is hollow or floats apart is often a fault."
)


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
            if first.get("prompt_accuracy") is not None and other.get("prompt_accuracy") is not None:
                sentence += (
                    f"; {100 * first['prompt_accuracy']:.0f} % show what was asked for, "
                    f"against {100 * other['prompt_accuracy']:.0f} %"
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
    known = {key for row in rows for key in NUMBERS if row.get(key) is not None}
    if "view_consistency" in known:
        words.append(
            "View consistency is the share of an object's views that get the same name, colour and kind, 100 % for an "
            "object that is one all around."
        )
    else:
        words.append(
            "This prior cannot name what it sees, so distinct objects and view consistency are unknown: look at the "
            "turntables for faces on several sides and for objects that change on the way around."
        )
    words += [sentence for keys, sentence in SENTENCES.items() if known & set(keys)]
    if "vendi" in known:
        words.append(f"{_of_vendi(known)} {GEOMETRY}")
    if max(len(row["seeds"]) for row in rows) < 8:
        words.append(f"{_seeds(rows)} for each method are few: small differences are chance.")
    return words


def _of_vendi(known: set[str]) -> str:
    of = "what the judge sees in them" if "cross_fid" in known else "the views"
    return (
        f"The effective number of objects is the Vendi score of {of}: 1 if all seeds gave the same, the number of "
        "seeds if they have nothing in common."
    )


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
    if key in SHARES:
        return f"{100 * value:.0f} %"
    if key in ("seconds", "network_calls"):
        return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
    return f"{value:.3g}"
