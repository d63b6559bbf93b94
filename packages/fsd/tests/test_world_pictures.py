"""Pictures of random objects: the same whenever they are drawn, true to their captions, and within the frame."""

import random
import re

import pytest
import torch
from fsd.cameras import Cameras, place
from fsd.priors.view_words import VIEWS, view_index
from fsd.world.captions import BIG, SIZES, SMALL, caption, understand, vocabulary
from fsd.world.objects import FRONTED, KINDS
from fsd.world.parts import PartTensors
from fsd.world.pictures import RADIUS, Pictures, draw_object, draw_pictures, render
from fsd.world.words import COLOURS


@pytest.fixture(scope="module")
def single() -> Pictures:
    return draw_pictures(600, seed=3)


def _equal(one: Pictures, other: Pictures, count: int) -> None:
    for mine, theirs in zip(one, other, strict=True):
        if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
            assert torch.equal(mine[:count], theirs[:count])
        else:
            assert mine[:count] == theirs[:count]


@pytest.mark.parametrize("views", [1, 4])
def test_an_object_is_the_same_however_many_are_drawn_with_it(views: int) -> None:
    few, many = draw_pictures(5, seed=11, views=views), draw_pictures(60, seed=11, views=views)
    _equal(few, many, 5)
    _equal(many, draw_pictures(60, seed=11, views=views), 60)


def test_other_seeds_draw_other_objects() -> None:
    one, other = draw_pictures(20, seed=0), draw_pictures(20, seed=1)
    assert not (one.images == other.images).flatten(1).all(1).any()


def test_drawing_leaves_torchs_generator_alone_and_does_not_ask_pythons() -> None:
    # Python's own moves under the shape checks, which look at random entries: so what is drawn is compared.
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state()
    first = draw_pictures(3, seed=0).images
    assert torch.equal(before, torch.get_rng_state())
    random.seed(1)
    assert torch.equal(first, draw_pictures(3, seed=0).images)


def test_four_views_are_90_degrees_apart_and_alike_in_all_else() -> None:
    pictures = draw_pictures(30, seed=0, views=4)
    assert pictures.images.shape == (30, 4, 3, 32, 32)
    assert pictures.images.dtype == torch.uint8
    cameras = Cameras(pictures.c2w.flatten(0, 1), pictures.fov_deg.flatten())
    azimuth = cameras.azimuth_deg.view(30, 4)
    turns = (azimuth.roll(-1, 1) - azimuth) % 360
    torch.testing.assert_close(turns, torch.full((30, 4), 90.0), atol=1e-2, rtol=0)
    for values, low, high in (
        (cameras.elevation_deg, 0, 40),
        (cameras.distance, 2.5, 2.7),
        (cameras.fov_deg, 40, 40),
    ):
        each = values.view(30, 4)
        torch.testing.assert_close(each, each[:, :1].expand(30, 4), atol=1e-3, rtol=0)
        assert ((each > low - 1e-3) & (each < high + 1e-3)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_object_is_within_the_frame_and_to_be_seen(kind: str) -> None:
    images = draw_pictures(60, seed=5, kinds=[kind]).images[:, 0].int()
    ground = (images == 128).all(1)
    border = torch.ones(32, 32, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert ground[:, border].all()
    covered = (~ground).float().mean((1, 2))
    assert covered.min() > 0.04
    assert covered.max() < 0.7


def test_sizes_are_what_they_are_called() -> None:
    rng = random.Random(0)
    for _ in range(40):
        one = draw_object(rng, "cube")
        tensors = PartTensors([one.parts])
        tensors.fit(torch.tensor([one.size * RADIUS]))
        assert tensors.rows[0, 0, [0, 4, 8]].norm().item() == pytest.approx(one.size * RADIUS, rel=1e-5)
        assert 0.78 <= one.size <= 1


def test_all_kinds_and_colours_come_equally_often(single: Pictures) -> None:
    for found, names in ((single.kinds, KINDS), (single.colours, COLOURS)):
        counts = torch.tensor([found.count(name) for name in names]).float()
        expected = len(found) / len(names)
        # Each is binomial: within four standard deviations.
        assert ((counts - expected).abs() < 4 * expected**0.5).all()


def test_captions_say_what_the_picture_shows(single: Pictures) -> None:
    views = [VIEWS[n] for n in view_index(Cameras(single.c2w[:, 0], single.fov_deg[:, 0])).tolist()]
    known = set(vocabulary())
    for (text,), kind, colour, view in zip(single.captions, single.kinds, single.colours, views, strict=True):
        words = re.findall("[a-z]+", text)
        assert set(words) <= known
        assert set(words) & set(COLOURS) <= {colour}
        assert set(words) & set(KINDS) <= {kind}
        assert set(words) & set(VIEWS) <= {view}
        if kind not in FRONTED:
            assert not set(words) & {"front", "side", "back"}
        if view == "overhead" and words:
            assert text.endswith(", overhead view")
    everything = [text for (text,) in single.captions]
    assert 0.05 < everything.count("") / len(everything) < 0.15
    for part in (*COLOURS, *KINDS, *SIZES, "object", "front", "side", "back", "overhead"):
        assert any(part in text for text in everything), part


def test_captions_of_an_object_differ_in_the_view_alone() -> None:
    pictures = draw_pictures(200, seed=2, views=4)
    for texts, c2w, fov, kind in zip(
        pictures.captions, pictures.c2w, pictures.fov_deg, pictures.kinds, strict=True
    ):
        assert len({text.partition(",")[0] for text in texts}) == 1
        for text, n in zip(texts, view_index(Cameras(c2w, fov)).tolist(), strict=True):
            assert text.partition(", ")[2] in ("", f"{VIEWS[n]} view")
            assert kind in FRONTED or "," not in text


def test_words_for_sizes() -> None:
    said = {size: " ".join(caption(random.Random(str(k)), "red", "mug", size, ["side"])[0] for k in range(200))
            for size in (SMALL - 0.01, (SMALL + BIG) / 2, BIG + 0.01)}  # fmt: skip
    small, middle, big = said.values()
    assert "a small red mug" in small
    assert "a big red mug" in big
    assert "big" not in small + middle
    assert "small" not in middle + big
    orange = {caption(random.Random(str(k)), "orange", "mug", 0.9, ["side"])[0] for k in range(200)}
    assert orange == {"", "a mug", "an object", "an orange mug", "an orange object"}


def test_what_marks_the_front_is_seen_from_the_front_alone() -> None:
    marks = {  # a colour that the front alone shows, on an object of another
        "car": ("blue", (0.97, 0.95, 0.8)),
        "house": ("red", (0.62, 0.8, 0.9)),
        "fish": ("blue", (0.97, 0.95, 0.8)),
        "snowman": ("white", (0.95, 0.48, 0.08)),
    }
    assert {*marks, "chair"} == set(FRONTED)
    cameras = place([0.0, 180.0], 15.0)
    for kind, (colour, mark) in marks.items():
        for seed in range(5):
            one = draw_object(random.Random(seed), kind, colour)
            images = render([one], torch.tensor([0, 0]), cameras, 64, fine=1).float() / 255
            # Its hue and not its brightness, which the light changes.
            direction = torch.nn.functional.normalize(torch.tensor(mark), dim=0)
            alike = torch.nn.functional.cosine_similarity(images, direction[:, None, None], dim=1) > 0.9995
            alike &= (images - 128 / 255).abs().amax(1) > 0.02
            front, back = alike.flatten(1).sum(1).tolist()
            assert front > 4 * back + 3, (kind, seed, front, back)


def test_chairs_have_their_back_behind() -> None:
    for seed in range(10):
        rows = torch.tensor(draw_object(random.Random(seed), "chair").parts.rows["box"])
        highest = rows[rows[:, 11].argmax()]
        assert highest[10] < -0.4


def test_cubes_are_painted_in_their_colour() -> None:
    for name, rgb in COLOURS.items():
        one = draw_object(random.Random(name), "cube", name)
        image = render([one], torch.tensor([0]), place([30.0], 20.0), 32, fine=1)[0].float() / 255
        painted = image[:, (image - 128 / 255).abs().amax(0) > 0.02]
        shown = painted[:, painted.sum(0).argmax()]
        assert (shown - torch.tensor(rgb)).abs().max() < 0.13, name


def test_finer_pictures_show_the_same() -> None:
    small, large = draw_pictures(12, seed=4, size=32), draw_pictures(12, seed=4, size=64)
    shrunk = torch.nn.functional.avg_pool2d(large.images[:, 0].float(), 2)
    assert (shrunk - small.images[:, 0].float()).abs().mean() < 3


def test_prompts_are_read() -> None:
    asked = understand("A small RED chair, front view")
    assert asked == (("red",), ("chair",), ("small",), ("front",))
    assert understand("an object") == (tuple(COLOURS), tuple(KINDS), SIZES, VIEWS)
    assert len(vocabulary()) == len(set(vocabulary()))
    with pytest.raises(ValueError, match=r"does not know 'corgi'; it knows .*mushroom.*--prior"):
        understand("a corgi")
    with pytest.raises(ValueError, match="prompt is empty"):
        understand("  ")


@pytest.mark.parametrize(("count", "size", "views"), [(0, 32, 1), (1, 0, 1), (1, 32, 0)])
def test_nothing_cannot_be_drawn(count: int, size: int, views: int) -> None:
    with pytest.raises(ValueError, match="=0; it must be at least 1"):
        draw_pictures(count, 0, size, views)


def test_unknown_kinds_and_colours_are_refused() -> None:
    with pytest.raises(ValueError, match="no kind 'corgi' in this world; it has cube,"):
        draw_pictures(1, 0, kinds=["corgi"])
    with pytest.raises(ValueError, match="no colour 'pink' in this world; it has red,"):
        draw_object(random.Random(0), "cube", "pink")
