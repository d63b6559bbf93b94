"""Are the objects of several seeds more different with FSD than with SDS, and as good?  On the embedded priors.

    python -m benchmarks.fsd.diversity tune --jobs 2          # learning rates, on two prompts held out; once
    python -m benchmarks.fsd.diversity run --jobs 2           # tier 1: hours; resumable, several terminals may help
    python -m benchmarks.fsd.diversity run --tier 2           # more methods, 16 prompts (3: 24, 4: 32); --ablations
    python -m benchmarks.fsd.diversity run --estimate         # what is left to do, in core-hours
    python -m benchmarks.fsd.diversity                        # docs/results/fsd.{md,json} and figures from the cells
    python -m benchmarks.fsd.diversity --quick --out FILE     # tiny cells of a tiny prior: does it run?

A cell is one prior, method and prompt with four seeds: a line of benchmarks/results/fsd_diversity.csv.  Its objects
and a picture of them are made in runs/, and it goes on where it was interrupted; processes share the cells.  Cells of
other weights or settings than the present ones are not mixed in: `run` makes them anew, and the page says that it
ignored them.

`tune` takes each method's learning rate times steps by the rule in fsd/plan.py and writes it to
fsd/diversity_settings.json, which is committed before `run`.  All methods get the same number of passes of the prior.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from shared_core.run.atomic import write_json
from shared_core.run.environment import describe

from benchmarks.fsd import cells, plan

RESULTS = cells.ROOT / "docs" / "results"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", nargs="?", choices=["run", "tune", "page"], default="page")
    parser.add_argument(
        "--tier", type=int, choices=[1, 2, 3, 4], default=1, help="how many methods and prompts"
    )
    parser.add_argument("--ablations", action="store_true", help="the cells of the ablation figures")
    parser.add_argument("--prior", choices=list(plan.PRIORS), help="one prior only")
    parser.add_argument("--method", nargs="+", choices=list(plan.METHODS), help="these methods only")
    parser.add_argument("--prompt", nargs="+", choices=list(plan.PROMPTS), help="these prompts only")
    parser.add_argument("--knob", nargs="+", choices=list(plan.ABLATIONS), help="these ablations only")
    parser.add_argument(
        "--product", nargs="+", type=float, default=plan.PRODUCTS, help="tune: learning rate x steps"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=plan.HELD_OUT_SEEDS, help="tune: its seeds")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="tune: settings for all methods, such as steps=200",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the cells")
    parser.add_argument("--estimate", action="store_true", help="only say what is left to do")
    parser.add_argument(
        "--weights", type=Path, help="folder with multi-view/ and camera-free/ in place of the package's"
    )
    parser.add_argument("--table", type=Path, default=cells.TABLE.path, help="where the records are kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the page is written")
    parser.add_argument("--settings", type=Path, default=plan.SETTINGS, help="what tune chose")
    parser.add_argument("--quick", action="store_true", help="tiny cells of a tiny prior")
    parser.add_argument("--out", type=Path, help="also write the rows here")
    options = parser.parse_args(arguments)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            record = {"quick": True, "rows": quick(Path(folder))}
        failed = 0
    else:
        chosen = plan.read_settings(options.settings)
        if options.stage == "tune":
            chosen["common"] = common(chosen.get("common", {}), options.set, priors_of(options))
        failed = 0 if options.stage == "page" else produce(options, chosen)
        rows = [] if options.stage == "tune" or options.estimate else page(options)
        record = {"quick": False, "rows": rows}
    if options.out:
        write_json(options.out, record | {"environment": describe()})
    return int(bool(failed))


def produce(options: argparse.Namespace, chosen: dict[str, Any]) -> int:
    """Makes the cells of `run` or `tune`; how many processes failed."""
    todo = selected(options, chosen)
    known = {prior: cells.weights_hash(prior, options.weights) for prior in plan.PRIORS}
    missing = sorted({cell.prior for cell in todo if known[cell.prior] is None})
    if missing:
        print(f"no weights of {' and '.join(missing)} in {options.weights or 'the package'}", file=sys.stderr)
        return 1
    table = cells.TABLE._replace(path=options.table)
    before = cells.done(table)
    for line in cells.foreign(todo, known, before):
        print(line, file=sys.stderr)
    print(cells.estimate(todo, known, before), flush=True)
    if options.estimate:
        return 0
    failed = cells.share(todo, options.jobs, options.weights, table, cells.RUNS)
    if options.stage == "tune":
        tuned = tune(todo, chosen, known, cells.done(table))
        write_json(options.settings, tuned)
        print(f"wrote {options.settings}: {tuned['product']}")
    return failed


def selected(options: argparse.Namespace, chosen: dict[str, Any]) -> list[plan.Cell]:
    """The cells that the command line asks for."""
    priors = priors_of(options)
    tier = max(plan.PROMPTS.values()) if options.method or options.prompt else options.tier
    if options.stage == "tune":
        methods = options.method or [name for name, (at, _) in plan.METHODS.items() if at <= tier]
        return plan.tuning_cells(chosen, priors, methods, options.product, options.seeds)
    if options.ablations:
        found = plan.ablation_cells(chosen, priors)
        wanted = [own for (_, knob, _), own in found.items() if not options.knob or knob in options.knob]
        return [cell for own in wanted for cell in own]
    return [
        cell
        for cell in plan.main_cells(tier, chosen, priors)
        if (not options.method or cell.method in options.method)
        and (not options.prompt or cell.prompt in options.prompt)
    ]


def priors_of(options: argparse.Namespace) -> list[str]:
    """One or all."""
    return [options.prior] if options.prior else list(plan.PRIORS)


def common(kept: dict[str, Any], changes: Sequence[str], priors: Sequence[str]) -> dict[str, Any]:
    """Settings of all methods, by prior, with `changes` such as "steps=200" for some priors."""
    given = {name: yaml.safe_load(value) for name, _, value in (change.partition("=") for change in changes)}
    return kept | {prior: {**kept.get(prior, {}), **given} for prior in priors}


def tune(
    todo: Sequence[plan.Cell],
    chosen: dict[str, Any],
    known: dict[str, str | None],
    done: Mapping[tuple[Any, ...], dict[str, Any]],
) -> dict[str, Any]:
    """The settings with the best product of every prior and method whose grid is complete; others keep theirs."""
    product = {prior: dict(chosen.get("product", {}).get(prior, {})) for prior in plan.PRIORS}
    tried: dict[str, dict[str, Any]] = {
        prior: dict(chosen.get("tried", {}).get(prior, {})) for prior in plan.PRIORS
    }
    weights = dict(chosen.get("weights", {}))
    grids: dict[tuple[str, str], dict[float, list[dict[str, Any] | None]]] = {}
    for cell in todo:
        method, _, value = cell.method.partition(" at ")
        found = cells.finished(cell, known[cell.prior], done)
        grids.setdefault((cell.prior, method), {}).setdefault(float(value), []).append(found)
    for (prior, method), grid in grids.items():
        if any(record is None for records in grid.values() for record in records):
            print(f"{prior} {method}: not all cells are done, nothing chosen")
            continue
        candidates = [candidate(value, [r for r in records if r]) for value, records in grid.items()]
        product[prior][method] = plan.choose(candidates)["product"]
        tried[prior][method] = candidates
        weights[prior] = known[prior]
    return {
        "rule": plan.RULE,
        "held_out_prompts": list(plan.HELD_OUT),
        "held_out_seeds": sorted({seed for cell in todo for seed in cell.seeds}),
        "common": chosen.get("common", {}),
        "product": product,
        "tried": tried,
        "weights": weights,
    }


def candidate(product: float, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a product of learning rate and steps came to, mean over the held-out prompts."""

    def mean(name: str, scale: float = 1.0) -> float | None:
        values = [record[name] for record in records if record[name] is not None]
        return round(scale * fmean(values), 3) if values else None

    percent = {name: mean(name, 100.0) for name in ("prompt_accuracy", "view_consistency")}
    return {"product": product, "cross_fid": mean("cross_fid"), **percent}


def page(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of all finished cells; writes the page when there are any."""
    from benchmarks.fsd.diversity_page import load, rows, write_page

    found = load(cells.TABLE._replace(path=options.table), options.settings, options.weights)
    for line in found.ignored:
        print(line, file=sys.stderr)
    if found.main:
        write_page(options.results, found)
        print(f"wrote {options.results / 'fsd.md'}")
    return rows(found)


def quick(folder: Path) -> list[dict[str, Any]]:
    """Two methods, one prompt, two seeds, a few steps, with a network that has learned nothing."""
    import torch
    from fsd.priors.pixel_pipeline import build_pipeline, write_pipeline
    from fsd.world.captions import vocabulary

    from benchmarks.fsd.diversity_page import Found, rows

    torch.manual_seed(0)
    pipeline = build_pipeline(vocabulary(), multi_view=True, channels=(8, 16), text_width=8)
    write_pipeline(pipeline, folder / "weights" / "multi-view")
    todo = [
        cell._replace(seeds=(0, 1), settings={**cell.settings, "steps": 2, "checkpoint_every": 1})
        for cell in plan.main_cells(1, {}, ["multi-view"])
        if cell.prompt == "a red object" and cell.method in ("sds", "fsd-beta1")
    ]
    table = cells.TABLE._replace(path=folder / "cells.csv")
    failed = cells.work(todo, folder / "weights", table, folder / "runs")
    if failed:
        raise RuntimeError(failed[0])
    return rows(Found(cells.records(table), {}, {}, [], [], []))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
