"""Shares of right pictures, of priors that draw what is known: renders of the world, by their own denoiser."""

import math
from random import Random

import pytest
import torch
from fsd.cameras import Cameras, place, turntable
from fsd.prior_quality import by_flow, conditions, draw, flow_agreement, openness, prior_quality
from fsd.priors.diffusers import Condition, DiffusersPrior
from fsd.priors.pixel_pipeline import build_pipeline
from fsd.sampling import ddim
from fsd.world.captions import understand, vocabulary
from fsd.world.pictures import draw_object, render


class Painter:
    """The exact denoiser of one picture per view, which `choose` names from the prompt; colours it may change."""

    latent_shape = (3, 32, 32)
    image_size = 32
    calls = 0

    def __init__(
        self, views=1, choose=lambda colours, kinds, rng: (rng.choice(colours), rng.choice(kinds)), turn=0
    ):
        self.views, self.choose, self.turn, self.rng = views, choose, turn, Random("painter")
        self.drawn, self.painted = [], {}

    def encode_text(self, prompt, negative_prompt=""):
        return understand(prompt)

    def condition(self, prompt, cameras):
        """A new object for every group of views; all of a batch are painted together, once for all steps."""
        first = len(self.drawn)
        for _ in range(len(cameras) // self.views):
            colour, kind = self.choose(prompt.colours, prompt.kinds, self.rng)
            self.drawn.append(draw_object(self.rng, kind, colour))
        owner = torch.arange(first, len(self.drawn)).repeat_interleave(self.views)
        around = place(cameras.azimuth_deg + self.turn, cameras.elevation_deg)
        rows = {"owner": owner, "c2w": around.c2w, "fov": around.fov_deg}
        return Condition(rows, {}, [], None, {}, False)

    def alpha_sigma(self, t):
        return math.cos(t * 1.56), math.sin(t * 1.56)

    def predict_noise(self, x_t, t, condition, guidance_scale):
        owner, c2w, fov = (condition.positive[name] for name in ("owner", "c2w", "fov"))
        key = tuple(owner.tolist())
        if key not in self.painted:
            self.painted[key] = render(self.drawn, owner, Cameras(c2w, fov), 32).float() / 127.5 - 1
        alpha, sigma = self.alpha_sigma(t)
        return (x_t - alpha * self.painted[key]) / sigma


@pytest.mark.parametrize("views", [1, 4])
def test_a_prior_that_draws_what_it_is_asked_for_is_right(views: int) -> None:
    found = prior_quality(Painter(views), prompts=80 // views, steps=2, batch=30)
    assert found["pictures"] == 80
    # as often as the judge is
    assert found["kind"] >= 0.94
    assert found["colour"] >= 0.95
    assert found["view"] >= 0.8
    assert found["both"] <= min(found["kind"], found["colour"])
    assert 0.1 < found["views_asked"] / 80 < 0.6  # 5 of 16 kinds


def test_what_is_wrong_is_counted() -> None:
    red = Painter(choose=lambda colours, kinds, rng: ("red", kinds[0]))
    assert prior_quality(red, prompts=80, steps=1)["colour"] == pytest.approx(1 / 8, abs=0.09)
    cars = prior_quality(Painter(choose=lambda colours, kinds, rng: (colours[0], "car")), prompts=80, steps=1)
    assert cars["kind"] == pytest.approx(1 / 16, abs=0.07)
    assert cars["by_kind"]["car"] >= 0.9
    assert cars["by_kind"]["tree"] == 0
    turned = prior_quality(Painter(turn=180), prompts=80, steps=1)
    # Sides stay sides, half of all views; front and back change places.
    assert turned["view"] == pytest.approx(0.5, abs=0.3)
    assert turned["kind"] >= 0.9
    with pytest.raises(ValueError, match="prompts=0"):
        prior_quality(red, prompts=0)


def test_openness_is_the_entropy_of_what_is_left_open() -> None:
    found = openness(Painter(), "a mushroom", samples=64, steps=1)
    # of 64 samples 1 - 3.5 / (64 log 8) = 0.974 on average
    assert found["colour_ratio"] == pytest.approx(0.974, abs=0.05)
    assert found["colour"] == pytest.approx(found["colour_ratio"] * math.log(8))
    assert found["kind_ratio"] is None
    two = Painter(4, choose=lambda colours, kinds, rng: (rng.choice(["red", "blue"]), "ball"))
    found = openness(two, "an object", samples=24, steps=1)
    assert found["colour_ratio"] == pytest.approx(1 / 3, abs=0.05)
    assert found["kind_ratio"] <= 0.1
    with pytest.raises(ValueError, match="does not know 'corgi'"):
        openness(two, "a corgi")
    with pytest.raises(ValueError, match="samples=0"):
        openness(two, "an object", samples=0)


@pytest.fixture(scope="module")
def untrained() -> DiffusersPrior:
    torch.manual_seed(0)
    pipeline = build_pipeline([*vocabulary(), ","], False, channels=(8, 16), text_width=16)
    return DiffusersPrior(pipeline, view_words=False)


def test_flow_in_two_dimensions_is_ddim_on_a_network(untrained: DiffusersPrior) -> None:
    found = flow_agreement(untrained, "an object", samples=5, steps=6, batch=3)
    assert (found["agree"], found["pictures"]) == (1, 5)
    assert found["largest"] < 2e-3
    # It is the network that is followed, not the noise.
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    encoded, around = untrained.encode_text("an object"), turntable(2)
    flow = by_flow(untrained, encoded, around, noise, 6, 3.0)
    other = ddim(untrained, untrained.condition(encoded, around), noise.flip(0), 6, 3.0)
    assert (flow - other).abs().max() > 0.1


def test_a_batch_of_prompts_is_drawn_as_each_alone(untrained: DiffusersPrior) -> None:
    prompts, around = ["a red mug", "a car", "an object"], turntable(3)
    together = draw(untrained, prompts, around, torch.Generator().manual_seed(1), 3, 3.0, batch=2)
    generator = torch.Generator().manual_seed(1)
    for n, prompt in enumerate(prompts):
        alone = draw(untrained, [prompt], around[n : n + 1], generator, 3, 3.0)
        torch.testing.assert_close(together[n : n + 1], alone, atol=1e-4, rtol=1e-4)
    joined = conditions(untrained, prompts, around)
    assert joined.positive["text"].shape[0] == joined.negative["text"].shape[0] == 3


def test_a_prior_of_latents_has_no_pixels_of_its_own() -> None:
    painter = Painter()
    painter.image_size = 256
    with pytest.raises(ValueError, match="latents of a VAE"):
        flow_agreement(painter, "an object")
