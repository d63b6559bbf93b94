"""The numbers of a run, from its folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsd import objects
from fsd.evaluate import COLUMNS, JUDGED, as_text, evaluate, occupied
from fsd.scene import grid_scene
from PIL import Image


@pytest.fixture(scope="module")
def result(made_up_run: Path) -> dict[str, Any]:
    return evaluate(made_up_run)


def test_a_row_per_method_in_the_order_of_the_configuration(result: dict[str, Any]) -> None:
    fsd, sds = result["methods"]
    assert [fsd["guidance"], sds["guidance"]] == ["fsd", "sds"]
    assert {key: result[key] for key in fsd} == fsd
    assert result["failed"] == [
        {"object": "a-toy-sds-seed2", "error": "the loss is not finite at step 17 <in the prior>"}
    ]
    assert fsd["seeds"] == sds["seeds"] == [0, 1]
    assert (fsd["distinct"], sds["distinct"]) == (2, 1)
    assert (fsd["seconds"], fsd["network_calls"], fsd["peak_memory_gb"]) == (25.5, 300, 0.75)
    assert (fsd["view_consistency"], fsd["quality"]) == (1.0, pytest.approx(0.08))
    json.dumps(result, allow_nan=False)


def test_distances_are_those_of_the_views_and_the_scenes(made_up_run: Path, result: dict[str, Any]) -> None:
    fsd, sds = result["methods"]
    rows = [made_up_run / "objects" / f"a-toy-fsd-seed{seed}" / "views.png" for seed in (0, 1)]
    a, b = (np.asarray(Image.open(row)).astype(float) / 255 for row in rows)
    assert fsd["pairwise_distance"] == pytest.approx(np.sqrt(((a - b) ** 2).mean()), rel=1e-5)
    assert sds["pairwise_distance"] == sds["volume_distance"] == 0
    assert 1.2 < fsd["vendi"] <= 2
    assert sds["vendi"] == pytest.approx(1, abs=1e-4)
    # The ball of radius 0.6 against the box of 0.8 by 1 by 1, noses left out.
    x, y, z = np.meshgrid(*3 * [np.linspace(-0.7, 0.7, 100)], indexing="ij")
    ball = x**2 + y**2 + z**2 < 0.6**2
    box = (abs(x) < 0.4) & (abs(y) < 0.5) & (abs(z) < 0.5)
    assert fsd["volume_distance"] == pytest.approx(1 - (ball & box).sum() / (ball | box).sum(), abs=0.08)
    assert fsd["enclosed_share"] == fsd["floaters"] == 0


def test_the_filled_space_is_that_of_the_ball(made_up_run: Path) -> None:
    grid = occupied(made_up_run / "objects" / "a-toy-sds-seed0" / "scene.safetensors", cells=48)
    volume = grid.sum() * (2 / 47) ** 3
    assert volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.2)
    half = grid.shape[1] // 2
    assert grid[:, half:].sum() > grid[:, :half].sum()  # the nose is in front, on +y


def test_an_empty_scene_fills_nothing(tmp_path: Path) -> None:
    grid_scene(8, blob_scale=0.0, offset=-20.0).save(tmp_path / "scene.safetensors")
    assert not occupied(tmp_path / "scene.safetensors", cells=12).any()


def test_what_one_seed_cannot_say_and_a_prior_cannot_name_is_none(made_up_run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "objects" / "a-toy-fsd-seed0"
    shutil.copytree(made_up_run / "objects" / kept.name, kept)
    about = json.loads((kept / "object.json").read_text())
    unnamed = {"label": None, "labels": None, "view_consistency": None, "quality": None}
    (kept / "object.json").write_text(json.dumps(about | unnamed))
    (kept / "scene.safetensors").unlink()
    (row,) = evaluate(tmp_path)["methods"]
    nothing = {key for key, value in row.items() if value is None}
    assert nothing == {
        "pairwise_distance", "minimum_distance", "vendi", "distinct", "view_consistency", "quality",
        "volume_distance", "enclosed_share", "floaters", *JUDGED,
    }  # fmt: skip
    head, prompt, line, cost = as_text(evaluate(tmp_path)).splitlines()
    assert (head.split(), prompt) == (["guidance", "seeds"], "a toy")
    assert line.split() == ["fsd", "1"]
    assert cost == "fsd: an object took 25 s and 300 network calls, peak memory 0.75 GB"


def test_the_judge_is_asked_about_embedded_priors(made_up_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made_up_run, tmp_path / "run")
    for path in run.glob("objects/*/object.json"):
        about = json.loads(path.read_text())
        path.write_text(json.dumps(about | {"prompt": "a red object", "prior": "embedded-camera-free"}))
    (row, _) = evaluate(run)["methods"]
    # A red ball with a yellow nose, and a blue box with one.
    assert row["prompt_accuracy"] == pytest.approx(0.5, abs=0.15)
    assert (row["distinct"], row["colour_entropy"]) == (2, pytest.approx(np.log(2)))
    assert row["cross_fid"] > 1
    assert 1.3 < row["inception_score"] <= 2
    assert row["vendi"] != evaluate(run, judged=False)["methods"][0]["vendi"]
    assert evaluate(run, judged=False)["cross_fid"] is None
    assert "accuracy" in as_text(evaluate(run)).splitlines()[0]
    json.dumps(row, allow_nan=False)


def test_the_schema_knows_every_number(result: dict[str, Any]) -> None:
    from fsd.run import schema
    from shared_core.run.result import check_result

    known = schema()["properties"]["methods"]["items"]
    assert set(known["properties"]) == set(result["methods"][0]) == set(known["required"])
    check_result(result, schema())


def test_the_printed_table(result: dict[str, Any]) -> None:
    head, prompt, fsd, sds, *costs, lost = as_text(result).splitlines()
    assert costs == [
        f"{row['guidance']}: an object took {row['seconds']:.0f} s and 300 network calls, peak memory "
        f"{row['peak_memory_gb']:.2f} GB"
        for row in result["methods"]
    ]
    assert head.index("distance") == fsd.index(f"{result['pairwise_distance']:.3g}")
    assert prompt == "a toy"
    assert sds.startswith("  sds ")
    assert lost.startswith("failed: a-toy-sds-seed2: the loss")


def test_the_printed_table_is_never_wider_than_a_hundred() -> None:
    row = dict.fromkeys(COLUMNS, 0.123456) | {"guidance": "sds-annealed", "seeds": [0, 1], "prompt": "a toy"}
    lines = as_text({"methods": [row, row | {"prompt": "a mug"}], "failed": []}).splitlines()
    assert 80 < max(map(len, lines)) <= 100
    assert [line for line in lines if not line.startswith(" ")][:2] == ["a toy", "a mug"]
    assert all(name in lines[0] for name in ("cross-FID", "accuracy", "consistency", "janus"))


def test_a_run_in_which_everything_failed(made_up_run: Path, tmp_path: Path) -> None:
    shutil.copytree(made_up_run / "objects" / "a-toy-sds-seed2", tmp_path / "objects" / "a-toy-sds-seed2")
    assert evaluate(tmp_path)["methods"] == []


def test_folders_that_are_no_run(made_up_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder objects/: give the folder of a run"):
        evaluate(tmp_path)
    broken = tmp_path / "objects" / "a-toy-fsd-seed0"
    broken.mkdir(parents=True)
    (broken / "object.json").write_text('{"prompt": ')
    with pytest.raises(ValueError, match=r"object.json is broken.*delete it"):
        evaluate(tmp_path)


def test_squares_of_a_row(tmp_path: Path) -> None:
    row = np.arange(4 * 12 * 3, dtype=np.uint8).reshape(4, 12, 3)
    Image.fromarray(row).save(tmp_path / "row.png")
    assert np.array_equal(objects.squares(tmp_path / "row.png")[1], row[:, 4:8])
    Image.fromarray(row[:, :10]).save(tmp_path / "row.png")
    with pytest.raises(ValueError, match="10 by 4 pixels"):
        objects.squares(tmp_path / "row.png")
