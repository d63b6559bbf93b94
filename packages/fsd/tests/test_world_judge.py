"""The judge that comes with the package names what fresh pictures show; training another is a pure function."""

from pathlib import Path

import pytest
import torch
from fsd.world.judge import SEED, WEIGHTS, Judge, accuracy, load_judge, names, save_judge, train_judge, truth
from fsd.world.pictures import Pictures, draw_pictures


@pytest.fixture(scope="module")
def fresh() -> Pictures:
    return draw_pictures(1500, seed=SEED - 2)


def test_it_names_fresh_pictures(fresh: Pictures) -> None:
    kind, colour, view = accuracy(load_judge(), fresh)
    assert kind > 0.97
    assert colour > 0.98
    assert view > 0.93


def test_it_names_larger_pictures_as_well() -> None:
    kind, colour, _ = accuracy(load_judge(), draw_pictures(200, seed=SEED - 3, size=64))
    assert kind > 0.95
    assert colour > 0.96


def test_names_are_those_of_the_pictures(fresh: Pictures) -> None:
    found = names(load_judge()(fresh.images[:300, 0].float() / 255))
    shown = list(zip(fresh.colours, fresh.kinds, strict=True))[:300]
    assert sum(name[:2] == right for name, right in zip(found, shown, strict=True)) > 285
    assert {name[2] for name in found} <= {"front", "side", "back", "overhead"}


def test_answers_of_kinds_without_a_front_leave_the_view_out(fresh: Pictures) -> None:
    right = truth(fresh)
    lamps = torch.tensor([kind == "lamp" for kind in fresh.kinds])
    cars = torch.tensor([kind == "car" for kind in fresh.kinds])
    assert (right.view[lamps] == -1).all()
    assert (right.view[cars] >= 0).all()


def test_what_it_says_of_a_picture_is_its_own(fresh: Pictures) -> None:
    judge, images = load_judge(), fresh.images[:8, 0].float() / 255
    together, alone = judge(images), judge(images[3:4])
    assert together.features.shape == (8, 64)
    for many, one in zip(together, alone, strict=True):
        torch.testing.assert_close(many[3:4], one, atol=1e-4, rtol=1e-4)
    for logs in together[:3]:
        torch.testing.assert_close(logs.exp().sum(1), torch.ones(8))


def test_the_weights_are_small_and_are_read_back(tmp_path: Path) -> None:
    assert WEIGHTS.stat().st_size < 300_000
    torch.manual_seed(0)
    judge = Judge().eval()
    save_judge(judge, tmp_path / "judge.safetensors")
    images = torch.rand(2, 3, 32, 32)
    for mine, theirs in zip(judge(images), load_judge(tmp_path / "judge.safetensors")(images), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-2, rtol=1e-2)


@pytest.mark.slow
def test_training_is_repeatable_and_learns() -> None:
    torch.manual_seed(1)
    one = train_judge(pictures=1024, epochs=2, batch=64)
    torch.manual_seed(2)
    other = train_judge(pictures=1024, epochs=2, batch=64)
    for mine, theirs in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    _, colour, _ = accuracy(one, draw_pictures(300, seed=SEED - 4))
    assert colour > 0.5


@pytest.mark.parametrize("wrong", [{"pictures": 10}, {"epochs": 0}])
def test_too_little_to_train_on_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one batch and one epoch"):
        train_judge(**wrong)
