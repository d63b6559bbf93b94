"""The page says what the run shows, also of one seed, one method, or a run that failed in part."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsd import figures
from fsd.evaluate import evaluate
from fsd.report import report
from fsd.summary import NUMBERS, comparison, key_numbers, meaning

ROW: dict[str, Any] = {
    "prompt": "a toy",
    "guidance": "fsd",
    "seeds": [0, 1, 2, 3],
    "pairwise_distance": 0.172,
    "distinct": 3,
    "view_consistency": 0.99,
}
OTHER = ROW | {"guidance": "sds", "pairwise_distance": 0.071, "distinct": 2, "view_consistency": 1.0}


@pytest.fixture
def copy(made_up_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made_up_run, tmp_path / "copy")


def words_of(page: Path) -> str:
    """The text that a reader sees."""
    html = re.sub(r"<(style|script)>.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def headings(page: Path) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page.read_text(encoding="utf-8"))


def test_a_page_of_two_methods(copy: Path) -> None:
    page = report(copy)
    assert page == copy / "report.html"
    html = page.read_text(encoding="utf-8")
    ways = ["FSD: on the way", "SDS: on the way"]
    assert headings(page) == ["FSD", "SDS", "In numbers", *ways, "All objects", "Settings and environment"]
    assert html.count("<video ") == html.count('<canvas class="mesh" ') == 4
    assert html.count('class="plot"') == 8
    assert html.count("<script>") == 1
    words = words_of(page)
    assert "1 of 5 objects failed" in words
    assert "a-toy-sds-seed2: the loss is not finite at step 17 &lt;in the prior&gt;" in words
    assert "seed 1: blue box, 100 % of the views" in words
    assert words.index("seed 0: red ball") < words.index("distance between seeds")
    assert "2 seeds for each method are few" in words
    assert "Vendi score" in words


def test_the_numbers_of_result_json_are_used_where_it_stands(copy: Path) -> None:
    result = {"methods": [ROW | {"pairwise_distance": 0.4321, "prior": "p"}], "failed": []}
    (copy / "result.json").write_text(json.dumps(result))
    assert "0.432" in words_of(report(copy))


def test_one_method_and_one_seed_without_names_or_pictures(copy: Path) -> None:
    for path in (copy / "objects").iterdir():
        if path.name != "a-toy-fsd-seed0":
            shutil.rmtree(path)
    kept = copy / "objects" / "a-toy-fsd-seed0"
    about = json.loads((kept / "object.json").read_text())
    unnamed = {"label": None, "labels": None, "view_consistency": None, "quality": None}
    (kept / "object.json").write_text(json.dumps(about | unnamed))
    for name in ("turntable.mp4", "mesh.glb", "progress.png", "normal.png", "metrics.jsonl"):
        (kept / name).unlink()
    page = report(copy)
    words = words_of(page)
    assert headings(page)[0] == "FSD"
    assert "One seed has no distance to another" in words
    assert "cannot name what it sees" in words
    assert "failed" not in words
    assert 'class="plot"' in page.read_text(encoding="utf-8")  # the views


def test_a_run_in_which_everything_failed(copy: Path) -> None:
    for path in (copy / "objects").iterdir():
        if path.name != "a-toy-sds-seed2":
            shutil.rmtree(path)
    words = words_of(report(copy))
    assert "1 of 1 objects failed" in words
    assert "every object failed" in words


def test_a_run_without_a_finished_object_has_no_page(copy: Path) -> None:
    shutil.rmtree(copy / "objects")
    (copy / "objects").mkdir()
    with pytest.raises(ValueError, match="no finished object yet: go on with"):
        report(copy)


def test_several_prompts_stand_in_the_headings(copy: Path) -> None:
    other = copy / "objects" / "a-box-fsd-seed0"
    shutil.copytree(copy / "objects" / "a-toy-fsd-seed1", other)
    about = json.loads((other / "object.json").read_text())
    (other / "object.json").write_text(json.dumps(about | {"prompt": "a <box>", "seed": 0}))
    page = report(copy)
    assert headings(page)[:3] == ["FSD: a toy", "SDS: a toy", "FSD: a &lt;box&gt;"]
    assert "2 prompts" in words_of(page)


def test_the_comparison_puts_consistency_beside_diversity() -> None:
    (sentence,) = comparison([ROW, OTHER])
    assert sentence == (
        "The seeds of FSD lie 2.4 times as far apart as those of SDS (0.172 against 0.071), with 3 distinct objects "
        "of 4 against 2 of 4; of an object's views 99 % agree, against 100 %."
    )
    (sentence,) = comparison([ROW, OTHER | {"pairwise_distance": 0.0, "distinct": None}])
    assert sentence.startswith(
        "The seeds of SDS all gave the same object; those of FSD lie 0.172 apart; of an"
    )
    assert comparison([ROW]) == comparison([ROW, OTHER | {"prompt": "another"}]) == []
    assert comparison([ROW | {"pairwise_distance": None}, OTHER]) == []


def test_the_words_follow_what_was_measured() -> None:
    judged = ROW | {
        "cross_fid": 7.25,
        "vendi": 2.1,
        "prompt_accuracy": 0.93,
        "janus_rate": 0.04,
        "quality": None,
    }
    (sentence,) = comparison([judged, OTHER | {"prompt_accuracy": 0.97}])
    assert sentence.endswith("; 93 % show what was asked for, against 97 %.")
    said = " ".join(meaning([judged]))
    for words in ("small network", "kind and colour are what the prompt asks for", "Janus", "cross-seed FID is",
                  "Vendi score of what the judge sees"):  # fmt: skip
        assert words in said
    assert "nearest picture that the prior knows" not in said
    banked = " ".join(meaning([ROW | {"quality": 0.03, "vendi": 2.0}]))
    assert "nearest picture that the prior knows" in banked
    assert "Vendi score of the views" in banked
    for words in ("judge", "Janus", "prompt accuracy"):
        assert words not in banked
    shown = str(key_numbers([judged]))
    assert "93 %" in shown
    assert "cross-seed FID" in shown
    assert "distance from the prior" not in shown


def test_every_number_of_a_row_has_a_name(made_up_run: Path) -> None:
    (row, _) = evaluate(made_up_run)["methods"]
    assert set(NUMBERS) == set(row) - {"prompt", "prior", "guidance", "seeds"}


def test_an_object_tells_its_views_names(copy: Path) -> None:
    path = copy / "objects" / "a-toy-fsd-seed1" / "object.json"
    about = json.loads(path.read_text())
    labels = ["blue box"] * 18 + ["blue table"] * 4 + ["red box"] + ["red table"]
    path.write_text(json.dumps(about | {"labels": labels, "view_consistency": 0.75, "quality": None}))
    words = words_of(report(copy))
    assert "seed 1: blue box, 75 % of the views, blue table 17 %, red box 4 %" in words


def test_few_seeds_are_said_to_be_few() -> None:
    assert meaning([ROW])[-1].startswith("4 seeds for each method are few")
    assert not any("few" in words for words in meaning([ROW | {"seeds": list(range(8))}]))


def test_a_contact_sheet_has_the_pictures_where_they_belong() -> None:
    views = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 5, 3), dtype=np.uint8)
    figure = figures.contact_sheet(list(views), ["seed 0", "seed 1"], ["0°", "120°", "240°"])
    (axes,) = figure.axes
    sheet = np.asarray(axes.images[0].get_array())
    for ticks, tocks, place in (
        (y, x, (i, j)) for i, y in enumerate(axes.get_yticks()) for j, x in enumerate(axes.get_xticks())
    ):
        top, left = int(ticks) - 2, int(tocks) - 2
        assert np.array_equal(sheet[top : top + 5, left : left + 5], views[place])
    assert (sheet[5] == 255).all()  # the gap
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0°", "120°", "240°"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["seed 0", "seed 1"]


def test_curves_leave_out_what_was_not_logged_and_bear_infinities() -> None:
    lines = [{"step": 0, "loss": 1.0, "t": 0.9}, {"step": 1, "loss": float("nan"), "t": 0.8}]
    figure = figures.curves({"seed 0": lines, "seed 1": [{"step": 0, "loss": float("inf"), "t": 0.9}]})
    assert [axes.get_title() for axes in figure.axes] == ["time t", "loss"]
    assert figure.axes[1].lines[0].get_ydata()[0] == 1.0
    assert figures.curves({"seed 0": [{"step": 0}]}).axes
