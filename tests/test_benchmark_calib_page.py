"""calib's results page says what the rows say: gains with intervals, floors and goals reached or missed."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def row(method, target_after, source_after=(97.0, 96.0, 95.0), pair="usps-mnist", **more):
    """Made-up figures; the classifier alone has 70, 72, 74 on the target."""
    source, target = pair.split("-", 1)
    values = {
        "pair": pair,
        "source": source,
        "target": target,
        "method": method,
        "seeds": [1, 2, 3],
        "source_before": [97.5, 96.5, 95.5],
        "source_after": list(source_after),
        "target_before": [70.0, 72.0, 74.0],
        "target_after": list(target_after),
        "processor_seconds": [300.0, 310.0, 320.0],
        "selection": "information",
        "classifier_unchanged": True,
        "touched": "nothing",
    }
    return {**values, **more}


def page(tmp_path, rows, measured=None, by_class=None):
    from benchmarks.calib.accuracy_page import write_page

    folder = tmp_path / "page"
    write_page(folder, rows, by_class or {}, measured or tmp_path / "none")
    return (folder / "calib.md").read_text()


def test_gain_is_paired_and_floor_and_goal_are_judged_from_the_numbers(tmp_path):
    dann = row("DANN", (90.0, 91.0, 92.0), touched="new model", classifier_unchanged=False, selection="last")
    moments = row("moment matching", (75.0, 76.0, 77.0), selection="last")
    text = page(tmp_path, [row("calibrator", (85.0, 87.1, 89.0)), moments, dann])
    # gains 15, 15.1, 15: mean 15.033, half width 4.303 * 0.0577 / sqrt(3) = 0.143
    assert "+15.03 [+14.89, +15.18] over the classifier alone (a gain, 3 seeds); source -0.50" in text
    assert "Floor, `calibrator`: target +10 (+15.03) reached; source at most 1 lower (-0.50) reached;" in text
    assert "20 core-minutes (5.3) reached; 3 seeds (3) reached." in text
    assert (
        "Goal, no GAN images, by `calibrator`: 97.1 (87.03, 10.07 short) **missed**; source at most" in text
    )
    assert "Goal 98.3 (translated images): not measured." in text
    assert "Best other row that touches nothing: moment matching, 76.00" in text
    assert "Best row that changes the classifier: DANN, 91.00; `calibrator` against it -3.97 [" in text
    assert "| calibrator | nothing | 72.00 (2.00) -> 87.03 (2.00) | +15.03 [+14.89, +15.18] |" in text
    assert json.loads((tmp_path / "page/calib.json").read_text())[0]["target_after"] == [85.0, 87.1, 89.0]
    assert (tmp_path / "page/calib.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target_after": [79.0, 80.0, 83.0]}, "target +10 (+8.67) **missed**"),
        ({"source_after": [96.0, 95.4, 94.4]}, "source at most 1 lower (-1.23) **missed**"),
        ({"classifier_unchanged": False}, "classifier bit-identical **missed**"),
        (
            {name: [50.0] for name in ("source_before", "source_after", "target_before", "target_after")}
            | {"seeds": [1]},
            "3 seeds (1) **missed**",
        ),
        ({"processor_seconds": [300.0, 1300.0, 310.0]}, "20 core-minutes (21.7) **missed**"),
        ({"target_after": [60.0, 70.0, 90.0]}, "(no difference shown, 3 seeds)"),
        ({"target_after": [60.0, 62.0, 64.0]}, "(a loss, 3 seeds)"),
    ],
)
def test_what_is_missed_is_called_missed(changes, said, tmp_path):
    assert said in page(tmp_path, [{**row("calibrator", (85.0, 87.0, 89.0)), **changes}])


def test_goal_takes_the_best_calibrator_that_keeps_the_classifier_and_says_that_it_was_picked(tmp_path):
    rows = [
        row("calibrator", (85.0, 87.0, 89.0)),
        row("calibrator last", (97.0, 97.5, 98.0), selection="last"),
        row("calibrator oracle", (99.0, 99.0, 99.0), selection="oracle"),
        row("calibrator released", (99.5, 99.5, 99.5), classifier_unchanged=False),
        row("calibrator translated", (98.0, 98.5, 99.0)),
    ]
    text = page(tmp_path, rows)
    assert (
        "by `calibrator last`, the best of 2 such rows, picked by these test figures: 97.1 (97.50) reac"
        in text
    )
    assert "Goal, translated images, by `calibrator translated`: 98.3 (98.50) reached" in text


def test_a_goal_that_was_reached_on_fewer_seeds_says_on_how_many(tmp_path):
    whole = row("calibrator", (97.0, 97.5, 98.0))
    first = {name: whole[name][:1] for name in ("seeds", "source_before", "target_before")}
    one = row("calibrator translated", (99.0,), (97.0,), **first)
    text = page(tmp_path, [whole, one])
    assert (
        "Goal, translated images, by `calibrator translated`, on 1 of 3 seeds: 98.3 (99.00) reached" in text
    )


def test_a_drifted_classifier_is_compared_with_the_one_before_the_drift(tmp_path):
    drifted = row(
        "calibrator released",
        (80.0, 82.0, 84.0),
        classifier_unchanged=False,
        target_before=[79.0, 81.0, 83.0],
    )
    text = page(tmp_path, [row("calibrator", (85.0, 87.0, 89.0)), drifted])
    assert (
        "| calibrator released | nothing | 72.00 (2.00) -> 82.00 (2.00) | +10.00 [+10.00, +10.00] |" in text
    )


@pytest.mark.parametrize(
    ("dusk", "day", "said"),
    [
        (
            (71.0, 73.0, 75.0),
            (97.0, 96.0, 95.0),
            "source at most 1 lower in each (-0.50, -0.50, -0.50) reached",
        ),
        ((71.0, 71.9, 75.0), (97.0, 96.0, 95.0), "(+1.00, -0.10, +1.00) **missed**"),
        ((71.0, 73.0, 75.0), (97.0, 96.0, 94.0), "This experiment failed."),
    ],
)
def test_segmentation_is_judged_seed_by_seed_and_its_leak_is_stated(dusk, day, said, tmp_path):
    text = page(tmp_path, [row("calibrator", dusk, day, "camvid-day-dusk", measure="mIoU")])
    assert said in text
    assert ("experiment failed" in text) == ("reached" not in said)
    assert "two halves of one drive" in text
    assert "Test mIoU in percent" in text
    assert "Goal" not in text


def test_bodies_join_latency_and_accuracy(tmp_path):
    measured = tmp_path / "measured"
    measured.mkdir()
    cost = {"parameters": 1000, "lenet": 2.0}
    bodies = {"residual 4x3": {**cost, "dtn": 1.4}, "lowres 4x9": {**cost, "dtn": 1.2}}
    bodies |= {"constant": {**cost, "dtn": 1.01}, "lowres 4x3": {**cost, "dtn": 1.1}}
    record = {"quick": False, "what": "how", "bodies": bodies}
    file = measured / "calib_latency.json"
    file.write_text(json.dumps(record))
    rows = [
        row("calibrator", (85.0, 87.0, 89.0)),
        row("calibrator lowres", (84.2, 86.3, 88.0)),
        row("calibrator constant", (85.0, 87.0, 89.0)),
    ]
    text = page(tmp_path, rows, measured)
    assert (
        "on every pair: reached (lowres 4x9, as `calibrator`: reached; "
        "lowres 4x3, as `calibrator`: accuracy not measured)" in text
    )
    assert "| lowres 4x9 | 1,000 | 1.20 | 2.00 | 86.17 (1.90): -0.83 [" in text
    assert "compared with, seed by seed, is `residual 4x3`" in text
    rows[1]["target_after"] = [83.9, 86.0, 88.0]
    assert (
        "on every pair: **missed** (lowres 4x9, as `calibrator`: less accurate on usps-mnist; lowres"
        in page(tmp_path, rows, measured)
    )
    rows += [
        row("calibrator neighbours", (90.0, 91.0, 92.0)),
        row("calibrator neighbours lowres", (89.5, 90.5, 91.5)),
    ]
    text = page(tmp_path, rows, measured)
    assert "lowres 4x3, as `calibrator neighbours`: reached" in text
    assert "lowres 4x9, as `calibrator neighbours`" not in text
    rows.append(row("calibrator", (85.0, 87.0, 89.0), pair="mnist-usps"))
    assert (
        "on every pair: reached where both are measured (lowres 4x9, as `calibrator`: less accurate on usps-mnist; "
        "lowres 4x3, as `calibrator`: accuracy not measured; "
        "lowres 4x3, as `calibrator neighbours`: reached on usps-mnist, not measured on mnist-usps)"
    ) in page(tmp_path, rows, measured)
    bodies["lowres 4x9"]["dtn"] = bodies["lowres 4x3"]["dtn"] = 1.3
    file.write_text(json.dumps(record))
    rows[1]["target_after"] = [84.2, 86.3, 88.0]
    assert "on every pair: **missed** (no body is that fast)" in page(tmp_path, rows, measured)
    file.write_text(json.dumps({**record, "quick": True}))
    assert "Bodies" not in page(tmp_path, rows, measured)


def test_rows_of_different_seeds_are_compared_where_they_meet(tmp_path):
    measured = tmp_path / "measured"
    measured.mkdir()
    bodies = {body: {"parameters": 1, "lenet": 2.0, "dtn": 1.2} for body in ("residual 4x3", "lowres 4x9")}
    record = {"quick": False, "what": "how", "bodies": bodies}
    (measured / "calib_latency.json").write_text(json.dumps(record))
    one = {"seeds": [2], "source_before": [96.5], "target_before": [72.0]}
    rows = [
        row("calibrator", (85.0, 87.0, 89.0)),
        row("calibrator lowres", (86.5,), (96.0,), **one),
        row("DANN", (95.0,), (96.0,), **one, touched="new model"),
    ]
    text = page(tmp_path, rows, measured)
    assert "86.50: -0.50 |" in text
    assert "DANN, 95.00; `calibrator` against it -8.00." in text


def test_speed_to_90_says_what_was_not_reached(tmp_path):
    measured = tmp_path / "measured"
    measured.mkdir()
    run = {
        "seed": 1,
        "best": {"accuracy": 88.5, "seconds": 410.2},
        "last": {"accuracy": 88.0, "seconds": 600.0},
    }
    runs = [{**run, "method": "calibrator", "reached": None}, {**run, "method": "DANN", "reached": 42.4}]
    record = {"quick": False, "what": "how", "goal": 90.0, "runs": runs, "not_measured": ["skada: why"]}
    record |= {"load": [2.5, 2.0, 1.0], "environment": {"cpus": 2}}
    (measured / "calib_to_90.json").write_text(json.dumps(record))
    text = page(tmp_path, [row("calibrator", (85.0, 87.0, 89.0))], measured)
    assert "| calibrator | 1 | not reached | 88.50 at 410 s | 88.00 at 600 s |" in text
    assert "| DANN | 1 | 42 s |" in text
    assert "Not measured: skada: why" in text
    assert "One seed, so that differences of some tens of seconds say nothing." in text
    assert "Load of the machine at the end: 2.5 on 2 cores" in text


def test_findings_are_means_over_seeds_with_their_figure(tmp_path):
    def one(seed, score):
        names = {"none": (60.0, 0.0, 0.25), "calibrator": (score, 0.031, 0.5)}
        rows = [
            {"name": name, "score": value, "mean_size": size, "confusion": confusion}
            for name, (value, size, confusion) in names.items()
        ]
        shares = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
        scores = [60.0, 60.0, 60.0, 62.0, 64.0, score - 1, score]
        return {
            "seed": seed,
            "corrections": rows,
            "epsilon": 0.4,
            "epsilon_unit": "share of the value range",
            "images": 1000,
            "by_epsilon": {"epsilon": [0.4 * s for s in shares], "target": scores, "source": scores},
            "spectra": {name: [1.0, 0.5] for name in ("target", "target, calibrated", "source")},
        }

    record = {"quick": False, "pair": "usps-mnist", "row": "calibrator", "runs": [one(1, 76.0), one(2, 80.0)]}
    (tmp_path / "calib_findings.json").write_text(json.dumps(record))
    text = page(tmp_path, [row("calibrator", (85.0, 87.0, 89.0))], tmp_path)
    assert "| none | 60.00 (0.00) | 0.0000 | 25.00 (0.00) |" in text
    assert "| calibrator | 78.00 (2.83) | 0.0310 | 50.00 (0.00) |" in text
    cut = (
        "60.00 (0.00) at 0, 62.00 (0.00) at 0.1, 64.00 (0.00) at 0.2, 77.00 (2.83) at 0.5, 78.00 (2.83) at 1."
    )
    assert cut in text
    assert "1,000 test images of the target, epsilon 0.4 (share of the value range)" in text
    assert (tmp_path / "page/calib_findings.png").stat().st_size > 5000


def test_classes_show_where_the_rest_is_lost(tmp_path):
    found = [
        {"target_before": [50.0 + shift, None], "target_after": [80.0 + shift, None]} for shift in (0.0, 4.0)
    ]
    text = page(tmp_path, [row("calibrator", (85.0, 87.0, 89.0))], by_class={"usps-mnist": found})
    assert "| before | 52.0 | - |" in text
    assert "| after | 82.0 | - |" in text


def test_further_scores_and_translations_are_shown_where_runs_kept_them(tmp_path):
    scores = {"source_before": 80.0, "source_after": 79.0, "target_before": 40.0, "target_after": 42.0}
    more = {"pixel_accuracy": [scores, scores, {**scores, "target_after": 45.0}]}
    streets = row("calibrator", (71.0, 73.0, 75.0), pair="camvid-day-dusk", measure="mIoU", **more)
    text = page(tmp_path, [streets])
    expected = "| calibrator | pixel accuracy | 40.00 (0.00) -> 43.00 (1.73) | 80.00 (0.00) -> 79.00 (0.00) |"
    assert expected in text
    assert "fwIoU |" not in text
    flips = [{"before": 2.0, "after": 30.0}, {"before": 3.0, "after": 32.0}, {"before": 4.0, "after": 34.0}]
    own = {"translation_seconds": [612.0] * 3, "label_flips": flips}
    text = page(tmp_path, [row("calibrator translated", (85.0, 87.0, 89.0), **own)])
    assert "its CycleGAN was trained in 612 s" in text
    assert "their label 3.00 (1.00) %, and of their translations 32.00 (2.00) %" in text
    assert "knows only translations names otherwise 3.50 (1.00) % of those images as they are" in text


def test_a_full_schedule_that_was_not_run_is_called_that_pair_by_pair(tmp_path):
    rows = [row("calibrator", (85.0, 87.0, 89.0))]
    text = page(tmp_path, rows)
    assert "core-hours a seed: usps-mnist 1 to 3, mnist-usps 9 to 25)" in text
    text = page(tmp_path, [*rows, row("calibrator full schedule", (96.0, 97.0, 98.0))])
    assert "core-hours a seed: mnist-usps 9 to 25)" in text
    both = [row("calibrator full schedule", (96.0, 97.0, 98.0), pair=p) for p in ("usps-mnist", "mnist-usps")]
    assert "Not run" not in page(tmp_path, rows + both)


def test_half_finished_rows_make_a_page(tmp_path):
    half = row("TENT", ())
    del half["target_after"]
    half["not_applicable"] = "no batch norm"
    two = row("calibrator", (85.0,), (97.0,), seeds=[2], source_before=[96.5], target_before=[72.0])
    text = page(tmp_path, [two, half])
    assert (
        "72.00 -> 85.00 on the target, +13.00 over the classifier alone (no difference shown, 1 seeds)"
        in text
    )
    assert "no batch norm" in text
    assert "is not finished" in page(tmp_path, [half])


def test_the_committed_page_says_what_the_committed_runs_say(tmp_path, monkeypatch):
    """Run `python -m benchmarks.calib.accuracy` after new runs."""
    from benchmarks.calib import accuracy as calib_accuracy

    monkeypatch.setattr(calib_accuracy, "RESULTS", tmp_path)
    assert calib_accuracy.table()
    for name in ("calib.md", "calib.json"):
        assert (ROOT / "docs/results" / name).read_text() == (tmp_path / name).read_text()
