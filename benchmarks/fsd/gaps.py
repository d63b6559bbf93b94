"""What docs/results/fsd.md lacks: cells of the plan that nobody has made, how to make them, and unknown origins."""

import shlex
from collections.abc import Sequence
from typing import Any

from benchmarks.fsd import plan

SCRIPT = "python -m benchmarks.fsd.diversity"


def not_measured(missing: Sequence[plan.Cell], chosen: dict[str, Any]) -> str:
    """The cells of the plan that are not there, and the commands that make these and no others."""
    whole = len(plan.main_cells(max(plan.PROMPTS.values()), chosen))
    main = [cell for cell in missing if cell.group == "main"]
    lines = [
        f"**Not measured**: {len(main)} of the plan's {whole} cells (priors x methods x prompts).  The "
        "prompts come in four tiers of 8 (`PROMPTS` in `benchmarks/fsd/plan.py`).\n"
    ]
    commands = []
    for prior in plan.PRIORS:
        lacking: dict[tuple[str, ...], list[str]] = {}
        for method in plan.METHODS:
            prompts = tuple(c.prompt for c in main if (c.prior, c.method) == (prior, method))
            if prompts:
                lacking.setdefault(prompts, []).append(method)
        for prompts, methods in lacking.items():
            lines.append(f"- {prior} prior, {_prompts(prompts)}: {_code(methods)}.")
        methods = [method for methods in lacking.values() for method in methods]
        untuned = [m for m in methods if m not in chosen.get("product", {}).get(prior, {})]
        if untuned:
            commands.append(f"tune --jobs 2 --prior {prior} --method {' '.join(untuned)}")
        if methods:
            some = "--tier 3" if len(methods) == len(plan.METHODS) else f"--method {' '.join(methods)}"
            commands.append(f"run --jobs 2 --prior {prior} {some}")
        values = {cell.method for cell in missing if (cell.group, cell.prior) == ("ablations", prior)}
        knobs = [knob for knob, own in plan.ABLATIONS.items() if any(f"{knob} {v}" in values for v in own)]
        if knobs:
            every = len(knobs) == len(plan.ABLATIONS)
            lines.append(f"- {prior} prior, ablations: {'all' if every else ', '.join(knobs)}.")
            named = "" if every else f" --knob {' '.join(map(shlex.quote, knobs))}"
            commands.append(f"run --jobs 2 --prior {prior} --ablations{named}")
    lines.append("- The paper's own priors and measures: [at full scale](#at-full-scale).")
    if commands:
        lines += [
            "\nMade by these commands, which keep finished cells (`--estimate` says in how many core-hours):\n"
        ]
        lines += [f"    {SCRIPT} {command}" for command in commands]
    return "\n".join(lines) + "\n"


def provenance(records: dict[str, Sequence[dict[str, Any]]]) -> str:
    """How many cells say nothing of where they were made, and how many come from a tree with changes."""
    lines = [
        "## Where the cells come from\n",
        "Machine, versions and commit, as columns of the table:\n",
    ]
    for what, own in records.items():
        trees = [record["uncommitted"] for record in own if record.get("commit")]
        lines.append(
            f"- {what}: {len(own)} cells; {len(own) - len(trees)} have no record of it, "
            f"{sum(trees)} were made in a working tree with uncommitted changes, "
            f"{len(trees) - sum(trees)} from a clean commit."
        )
    lines.append(
        "\nThe exact code is known for those from a clean commit alone.  Every cell records its weights and settings, "
        "and these are the ones of this page."
    )
    return "\n".join(lines) + "\n"


def _prompts(prompts: Sequence[str]) -> str:
    """All of some tiers, where it is so; else their names."""
    tiers = sorted({plan.PROMPTS[prompt] for prompt in prompts})
    whole = [prompt for prompt, tier in plan.PROMPTS.items() if tier in tiers]
    if len(prompts) == len(plan.PROMPTS):
        return f"all {len(prompts)} prompts"
    if len(prompts) == len(whole):
        *first, last = map(str, tiers)
        numbers = f"s {', '.join(first)} and {last}" if first else f" {last}"
        return f"the {len(prompts)} prompts of tier{numbers}"
    return ", ".join(map(repr, prompts))


def _code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
