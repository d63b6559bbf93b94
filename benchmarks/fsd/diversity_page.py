"""docs/results/fsd.md with its figures and rows, from the finished cells of fsd/diversity.py.

`write_page(folder, found)` needs nothing but the records; the sheets of objects take new pictures from runs/.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shared_core.run.atomic import write_json, write_text

from benchmarks.core.marks import filled
from benchmarks.core.table import Table
from benchmarks.fsd import cells, plan
from benchmarks.fsd.gaps import not_measured, provenance
from benchmarks.fsd.in_short import consistency, in_short, split, split_rows
from benchmarks.fsd.verdicts import GOALS, Record, against_sds, of, verdicts

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PAGE, NOTEBOOK = RESULTS / "fsd.md", RESULTS / "notebook" / "fsd.md"

# Name in the tables: key of a record, factor, digits.
COLUMNS = {
    "cross-seed FID": ("cross_fid", 1.0, 2),
    "prompt accuracy, %": ("prompt_accuracy", 100.0, 1),
    "view consistency, %": ("view_consistency", 100.0, 1),
    "Vendi of 4": ("vendi", 1.0, 2),
    "inception score": ("inception_score", 1.0, 2),
    "1 - IoU": ("volume_distance", 1.0, 2),
    "Janus rate, %": ("janus_rate", 100.0, 1),
    "enclosed, %": ("enclosed_share", 100.0, 1),
    "passes": ("passes", 1.0, 0),
    "seconds": ("seconds", 1.0, 0),
    "core-seconds": ("core_seconds", 1.0, 0),
}
KEPT = (
    "cross_fid", "vendi", "view_consistency", "inception_score", "pairwise_distance", "volume_distance", "janus_rate",
    "view_accuracy", "enclosed_share", "floaters", "network_calls", "seconds", "core_seconds",
)  # fmt: skip


class Found(NamedTuple):
    """Finished cells of the present weights and settings: the main ones, ablations by (prior, knob, value)."""

    main: list[Record]
    ablations: dict[tuple[str, str, str], list[Record]]
    chosen: dict[str, Any]
    ignored: list[str]
    missing: list[plan.Cell]
    tuning: list[Record]


def load(table: Table, settings: Path, weights: Path | None = None, runs: Path = cells.RUNS) -> Found:
    """Reads the cells; what was made with other weights or settings is left out and listed."""
    there = cells.done(table)
    chosen = plan.read_settings(settings)
    known = {prior: cells.weights_hash(prior, weights) for prior in plan.PRIORS}
    main = plan.main_cells(max(plan.PROMPTS.values()), chosen)
    ablated = plan.ablation_cells(chosen)
    several = [cell for own in ablated.values() for cell in own if cell.group == "ablations"]
    ignored = cells.foreign([*main, *several], known, there)
    for prior, tuned in chosen.get("weights", {}).items():
        if tuned != known[prior]:
            ignored.append(f"{plan.SETTINGS.name}: {prior} was tuned with other weights ({tuned})")

    def done(wanted: Sequence[plan.Cell]) -> list[Record]:
        records = [(cell, cells.finished(cell, known[cell.prior], there)) for cell in wanted]
        return [record | _of_cell(cell, record, runs) for cell, record in records if record]

    by_value = {key: records for key, own in ablated.items() if (records := done(own))}
    # A knob of which there is nothing but what the main cells have says nothing.
    turned = {key[:2] for key, own in ablated.items() if key in by_value and own[0].group == "ablations"}
    by_value = {key: records for key, records in by_value.items() if key[:2] in turned}
    missing = [cell for cell in (*main, *several) if cells.finished(cell, known[cell.prior], there) is None]
    return Found(done(main), by_value, chosen, ignored, missing, done(plan.tuning_cells(chosen)))


def _of_cell(cell: plan.Cell, record: Record, runs: Path) -> dict[str, Any]:
    """What a record does not hold: passes, where its picture may lie, and the name of its settings."""
    return {
        "passes": plan.work(record),
        "picture": cells.folder_of(cell, record["weights"], runs) / "sheet.png",
        "print": cells.print_of(cell, record["weights"]),
    }


def rows(found: Found) -> list[dict[str, Any]]:
    """One row per prior and method: means over prompts, and how many of them."""
    return [
        _row(prior, method, records)
        for prior in plan.PRIORS
        for method in plan.METHODS
        if of(records := _of_prior(found.main, prior), method)
    ]


def write_page(folder: Path, found: Found) -> None:
    """Write fsd.json, fsd.md and the figures into `folder`."""
    from benchmarks.fsd.diversity_figures import ablations, montage, trade_off

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "fsd.json", {"rows": rows(found)})
    write_text(folder / "fsd.md", text(found))
    (folder / "notebook").mkdir(exist_ok=True)
    write_text(folder / "notebook" / "fsd.md", notebook(found))
    trade_off(folder / "fsd.png", found.main)
    for prior in plan.PRIORS:
        if records := _of_prior(found.main, prior):
            montage(folder / f"fsd-{prior}.png", records)
    if found.ablations:
        ablations(folder / "fsd-ablations.png", found.ablations)


def text(found: Found) -> str:
    """The whole page."""
    by_prior = {prior: _of_prior(found.main, prior) for prior in plan.PRIORS}
    parts = {
        "not measured": not_measured(found.missing, found.chosen),
        "in short": _in_short(by_prior),
        "by prior": _verdicts(by_prior),
        "by openness": _split(by_prior),
        "settings": _tuning(found.chosen),
        "priors": "\n".join(_section(prior, own) for prior, own in by_prior.items() if own),
        "ablations": _ablations(found) if found.ablations else "",
        "origins": provenance(_origins(found)),
        "not mixed in": _ignored(found.ignored),
    }
    return filled(PAGE.read_text(encoding="utf-8"), parts)


def notebook(found: Found) -> str:
    """The page of what was tried."""
    by_prior = {prior: _of_prior(found.main, prior) for prior in plan.PRIORS}
    lost = "\n".join(f"- {line}" for prior, own in by_prior.items() for line in consistency(prior, own))
    return filled(NOTEBOOK.read_text(encoding="utf-8"), {"consistency": lost})


def _of_prior(records: Sequence[Record], prior: str) -> list[Record]:
    return [record for record in records if record["prior"] == prior]


def _row(prior: str, method: str, records: Sequence[Record]) -> dict[str, Any]:
    own = list(of(records, method).values())
    means = {name: _mean([record.get(name) for record in own]) for name in KEPT}
    accuracy = _mean([record["prompt_accuracy"] for record in own])
    seeds = min(len(record["seeds"]) for record in own)
    return {
        "prior": f"embedded {prior}",
        "method": method,
        "prompts": len(own),
        "seeds": seeds,
        "prompt_accuracy": None if accuracy is None else 100 * accuracy,
        **means,
        # Rows have prompts of their own: these compare each with SDS on the same ones.
        **against_sds(records, method),
        "by_kind_of_prompt": split(records, method),
        "prompt_names": [record["prompt"] for record in own],
        "settings": own[0]["settings"],
        "weights": own[0]["weights"],
    }


def _in_short(by_prior: Mapping[str, Sequence[Record]]) -> str:
    sentences = [f"{number}. {line}" for number, line in enumerate(in_short(by_prior), 1)]
    return "\n".join(["## In short\n", *sentences]) + "\n"


def _verdicts(by_prior: Mapping[str, Sequence[Record]]) -> str:
    lines = ["## By prior and setting\n"]
    lines.append(
        "Cross-seed FID over SDS's on the same prompts; change of prompt accuracy and view consistency against SDS.\n"
    )
    for prior, records in by_prior.items():
        lines += [
            f"**{prior} prior**, goal {GOALS[prior]:g} times\n",
            *(f"- {line}" for line in verdicts(prior, records)),
            "",
        ]
    return "\n".join([*lines, "![quality against diversity](fsd.png)\n"])


def _split(by_prior: Mapping[str, Sequence[Record]]) -> str:
    columns = ["method", "prompts", "cross-seed FID", "Vendi of 4", "names of 4", "cross-seed FID over SDS's"]
    found = [row for prior, records in by_prior.items() for row in split_rows(prior, records)]
    table = [
        _line("prior", columns),
        "|---" * (1 + len(columns)) + "|",
        *(_line(row[0], row[1:]) for row in found),
    ]
    return "\n".join(table) + "\n"


def _origins(found: Found) -> dict[str, Sequence[Record]]:
    ablated = [own for records in found.ablations.values() for own in records]
    return {
        "Methods by prompts": found.main,
        # The setting that an ablation has anyway is a main cell.
        "Ablations": [own for own in ablated if own["method"] not in plan.METHODS],
        "Tuning": found.tuning,
    }


def _tuning(chosen: dict[str, Any]) -> str:
    lines = ["## Settings\n"]
    if not chosen.get("product"):
        return lines[0] + f"\n**Not tuned**: learning rate times steps is {plan.UNTUNED:g} for all methods.\n"
    seeds, prompts = chosen["held_out_seeds"], chosen["held_out_prompts"]
    lines += [
        "Every method's learning rate times steps was tuned on two prompts that are not among those below, SDS's too, "
        "and then fixed in `benchmarks/fsd/diversity_settings.json`.\n",
        f"{chosen['rule']}\n",
        f"Held out: {' and '.join(map(repr, prompts))}, seeds {', '.join(map(str, seeds))}.  A cell shows cross-seed "
        "FID / prompt accuracy / view consistency; the chosen one is bold.\n",
    ]
    tried = {prior: by_method for prior, by_method in chosen["tried"].items() if by_method}
    products = sorted({c["product"] for by in tried.values() for own in by.values() for c in own})
    lines += [
        _line("prior", ["method", *(f"{product:g}" for product in products)]),
        "|---" * (2 + len(products)) + "|",
    ]
    for prior, by_method in tried.items():
        for method, own in by_method.items():
            taken = chosen["product"][prior][method]
            shown = {c["product"]: _candidate(c, c["product"] == taken) for c in own}
            lines.append(_line(prior, [method, *(shown.get(product, "") for product in products)]))
    for prior, by_method in tried.items():
        edge = [
            f"`{method}` ({chosen['product'][prior][method]:g})"
            for method, own in by_method.items()
            if len(own) > 1 and chosen["product"][prior][method] in _ends(own)
        ]
        if edge:
            lines.append(
                f"\nAt the edge of its grid on the {prior} prior, so that a better value may lie outside: "
                f"{', '.join(edge)}."
            )
    others = sorted(set(plan.METHODS) - {m for by in tried.values() for m in by})
    if others:
        lines.append(f"\nNot tuned ({plan.UNTUNED:g}): {', '.join(others)}.")
    return "\n".join(lines) + "\n"


def _ends(candidates: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Least and largest product that was tried."""
    products = [candidate["product"] for candidate in candidates]
    return min(products), max(products)


def _candidate(candidate: dict[str, Any], taken: bool) -> str:
    names = (("cross_fid", 2), ("prompt_accuracy", 0), ("view_consistency", 0))
    words = " / ".join(_number(candidate[name], digits) for name, digits in names)
    return f"**{words}**" if taken else words


def _section(prior: str, records: Sequence[Record]) -> str:
    steps = max(record["settings"]["steps"] for record in records)
    fewer = {r["method"]: r["settings"]["steps"] for r in records if r["settings"]["steps"] < steps}
    less = ", ".join(f"`{method}` {count}" for method, count in fewer.items())
    seeds = ", ".join(map(str, records[0]["seeds"]))
    first, *others = COLUMNS
    lines = [
        f"## The {prior} prior\n",
        f"Seeds {seeds}; {steps} steps of {records[0]['settings']['batch_size']} views{f' ({less})' if less else ''}; "
        f"guidance {records[0]['settings']['guidance_scale']:g}; weights `{records[0]['weights']}`.  "
        "Mean over the method's prompts (standard deviation over them); seconds are an object's, on a busy machine.  "
        "Rows with other numbers of prompts are means over other prompts: SDS's distance over the same ones, and the "
        "ratio to it, stand beside cross-seed FID.\n",
        _line("method", ["prompts", first, "SDS's, same prompts", "over SDS", *others]),
        "|---" * (5 + len(others)) + "|",
    ]
    for method in plan.METHODS:
        own = of(records, method).values()
        if own:
            columns = [
                _spread([r.get(key) for r in own], scale, digits) for key, scale, digits in COLUMNS.values()
            ]
            theirs = against_sds(records, method)
            columns[1:1] = [_number(theirs["sds_cross_fid"], 2), _ratio(theirs["ratio_to_sds"])]
            lines.append(_line(f"`{method}`", [str(len(own)), *columns]))
    vanished = {m: sum(r["without_mesh"] for r in of(records, m).values()) for m in plan.METHODS}
    if any(vanished.values()):
        lost = ", ".join(f"{method} {count}" for method, count in vanished.items() if count)
        lines.append(f"\nObjects that vanished, with nothing opaque to make a mesh of: {lost}.")
    methods = [method for method in plan.METHODS if of(records, method)]
    lines += [
        "\nBy prompt: cross-seed FID / prompt accuracy / view consistency.\n",
        _line("prompt", [f"`{method}`" for method in methods]),
        "|---" * (1 + len(methods)) + "|",
    ]
    for prompt in plan.PROMPTS:
        by_method = [of(records, method).get(prompt) for method in methods]
        if any(by_method):
            lines.append(_line(prompt, [_of_prompt(record) for record in by_method]))
    lines += [
        f"\n![objects of the {prior} prior](fsd-{prior}.png)\n",
        "Rows are prompts, columns methods; in a cell each row is a seed, seen from the front, left, back and right.",
    ]
    return "\n".join(lines) + "\n"


def _of_prompt(record: Record | None) -> str:
    if record is None:
        return ""
    accuracy = record["prompt_accuracy"]
    values = (record["cross_fid"], 2), (accuracy and 100 * accuracy, 0), (100 * record["view_consistency"], 0)
    return " / ".join(_number(value, digits) for value, digits in values)


def _ablations(found: Found) -> str:
    prompts = " and ".join(map(repr, plan.ABLATED_PROMPTS))
    lines = [
        "## Ablations\n",
        f"`{plan.ABLATED}` with one setting changed, prompts {prompts}, means over them: with so few, a hint.\n",
        "![ablations](fsd-ablations.png)\n",
        _line("prior", ["setting", "value", "cross-seed FID", "prompt accuracy, %", "view consistency, %"]),
        "|---" * 6 + "|",
    ]
    for (prior, knob, value), own in found.ablations.items():
        names = (("cross_fid", 1.0, 2), ("prompt_accuracy", 100.0, 0), ("view_consistency", 100.0, 0))
        means = [_spread([r[name] for r in own], scale, digits) for name, scale, digits in names]
        part = "" if len(own) == len(plan.ABLATED_PROMPTS) else f" ({len(own)} prompt)"
        lines.append(_line(prior, [knob, value + part, *means]))
    return "\n".join(lines) + "\n"


def _ignored(lines: Sequence[str]) -> str:
    return "\n".join(["## Not mixed in\n", *(f"- {line}" for line in lines)]) if lines else ""


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _spread(values: Sequence[float | None], scale: float, digits: int) -> str:
    known = [scale * value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ({statistics.stdev(known):.{digits}f})" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{spread}"


def _ratio(found: dict[str, float] | None) -> str:
    return "-" if found is None else f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _line(first: str, columns: Sequence[str]) -> str:
    return f"| {' | '.join([first, *columns])} |"
