"""The page of the diversity benchmark says what its cells say: goals reached, missed and void."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def record(
    method: str, prompt: str, fid: float, accuracy: float | None = 0.9, consistency: float = 0.9, **changes
):
    from benchmarks.fsd import plan

    settings = plan.settings_of("multi-view", method, {})
    return {
        "prior": "multi-view",
        "method": method,
        "prompt": prompt,
        "seeds": [0, 1, 2, 3],
        "weights": "w",
        "settings": settings,
        "cross_fid": fid,
        "prompt_accuracy": accuracy,
        "view_consistency": consistency,
        "vendi": 2.0,
        "distinct": 2,
        "kind_consistency": 0.95,
        "colour_consistency": 0.9,
        "inception_score": 1.5,
        "pairwise_distance": 0.1,
        "volume_distance": 0.2,
        "janus_rate": None,
        "view_accuracy": None,
        "enclosed_share": 0.01,
        "floaters": 0.0,
        "network_calls": settings["steps"] * plan.CALLS.get(method, 1.0),
        "seconds": 60.0,
        "core_seconds": None,
        "without_mesh": 0,
        **changes,
    }


def prompts(count: int = 8) -> list[str]:
    from benchmarks.fsd import plan

    return list(plan.PROMPTS)[:count]


def of_method(method: str, fid: float, count: int = 8, **changes) -> list[dict]:
    """A cell per prompt, each a little different, so that intervals have a width."""
    return [record(method, p, fid * (1 + 0.02 * k), **changes) for k, p in enumerate(prompts(count))]


def others(fid: float = 2.0, **changes) -> list[dict]:
    return [*of_method("fsd-constant", fid, **changes), *of_method("fsd-beta0.5", fid, **changes)]


def verdict(records: list[dict], prior: str = "multi-view") -> str:
    from benchmarks.fsd.verdicts import verdicts

    return "\n".join(verdicts(prior, records))


def test_a_goal_reached():
    text = verdict([*of_method("sds", 2.0), *of_method("fsd-beta1", 5.0), *others()])
    assert "`fsd-beta1`: 2.50 [2.50, 2.50] times; prompt accuracy +0.0 [+0.0, +0.0], view" in text
    assert "points; reached.\n" in text
    assert "**Goal 2.02: reached** by `fsd-beta1`." in text
    assert "points; **missed**." in text  # by the other two


def test_a_goal_reached_by_another_setting_is_called_a_pick():
    text = verdict([*of_method("sds", 2.0), *of_method("fsd-beta1", 3.0), *others(6.0)])
    assert "**Goal 2.02: reached** by `fsd-constant`, `fsd-beta0.5`. Not by `fsd-beta1`" in text
    assert "a pick among 3 by these figures" in text


def test_the_prompts_that_no_round_had_seen_are_judged_alone():
    seen = [*of_method("sds", 2.0), *of_method("fsd-beta1", 9.0)]
    assert "no earlier round" not in verdict(seen)
    fresh = [
        one
        for one in [*of_method("sds", 2.0, 16), *of_method("fsd-beta1", 3.0, 16)]
        if one["prompt"] not in prompts()
    ]
    (line,) = [line for line in verdict([*seen, *fresh]).splitlines() if "no earlier round" in line]
    assert line.startswith("On the 8 prompts")
    # 3 over 2, whatever the prompts that were seen say
    assert "`fsd-beta1`: 1.50 [1.50, 1.50] times" in line
    assert line.endswith("; **missed**.")


def test_a_goal_missed():
    text = verdict([*of_method("sds", 2.0), *of_method("fsd-beta1", 3.0), *others()])
    assert "**Goal 2.02: missed** by all FSD settings." in text
    # the other prior's goal is lower
    assert "**Goal 1.33: reached** by `fsd-beta1`." in verdict(
        [*of_method("sds", 2.0), *of_method("fsd-beta1", 3.0), *others()], "camera-free"
    )


@pytest.mark.parametrize(
    ("worse", "named"),
    [
        ({"accuracy": 0.84}, "prompt accuracy may be"),
        ({"consistency": 0.85}, "view consistency may be"),
        ({"accuracy": 0.7, "consistency": 0.7}, "prompt accuracy and view consistency may be"),
        ({"accuracy": None}, "prompt accuracy may be"),
    ],
)
def test_a_gain_is_void_where_quality_fails(worse, named):
    text = verdict([*of_method("sds", 2.0), *of_method("fsd-beta1", 5.0, **worse), *others(2.0, **worse)])
    assert f"**void**: {named} more than 5 points lower" in text
    assert "**Goal 2.02: missed** by all FSD settings." in text


def test_quality_just_within_the_margin_counts():
    text = verdict([*of_method("sds", 2.0), *of_method("fsd-beta1", 5.0, accuracy=0.851), *others()])
    assert "prompt accuracy -4.9 [-4.9, -4.9]," in text
    assert "**Goal 2.02: reached** by `fsd-beta1`" in text


def test_a_wide_interval_voids_a_gain_whose_mean_would_pass():
    ours = of_method("fsd-beta1", 5.0)
    for k, cell in enumerate(ours):
        cell["view_consistency"] += 0.2 if k % 2 else -0.24
    text = verdict([*of_method("sds", 2.0), *ours, *others()])
    assert "view consistency -2.0 [" in text
    assert "**void**: view consistency may be" in text


def test_one_prompt_has_no_interval_yet():
    one = [record("sds", "a car", 2.0), record("fsd-beta1", "a car", 5.0)]
    assert "`fsd-beta1`: no ratio of cross-seed FID" in verdict(one)


def test_nothing_is_decided_before_all_is_done():
    text = verdict([*of_method("sds", 2.0), *of_method("fsd-beta1", 5.0, count=5)])
    assert "preliminary: 5 of 8 prompts" in text
    assert "**Goal 2.02: not decided**" in text
    assert "fsd-constant, fsd-beta0.5 not measured." in text
    two_seeds = [
        r | {"seeds": [0, 1]} for r in [*of_method("sds", 2.0), *of_method("fsd-beta1", 5.0), *others()]
    ]
    assert "**Goal 2.02: not decided**" in verdict(two_seeds)
    assert verdict(of_method("fsd-beta1", 5.0)).startswith("Not measured")
    assert verdict([]).startswith("Not measured")


def test_prompts_that_ask_for_nothing_do_not_count_for_accuracy():
    from fsd.intervals import bootstrap_difference

    from benchmarks.fsd import verdicts

    ours, theirs = of_method("fsd-beta1", 5.0), of_method("sds", 2.0)
    ours[0]["prompt_accuracy"] = theirs[0]["prompt_accuracy"] = None
    found, count = verdicts.paired(
        [*ours, *theirs], "fsd-beta1", "sds", "prompt_accuracy", bootstrap_difference, 100.0
    )
    assert count == 7
    assert found is not None
    assert found.value == 0.0


def test_a_method_that_gives_one_object_has_no_ratio():
    assert "`fsd-beta1`: no ratio" in verdict([*of_method("sds", 0.0), *of_method("fsd-beta1", 5.0)])


def test_unequal_work_of_the_prior_is_told():
    equal = [
        *of_method("sds", 2.0),
        *of_method("fsd-beta1", 3.0),
        *of_method("sdi", 2.0),
        *of_method("csd", 2.0),
    ]
    assert "Equal work of the prior: 99 to 100 passes" in verdict(equal)
    unequal = [*of_method("sds", 2.0), *of_method("fsd-beta1", 3.0, network_calls=400)]
    assert (
        "**Unequal** work of the prior, in passes with guidance an object: sds 100, fsd-beta1 400."
        in verdict(unequal)
    )


@pytest.mark.parametrize(
    ("constant", "said"),
    [(0.06, "constant noise is worse"), (0.0, "constant noise is better"), (0.01, "no difference shown")],
)
def test_enclosed_space_of_constant_noise_against_the_map(constant, said):
    records = [*of_method("sds", 2.0), *of_method("fsd-beta1", 3.0), *of_method("fsd-constant", 3.0)]
    for cell in records:
        if cell["method"] == "fsd-constant":
            cell["enclosed_share"] = constant
    text = verdict(records)
    assert f": {said}. Constant noise leaves" in text
    assert f"{100 * constant:.2f} % of the body with constant noise, 1.00 % with the world map" in text
    assert "tuned learning rates" not in text


def test_enclosed_space_that_one_prompt_decides_is_told():
    records = [*of_method("sds", 2.0), *of_method("fsd-beta1", 3.0), *of_method("fsd-constant", 3.0)]
    changed = {"an object": 0.09, "a car": 0.02, "a chair": 0.005}
    for cell in records:
        if cell["method"] == "fsd-constant":
            cell["enclosed_share"] = changed.get(cell["prompt"], 0.01)
            cell["settings"] = cell["settings"] | {"optim": {"learning_rate": 0.2}}
    (line,) = [line for line in verdict(records).splitlines() if line.startswith("Enclosed")]
    assert "; without 'an object' +0.07 [" in line
    assert "Constant noise leaves more on 2, less on 1, the same on 5 prompts." in line
    assert "Their tuned learning rates differ, too: 0.2 and 0.05." in line
    for cell in records:
        if cell["method"] == "fsd-constant" and cell["prompt"] not in ("an object", "a car"):
            cell["enclosed_share"] = 0.012
    assert "constant noise is worse, mostly by one prompt." in verdict(records)


def test_a_method_that_is_not_fsd_is_judged_and_reaches_no_goal():
    text = verdict([*of_method("sds", 2.0), *of_method("fsd-beta1", 3.0), *others(), *of_method("cfd", 9.0)])
    assert "`cfd`: 4.50 [4.50, 4.50] times" in text
    assert "**Goal 2.02: missed** by all FSD settings." in text


def test_three_sentences_say_what_is_gained_where_and_what_is_missed():
    from benchmarks.fsd import in_short as short

    records = [*of_method("sds", 2.0), *of_method("fsd-beta1", 5.0, consistency=0.7), *others(6.0)]
    for cell in records:
        cell["distinct"] = 1 + 2 * (cell["method"] != "sds" and not short.names_all(cell["prompt"]))
    gain, where, goal = short.in_short({"multi-view": records, "camera-free": []})
    assert "2.5 to 3.0 times SDS's on the multi-view prior" in gain
    assert where.startswith("Other kinds or colours come only where the prompt leaves them open")
    assert "is 3.0 (SDS's 1.0) on the multi-view prior; where" in where
    assert where.endswith("it is 1.0 (SDS's 1.0) on the multi-view prior.")
    assert goal == (
        "The goal of 2.02 times on the multi-view prior is reached by `fsd-constant` and `fsd-beta0.5` and missed by "
        "`fsd-beta1` (the paper's own form), as view consistency may be more than 5 points lower."
    )
    assert short.in_short({"multi-view": []})[0].startswith("Not measured")
    # a gain of names where the prompt says all is not kept quiet
    for cell in records:
        cell["distinct"] = 1 + (cell["method"] != "sds")
    assert short.in_short({"multi-view": records})[1].startswith("Where the prompt leaves something open")


def test_prompts_that_name_all_are_compared_apart():
    from benchmarks.fsd import in_short as short

    assert [prompt for prompt in prompts() if short.names_all(prompt)] == [
        "a blue mug", "a green house", "a yellow lamp",
    ]  # fmt: skip
    records = [record("sds", p, 2.0) for p in prompts(7)] + [
        record("fsd-beta1", p, 2.0 if short.names_all(p) else 8.0, distinct=3) for p in prompts(8)
    ]
    found = short.split(records, "fsd-beta1")
    assert {what: own["prompts"] for what, own in found.items()} == {"named": 2, "open": 5}
    assert found["named"]["ratio_to_sds"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert (found["open"]["cross_fid"], found["open"]["sds_cross_fid"]) == (8.0, 2.0)
    assert (found["open"]["distinct"], found["open"]["sds_distinct"]) == (3, 2)
    assert [row[2] for row in short.split_rows("multi-view", records)] == [
        "2 that name kind and colour", "5 that leave something open",
    ]  # fmt: skip


def test_what_is_missing_is_listed_with_the_commands_that_make_it():
    from benchmarks.fsd import gaps, plan

    chosen = {"product": {prior: dict.fromkeys(plan.METHODS, 5.0) for prior in plan.PRIORS}}
    del chosen["product"]["camera-free"]["cfd"]
    main, ablated = plan.main_cells(4, chosen), plan.ablation_cells(chosen)
    text = gaps.not_measured(
        [c for c in main if c.method == "cfd" and (c.prior == "camera-free" or plan.PROMPTS[c.prompt] == 3)]
        + ablated["multi-view", "map degrees", "90"],
        chosen,
    )
    assert "**Not measured**: 32 of the plan's 696 cells" in text
    assert "- multi-view prior, the 8 prompts of tier 3: `cfd`.\n" in text
    assert "- camera-free prior, the 24 prompts of tiers 1, 2 and 3: `cfd`.\n" in text
    commands = [
        line.split("benchmarks.fsd.diversity ")[1] for line in text.splitlines() if line.startswith("    ")
    ]
    assert commands == [
        "run --jobs 2 --prior multi-view --method cfd",
        "run --jobs 2 --prior multi-view --ablations --knob 'map degrees'",
        "tune --jobs 2 --prior camera-free --method cfd",
        "run --jobs 2 --prior camera-free --method cfd",
    ]
    assert "commands" not in gaps.not_measured([], chosen)


def test_where_the_cells_come_from_is_counted():
    from benchmarks.fsd import gaps

    trees = [{}, {"commit": None}, {"uncommitted": True}, {"uncommitted": True}, {"uncommitted": False}]
    known = [{"commit": "abc", **tree} if "uncommitted" in tree else tree for tree in trees]
    text = gaps.provenance({"Tuning": [{}, *known]})
    assert (
        "- Tuning: 6 cells; 3 have no record of it, 2 were made in a working tree with uncommitted changes"
        in text
    )
    assert ", 1 from a clean commit." in text


@pytest.fixture
def written(tmp_path):
    """A page from cells on the disk, some of them of other weights, with a tuning and an ablation."""
    from PIL import Image

    from benchmarks.core.table import put
    from benchmarks.fsd import cells, plan
    from benchmarks.fsd import diversity_page as page

    table, weights = cells.TABLE._replace(path=tmp_path / "cells.csv"), tmp_path / "weights"
    runs, records = tmp_path / "runs", {}
    (weights / "multi-view/unet").mkdir(parents=True)
    (weights / "multi-view/unet/model.safetensors").write_bytes(b"weights")
    known = cells.weights_hash("multi-view", weights)
    candidates = [
        {"product": product, "cross_fid": 3.0, "prompt_accuracy": 80.0, "view_consistency": None}
        for product in (2.5, 5.0)
    ]
    chosen = {
        "rule": plan.RULE,
        "held_out_prompts": list(plan.HELD_OUT),
        "held_out_seeds": [100, 101],
        "common": {"multi-view": {"steps": 200}},
        "product": {"multi-view": {"sds": 2.5}, "camera-free": {}},
        "tried": {"multi-view": {"sds": candidates}, "camera-free": {}},
        "weights": {"multi-view": "earlier"},
    }
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(chosen))
    ablated = [cell for own in plan.ablation_cells(chosen, ["multi-view"]).values() for cell in own]
    for cell in [*plan.main_cells(1, chosen, ["multi-view"]), *ablated]:
        if cell.group == "ablations" and not cell.method.startswith("beta"):
            continue
        own = {"settings": cell.settings, "weights": known, "network_calls": cell.settings["steps"]}
        made = record("sds", cell.prompt, 2.0, **own)
        made["method"] = cell.method
        if (cell.method, cell.prompt) == ("sds", "a car"):
            made["weights"] = "foreign"
        # an ablation's own value is a main cell, too
        records[cell[:4]] = {name: value for name, value in made.items() if name in table.columns}
        records[cell[:4]]["stage"] = cell.group
        folder = cells.folder_of(cell, made["weights"], runs)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (128, 128), "red").save(folder / "sheet.png")
    put(table, *records.values())
    found = page.load(table, settings, weights, runs)
    page.write_page(tmp_path / "page", found)
    return tmp_path / "page"


def test_a_sheet_keeps_pictures_that_are_gone_and_none_of_other_settings(tmp_path):
    """Pictures of single cells are in runs/ and not in git: the committed sheet has them all."""
    from PIL import Image

    from benchmarks.fsd import diversity_figures as figures

    def cells(names: dict[str, str]) -> list[dict]:
        return [
            {"method": "sds", "prompt": prompt, "print": print_, "picture": tmp_path / f"{prompt}.png"}
            for prompt, print_ in names.items()
        ]

    def colours(path: Path) -> list[tuple[int, ...]]:
        with Image.open(path) as sheet:
            rows = (sheet.height - figures.TITLE) // (figures.SIDE + 4)
            whole = sheet.convert("RGB")
        at = [figures.TITLE + row * (figures.SIDE + 4) + 9 for row in range(rows)]
        return [whole.getpixel((figures.LABEL + 9, top)) for top in at]

    first, second, third = prompts(3)
    path, red, blue, white = tmp_path / "sheet.png", (255, 0, 0), (0, 0, 255), (255, 255, 255)
    for prompt in (first, third):
        Image.new("RGB", (128, 128), red).save(tmp_path / f"{prompt}.png")
    figures.montage(path, cells({first: "a", third: "c"}))
    assert colours(path) == [red, red]
    for prompt in (first, third):
        (tmp_path / f"{prompt}.png").unlink()
    written = path.read_bytes()
    figures.montage(path, cells({first: "a", third: "c"}))
    assert path.read_bytes() == written
    # a row between them, and the last one was made with other settings meanwhile
    Image.new("RGB", (128, 128), blue).save(tmp_path / f"{second}.png")
    figures.montage(path, cells({first: "a", second: "b", third: "other"}))
    assert colours(path) == [red, blue, white]


def test_the_committed_sheets_show_every_cell_of_the_page():
    from benchmarks.fsd import cells, plan
    from benchmarks.fsd import diversity_figures as figures
    from benchmarks.fsd import diversity_page as page

    found = page.load(cells.TABLE, plan.SETTINGS)
    for prior in plan.PRIORS:
        tiles = figures._tiles(ROOT / f"docs/results/fsd-{prior}.png")
        wanted = {f"{r['method']}: {r['prompt']}": r["print"] for r in found.main if r["prior"] == prior}
        assert {name: tile["print"] for name, tile in tiles.items()} == wanted


def test_the_table_has_the_columns_that_others_read_in_percent():
    import csv

    from benchmarks.fsd import cells

    with open(cells.TABLE.path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    wanted = (
        "prior",
        "method",
        "prompt",
        "cross_fid",
        "prompt_accuracy",
        "view_consistency",
        "enclosed_share",
    )
    assert set(wanted) <= lines[0].keys()
    for line, record in zip(lines, cells.records(), strict=True):
        for name in cells.PERCENT:
            assert (float(line[name]) if line[name] else None) == pytest.approx(
                None if record[name] is None else 100 * record[name]
            )
        assert record["view_consistency"] <= 1
    assert max(float(line["view_consistency"]) for line in lines) == 100


def test_the_page_and_its_rows(written):
    text = (written / "fsd.md").read_text()
    rows = json.loads((written / "fsd.json").read_text())["rows"]
    assert [(row["method"], row["prompts"], row["seeds"]) for row in rows] == [
        ("sds", 7, 4), ("fsd-beta1", 8, 4), ("fsd-constant", 8, 4), ("fsd-beta0.5", 8, 4), ("fsd-shared", 8, 4),
    ]  # fmt: skip
    for row in rows:
        assert row["prior"] == "embedded multi-view"
        assert row["prompt_accuracy"] == pytest.approx(90.0)
        assert row["view_consistency"] == pytest.approx(0.9)
        assert row["network_calls"] == 200
        assert {"cross_fid", "vendi", "enclosed_share", "seconds"} <= row.keys()
        # SDS lacks "a car": compared on the seven that it has
        assert (row["sds_prompts"], row["sds_cross_fid"]) == (7, 2.0)
        assert row["ratio_to_sds"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert row["by_kind_of_prompt"]["open"]["prompts"] == 4
    # what is of other weights is left out, and said
    assert "preliminary: 7 of 8 prompts" in text
    assert "main multi-view sds 'a car': made with other weights, ignored" in text
    assert "multi-view was tuned with other weights (earlier)" in text
    # the other prior has no cell
    assert "**camera-free prior**, goal 1.33 times\n\n- Not measured" in text
    assert "## The camera-free prior" not in text
    assert "| multi-view | sds | **3.00 / 80 / -** | 3.00 / 80 / - |" in text
    assert (
        "At the edge of its grid on the multi-view prior, so that a better value may lie outside: `sds` (2.5)."
        in text
    )
    assert "| `sds` | 7 | 2.00 (0.00) | 2.00 | 1.00 [1.00, 1.00] | 90.0 (0.0) |" in text
    assert "| a mushroom | 2.00 / 90 / 90 |" in text
    assert "| a car |  | 2.00 / 90 / 90 |" in text
    # only the knob that was turned
    assert "| multi-view | beta | 0.25 |" in text
    assert "| map degrees |" not in text
    pictures = ("fsd.png", "fsd-multi-view.png", "fsd-ablations.png")
    assert {path.name for path in written.iterdir()} == {"fsd.md", "fsd.json", "notebook", *pictures}
    for name in pictures:
        assert f"({name})" in text


def test_the_committed_page_says_what_the_committed_cells_say():
    """Run `python -m benchmarks.fsd.diversity` after new cells."""
    from benchmarks.fsd import cells, plan
    from benchmarks.fsd import diversity_page as page

    written = ROOT / "docs/results/fsd.md"
    if not written.is_file():
        pytest.skip("docs/results/fsd.md is written once there are cells")
    found = page.load(cells.TABLE, plan.SETTINGS)
    assert written.read_text(encoding="utf-8") == page.text(found)
    assert page.NOTEBOOK.read_text(encoding="utf-8") == page.notebook(found)
    assert json.loads(written.with_suffix(".json").read_text(encoding="utf-8")) == {"rows": page.rows(found)}
