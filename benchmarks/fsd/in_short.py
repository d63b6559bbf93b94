"""The top of docs/results/fsd.md in three sentences, and the comparison of prompts on which the second rests."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from fsd.world.captions import understand

from benchmarks.fsd.verdicts import (
    FLOW,
    FURTHER,
    GOALS,
    HEADLINE,
    MARGIN,
    QUALITY,
    REFERENCE,
    Record,
    Verdict,
    against_sds,
    of,
    settings_judged,
)

# What `fsd generate` takes by default.
DEFAULT = "fsd-beta0.5"
KINDS_OF_PROMPT = {"named": "name kind and colour", "open": "leave something open"}


def in_short(by_prior: Mapping[str, Sequence[Record]]) -> list[str]:
    """How far apart the objects are, where diversity comes from, and what is missed: a sentence each."""
    found = {prior: settings for prior, own in by_prior.items() if (settings := settings_judged(own))}
    if not found:
        return ["Not measured: it needs finished cells of `sds` and of an FSD setting."]
    ratios = {prior: [v.diversity.value for v in own if v.diversity] for prior, own in found.items()}
    times = [
        f"{min(own):.1f} to {max(own):.1f} times SDS's on the {prior} prior"
        for prior, own in ratios.items()
        if own
    ]
    return [
        f"At the same passes of the prior, the cross-seed FID of FSD's objects is {_and(times)}, by setting."
        if times else "No ratio of cross-seed FID is known yet.",
        *_where({prior: split(by_prior[prior], DEFAULT) for prior in found}),
        _upper(f"{'; '.join(_goal(prior, own) for prior, own in found.items())}."),
    ]  # fmt: skip


def split(records: Sequence[Record], method: str) -> dict[str, dict[str, Any]]:
    """The method beside SDS on the same prompts: those that name kind and colour, and those that do not."""
    found = {}
    for what in KINDS_OF_PROMPT:
        part = [record for record in records if names_all(record["prompt"]) == (what == "named")]
        theirs = of(part, REFERENCE)
        own = {prompt: record for prompt, record in of(part, method).items() if prompt in theirs}
        if own:
            found[what] = {
                "prompts": len(own),
                **{name: _mean(own, own, name) for name in ("cross_fid", "vendi", "distinct")},
                **{f"sds_{name}": _mean(theirs, own, name) for name in ("vendi", "distinct")},
                **against_sds(part, method),
            }  # fmt: skip
    return found


def names_all(prompt: str) -> bool:
    """Whether a prompt names the kind and the colour."""
    asked = understand(prompt)
    return len(asked.kinds) == len(asked.colours) == 1


def split_rows(prior: str, records: Sequence[Record]) -> list[list[str]]:
    """Rows of the table of `split`, FSD's settings by themselves: SDS's figure stands before the method's."""
    rows = []
    for method in (*FLOW, *FURTHER):
        for what, own in split(records, method).items():
            ratio = own["ratio_to_sds"]
            rows.append([
                prior, f"`{method}`", f"{own['prompts']} that {KINDS_OF_PROMPT[what]}",
                *(f"{own[f'sds_{name}']:.2f} / {own[name]:.2f}" for name in ("cross_fid", "vendi", "distinct")),
                f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "-",
            ])  # fmt: skip
    return rows


def consistency(prior: str, records: Sequence[Record]) -> list[str]:
    """By FSD setting, the shares of views with the object's main kind and with its main colour beside SDS's."""
    theirs, lines = of(records, REFERENCE), []
    for method in (*FLOW, *FURTHER):
        own = {prompt: record for prompt, record in of(records, method).items() if prompt in theirs}
        if own:
            words = [
                f"{what} {' -> '.join(f'{100 * fmean(cells[p][name] for p in own):.1f}' for cells in (theirs, own))} %"
                for what, name in (("kind", "kind_consistency"), ("colour", "colour_consistency"))
            ]
            lines.append(f"{prior}, `{method}`, {len(own)} prompts: {', '.join(words)}")
    return lines


def _where(by_prior: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence on names of four objects with all said and with something left open; none before both are there."""
    found = {prior: own for prior, own in by_prior.items() if len(own) == len(KINDS_OF_PROMPT)}
    if not found:
        return []
    only_open = all(
        own["named"]["distinct"] <= own["named"]["sds_distinct"]
        and own["open"]["distinct"] > own["open"]["sds_distinct"]
        for own in found.values()
    )
    words = {
        what: _and(
            f"{own[what]['distinct']:.1f} (SDS's {own[what]['sds_distinct']:.1f}) on the {prior} prior"
            for prior, own in found.items()
        )
        for what in KINDS_OF_PROMPT
    }
    start = (
        "Other kinds or colours come only where the prompt leaves them open: there"
        if only_open
        else "Where the prompt leaves something open,"
    )
    return [
        f"{start} the number of different names that the judge gives to four objects of `{DEFAULT}` is "
        f"{words['open']}; where the prompt names kind and colour, it is {words['named']}."
    ]


def _goal(prior: str, found: Sequence[Verdict]) -> str:
    """Which settings reach the goal of a prior, which do not, and why."""
    goal = GOALS[prior]
    start = f"the goal of {goal:g} times on the {prior} prior is"
    if not all(verdict.complete for verdict in found):
        return f"{start} not decided yet"
    by = [f"`{verdict.method}`" for verdict in found if verdict.reached(goal)]
    failed = [verdict for verdict in found if not verdict.reached(goal)]
    reached = f"{start} reached by {_and(by)}" if by else f"{start} missed by all FSD settings"
    if not failed:
        return reached
    names = [name for name in QUALITY.values() if any(name in verdict.lower() for verdict in failed)]
    why = [f"{' or '.join(names)} may be more than {MARGIN:g} points lower"] if names else []
    why += ["the distance is too small"] if any(not verdict.lower() for verdict in failed) else []
    own_form = {HEADLINE: " (the paper's own form)"}
    others = [f"`{verdict.method}`{own_form.get(verdict.method, '')}" for verdict in failed]
    but = f" and missed by {_and(others)}" if by else ""
    return f"{reached}{but}, as {_and(why)}"


def _mean(cells: Mapping[str, Record], prompts: Iterable[str], name: str) -> float | None:
    known = [cells[prompt][name] for prompt in prompts if cells[prompt][name] is not None]
    return fmean(known) if known else None


def _upper(words: str) -> str:
    return words[0].upper() + words[1:]


def _and(words: Iterable[str]) -> str:
    *first, last = list(words) or [""]
    return f"{', '.join(first)} and {last}" if first else last
