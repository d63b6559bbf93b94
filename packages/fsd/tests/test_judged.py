"""What the judge's names and features say of objects of which the truth is known: renders of the world."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from fsd.attributes import janus_rate, main_name, prompt_accuracy, view_accuracy
from fsd.cameras import place, turntable
from fsd.evaluate import of_judge
from fsd.judged import (
    JudgedViews,
    judge_views,
    judged_views,
    kind_names,
    label_probabilities,
    labels,
    object_features,
    side_names,
)
from fsd.metrics import cross_seed_fid, vendi_score
from fsd.objects import Finished
from fsd.world.judge import load_judge
from fsd.world.pictures import Drawn, draw_object, render
from PIL import Image


def around(objects: list[Drawn], size: int = 32) -> np.ndarray:
    """Views of each object as views.png holds them."""
    cameras = turntable(24)
    pictures = [render([one], torch.zeros(24, dtype=torch.long), cameras, size) for one in objects]
    return torch.stack(pictures).permute(0, 1, 3, 4, 2).numpy()


def drawn(*what: str) -> list[Drawn]:
    """ "red car" and the like, each with proportions of its own."""
    return [draw_object(Random(f"judged-{k}"), *reversed(name.split())) for k, name in enumerate(what)]


@pytest.fixture(scope="module")
def four_cars() -> JudgedViews:
    return judge_views(around(drawn("red car", "blue car", "white car", "green car")))


@pytest.fixture(scope="module")
def four_kinds() -> JudgedViews:
    return judge_views(around(drawn("red mushroom", "blue chair", "white mug", "green tree")))


def test_views_are_named_and_features_kept(four_cars: JudgedViews) -> None:
    named = labels(four_cars)
    assert [main_name(row) for row in named] == ["red car", "blue car", "white car", "green car"]
    assert all(len(row) == 24 for row in named)
    picture = torch.from_numpy(around(drawn("red car"))[0, 3]).permute(2, 0, 1)[None].float() / 255
    alone = load_judge()(picture)
    np.testing.assert_allclose(four_cars.features[0, 3], alone.features[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(four_cars.colour_probabilities[0, 3], alone.colour.exp()[0], atol=1e-4)


def test_the_objects_folders_are_read(tmp_path: Path, four_cars: JudgedViews) -> None:
    found = []
    for seed, views in enumerate(around(drawn("red car", "blue car"))):
        folder = tmp_path / str(seed)
        folder.mkdir()
        Image.fromarray(np.concatenate(list(views), 1)).save(folder / "views.png")
        found.append(Finished(folder, "a car", "fsd", seed, {}))
    np.testing.assert_allclose(judged_views(found).features, four_cars.features[:2], rtol=1e-4, atol=1e-4)
    Image.fromarray(np.zeros((8, 24, 3), np.uint8)).save(tmp_path / "1" / "views.png")
    with pytest.raises(ValueError, match=r"views of \[\(3, 8\), \(24, 32\)\].*alike"):
        judged_views(found)
    with pytest.raises(ValueError, match="no objects"):
        judged_views([])


def test_an_object_of_the_world_is_all_right(four_cars: JudgedViews) -> None:
    found = of_judge("a car", four_cars)
    assert found["prompt_accuracy"] >= 0.97
    assert found["view_accuracy"] >= 0.9
    assert found["janus_rate"] <= 0.02
    assert found["kind_consistency"] >= 0.97
    assert found["colour_consistency"] >= 0.97
    assert found["view_consistency"] >= 0.95
    assert (found["distinct"], found["kind_entropy"]) == (4, 0)
    assert found["colour_entropy"] == pytest.approx(np.log(4))
    assert of_judge("a red car", four_cars)["prompt_accuracy"] == pytest.approx(0.25, abs=0.02)
    assert of_judge("an object", four_cars)["prompt_accuracy"] is None


def test_a_face_on_the_back_is_a_janus() -> None:
    views = around(drawn("yellow house"))
    # The front half of the way around, twice: from behind one meets the same front again.
    two_faced = views[:, _two_faces()]
    turned = np.roll(views, 12, 1)
    honest, janus, backwards = (of_judge("a house", judge_views(v)) for v in (views, two_faced, turned))
    assert honest["janus_rate"] <= 0.1 < 0.9 <= honest["view_accuracy"]
    # A front is seen from 75 degrees of the 150 between the first and the last view from behind.
    assert janus["janus_rate"] == pytest.approx(5 / 11, abs=0.1)
    assert backwards["janus_rate"] == pytest.approx(5 / 11, abs=0.1)
    assert janus["view_accuracy"] == pytest.approx(19 / 24, abs=0.05)
    assert backwards["view_accuracy"] == pytest.approx(14 / 24, abs=0.05)


def _two_faces() -> list[int]:
    """Numbers of 24 views of an object whose back is its front: the front half, and the front half again."""
    return [*range(6), *range(18, 24), *range(6), *range(18, 24)]


def test_rates_are_those_of_a_slow_count() -> None:
    cameras = place(torch.tensor([0, 30, 80, 90, 120, 150, 180, 210, 270, 300]))
    sides = ["front", "side", "front", "front", "front", "back", "back", "front", "front", "side"]
    truth = ["front", "front", "side", "side", "side", "back", "back", "back", "side", "side"]
    fish = ["fish"] * 10
    assert view_accuracy(fish, sides, cameras) == sum(a == b for a, b in zip(sides, truth, strict=True)) / 10
    assert janus_rate(fish, sides, cameras) == 2 / 4  # of 120, 150, 180 and 210 degrees
    assert janus_rate(["fish"] * 6 + ["mug"] * 4, sides, cameras) == 2 / 4
    assert janus_rate(["fish"] * 4 + ["mug"] * 6, sides, cameras) is None
    assert view_accuracy(["mug"] * 10, sides, cameras) is None
    assert janus_rate(["fish"], ["front"], place([20.0])) is None


def test_prompt_accuracy_asks_for_what_the_prompt_names() -> None:
    seen = ["red mushroom", "red tree", "blue mushroom", "white car"]
    assert prompt_accuracy("a red mushroom", seen) == 0.25
    assert prompt_accuracy("a red object", seen) == 0.5
    assert prompt_accuracy("a small mushroom", seen) == 0.5
    assert prompt_accuracy("an object", seen) is None
    assert prompt_accuracy("a big object, front view", seen) is None
    with pytest.raises(ValueError, match="does not know 'corgi'"):
        prompt_accuracy("a corgi", seen)
    with pytest.raises(ValueError, match="no views"):
        prompt_accuracy("a mug", [])


def test_diversity_tells_kinds_from_copies(four_cars: JudgedViews, four_kinds: JudgedViews) -> None:
    copies = judge_views(np.repeat(around(drawn("red car")), 4, 0))
    found = [of_judge("an object", judged) for judged in (copies, four_cars, four_kinds)]
    for name in ("cross_fid", "inception_score", "vendi"):
        same, cars, kinds = (row[name] for row in found)
        assert same < cars < kinds
    assert found[0]["cross_fid"] == pytest.approx(0, abs=1e-6)
    assert (found[0]["inception_score"], found[0]["vendi"]) == pytest.approx((1, 1))
    assert found[2]["inception_score"] > 3.5
    assert found[2]["vendi"] > 2.3
    # by hand
    features = four_kinds.features
    assert found[2]["cross_fid"] == cross_seed_fid(features)
    rows = [sum(row) / 24 for row in features]
    cosine = np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in rows] for a in rows])
    values = np.linalg.eigvalsh(cosine / 4)
    assert found[2]["vendi"] == pytest.approx(np.exp(-sum(v * np.log(v) for v in values)))


def test_objects_that_fall_apart_are_not_diverse(four_kinds: JudgedViews) -> None:
    views = around(drawn("red mushroom", "blue chair", "white mug", "green tree"))
    # Every object is another one from each side; all in their own order.
    mixed = np.stack([[views[(seed + view) % 4, view] for view in range(24)] for seed in range(4)])
    judged = judge_views(mixed)
    assert vendi_score(object_features(judged)) < 1.2 < vendi_score(object_features(four_kinds))
    found = of_judge("a red mushroom", judged)
    assert found["prompt_accuracy"] == pytest.approx(0.25, abs=0.05)
    assert found["kind_consistency"] == pytest.approx(0.25, abs=0.05)


def test_probabilities_of_kind_and_colour_together(four_kinds: JudgedViews) -> None:
    joint = label_probabilities(four_kinds)
    assert joint.shape == (4, 24, 128)
    np.testing.assert_allclose(joint.sum(2), 1, rtol=1e-5)
    kind, colour = four_kinds.kind_probabilities[1, 2], four_kinds.colour_probabilities[1, 2]
    assert joint[1, 2, 3 * 8 + 5] == pytest.approx(kind[3] * colour[5])
    assert kind_names(four_kinds)[1].count("chair") >= 23
    assert set(side_names(four_kinds)[1]) >= {"front", "side", "back"}


def test_one_seed_says_nothing_of_diversity(four_cars: JudgedViews) -> None:
    one = JudgedViews(*(value[:1] for value in four_cars))
    found = of_judge("a red car", one)
    nothing = {name for name, value in found.items() if value is None}
    assert nothing == {"cross_fid", "inception_score", "vendi", "kind_entropy", "colour_entropy"}
