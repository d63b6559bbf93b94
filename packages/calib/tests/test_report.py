"""The report says what the run shows, loudly where it must, and opens in a browser; the README runs."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from calib.config import PRESETS, AdaptConfig, Baseline
from calib.report import report
from calib.report_images import EVENLY
from calib.run import run
from calib.summary import BASELINE_NAMES, cautions, sentence

HEADINGS = (
    "Other ways",
    "Images before and after",
    "How much correction is needed",
    "By class",
    "Training",
    "Which calibrator was kept",
    "Analysis",
    "Settings and environment",
)
RESULT: dict[str, Any] = {
    "source": "day",
    "target": "night",
    "measure": "accuracy",
    "source_before": 98.0,
    "source_after": 97.5,
    "target_before": 60.0,
    "target_after": 85.25,
    "oracle": False,
    "compat": "none",
    "classifier_unchanged": True,
    "note": "through the classifier",
    "chosen_step": 50,
}


@pytest.fixture(scope="module")
def loud(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, chosen by target labels, with the released code's faults."""
    out = tmp_path_factory.mktemp("runs") / "loud"
    settings = {"seeds": [0, 1], "selection": "oracle", "classifier": "small:dtn"}
    settings |= {"compat": "released", "mode": "released"}
    run(AdaptConfig.model_validate(tiny | settings), out)
    return out


@pytest.fixture
def copy(adapted: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(adapted, tmp_path / "copy")
    (copy / "analysis.json").unlink(missing_ok=True)
    return copy


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_four_numbers_come_first_and_nothing_is_fetched(copy: Path) -> None:
    page = report(copy).read_text()
    result = json.loads((copy / "result.json").read_text())
    found = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
    expected = [("target", "before"), ("target", "after"), ("source", "before"), ("source", "after")]
    for (name, value), (domain, when) in zip(found, expected, strict=False):
        assert name == f"{domain} {'with' if when == 'after' else 'without'} (accuracy)"
        assert value == f"{result[f'{domain}_{when}']:.2f} %"
    assert page.index("<dt>") < page.index("<p>With the calibrator")
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert re.findall(r"<h2>(.*?)</h2>", page) == list(HEADINGS)


def test_the_proof_and_what_each_baseline_touches(copy: Path) -> None:
    page = report(copy).read_text()
    result = json.loads((copy / "result.json").read_text())
    assert "Classifier unchanged, bit for bit" in page
    assert result["classifier_digest"][:16] in page
    rows = [re.findall(r"<td.*?>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    touched = {row[0]: row[-1] for row in rows if len(row) == 6}
    assert touched == {
        "source only": "nothing",
        "calibrator (this run)": "nothing",
        "moment matching": "nothing",
        "SHOT-IM": "new model",
    }
    assert "BN-adapt is left out: the classifier has no batch norm" in page
    assert "ORACLE" not in page
    assert "RELEASED" not in page


def test_counts_of_changed_answers_add_up(copy: Path) -> None:
    page = report(copy).read_text()
    result = json.loads((copy / "result.json").read_text())
    for domain in ("target", "source"):
        words = (
            rf"{domain.capitalize()}: of all (\d+) .*? changes the answer to (\d+); (\d+) become right, (\d+)"
        )
        found = re.search(words, page)
        assert found is not None
        size, changed, right, wrong = map(int, found.groups())
        assert right + wrong <= changed
        gain = result[f"{domain}_after"] - result[f"{domain}_before"]
        assert 100 * (right - wrong) / size == pytest.approx(gain)
    assert page.count('<img class="pixels"') >= 2 * EVENLY


def test_oracle_and_released_are_said_loudly_and_seeds_stand_apart(loud: Path) -> None:
    page = (loud / "report.html").read_text()
    assert re.search(r"<header>.*RELEASED code.*ORACLE selection.*</header>", page, flags=re.DOTALL)
    assert "ORACLE: target labels chose the calibrator" in page
    assert "RELEASED CODE: this run repeats the faults" in page
    assert "Classifier NOT unchanged" in page
    assert "chosen by target labels (oracle)" in page
    assert "<dd>NO</dd>" in page
    assert "By seed" in page
    assert "mean of 2 seeds" in page
    result = json.loads((loud / "result.json").read_text())
    assert f"{result['target_after']:.2f} ± {result['target_after_sd']:.2f} %" in page


def test_segmentation_shows_maps_and_iou(segmented: Path) -> None:
    page = (segmented / "report.html").read_text()
    scores = json.loads((segmented / "evaluation.json").read_text())["target_after"]
    assert "target with (mIoU)" in page
    assert "IoU of every class" in page
    assert "Classes of the label maps" in page
    assert f"fwIoU {scores['frequency_weighted_iou']:.2f} %" in page
    assert "Other ways" not in page


def test_data_that_are_gone_are_named_and_the_rest_stays(copy: Path) -> None:
    (copy / "files.json").unlink()  # else the changed configuration is refused
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump(config | {"target": "npz:gone.npz#dusk"}))
    page = report(copy).read_text()
    assert "are left out, they cannot be opened here: there is no file gone.npz" in page
    assert "By class" in page
    # The source is still there and still shown.
    assert "Source: of" in page
    assert "Target: of" not in page


def test_an_unfinished_run_has_no_report(loud: Path) -> None:
    result = loud / "cells" / "seed1" / "result.json"
    hidden = result.rename(result.with_suffix(".hidden"))
    try:
        with pytest.raises(ValueError, match="seed1 is not finished: go on with calib adapt --resume"):
            report(loud)
    finally:
        hidden.rename(result)


def test_the_sentence_says_gain_and_cost() -> None:
    assert sentence(RESULT) == (
        "With the calibrator, accuracy on night is 25.25 points higher; on the source day it is 0.50 points lower "
        "(one seed)."
    )
    assert "on night is the same" in sentence(RESULT | {"target_after": 60.0})
    assert "on dusk.npz#night is" in sentence(RESULT | {"target": "npz:data/dusk.npz#night"})
    assert "mean of 3 seeds" in sentence(RESULT | {"cells": [{}, {}, {}]})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"oracle": True}, "ORACLE"),
        ({"compat": "released"}, "RELEASED CODE"),
        ({"classifier_unchanged": False}, "THE CLASSIFIER CHANGED"),
        ({"note": "with pixels only: the classifier gives no gradient"}, "pixel critic only"),
        ({"note": "through a surrogate distilled from the classifier's answers"}, "stand-in distilled"),
        ({"target_after": 59.0}, "does harm"),
        ({"chosen_step": 0}, "the identity"),
    ],
)
def test_each_caution_has_its_cause(values: dict[str, Any], words: str) -> None:
    assert cautions(RESULT) == []
    (found,) = cautions(RESULT | values)
    assert words in found


def test_a_camera_of_five_bands_can_be_shown() -> None:
    from calib.report_images import _bytes, _coloured

    picture = _bytes(torch.linspace(0, 1, 5).reshape(5, 1, 1).expand(5, 400, 200))
    assert picture.shape == (160, 80, 3)
    assert (picture == 128).all()
    colours = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    shown = _coloured(torch.tensor([[0, 1, 255]]), colours)
    assert shown.tolist() == [[[1, 2, 3], [4, 5, 6], [0, 0, 0]]]


@pytest.fixture(scope="module")
def browser(browser_path: str) -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 390], ids=["desk", "telephone"])
def test_the_page_opens_with_all_pictures(browser, adapted: Path, segmented: Path, width: int) -> None:
    for folder in (adapted, segmented):
        page = browser.new_page(viewport={"width": width, "height": 800})
        troubles, requests = [], []
        page.on("pageerror", lambda error, troubles=troubles: troubles.append(str(error)))
        page.on("request", lambda request, requests=requests: requests.append(request.url))
        file = (folder / "report.html").as_uri()
        page.goto(file)
        assert troubles == []
        assert [url for url in requests if not url.startswith("data:")] == [file]
        widths = page.eval_on_selector_all("img", "all => all.map(img => img.naturalWidth)")
        assert widths
        assert all(widths)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()


README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_the_readme_runs_as_it_stands(block: str, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102
    assert "tensor" in capsys.readouterr().out


def test_every_method_has_a_name() -> None:
    assert set(BASELINE_NAMES) == {"calibrator", "source_only", *Baseline.__args__}


def test_the_readme_lists_every_preset_baseline_body_and_validator() -> None:
    bodies = AdaptConfig.model_fields["body"].annotation
    selection = AdaptConfig.model_fields["selection"].annotation
    for name in {*PRESETS, *Baseline.__args__, *selection.__args__}:
        assert f"`{name}`" in README, name
    for name in set(bodies.__args__) - {"residual"}:
        assert f"`--body {name}`" in README, name
