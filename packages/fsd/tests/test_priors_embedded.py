"""The priors of the package: they load, know their words, and name what the world's pictures show."""

from pathlib import Path

import pytest
import torch
from fsd import EmbeddedPrior
from fsd.build import build_prior
from fsd.cameras import Cameras, turntable
from fsd.cli import main
from fsd.config import GenerateConfig
from fsd.priors.base import Prior
from fsd.priors.embedded import WEIGHTS, in_views
from fsd.world.pictures import draw_pictures


@pytest.fixture(scope="module", params=["multi-view", "camera-free"])
def prior(request: pytest.FixtureRequest) -> EmbeddedPrior:
    return EmbeddedPrior(request.param)


def test_they_are_priors_of_pixels(prior: EmbeddedPrior) -> None:
    assert isinstance(prior, Prior)
    assert (prior.latent_shape, prior.image_size) == ((3, 32, 32), 32)
    assert prior.views == {"MultiViewPrior": 4, "DiffusersPrior": 1}[type(prior.prior).__name__]


def test_they_denoise_the_pictures_of_the_world(prior: EmbeddedPrior) -> None:
    """A quarter of the noise's variance at most is left unexplained, where half of the picture is noise."""
    drawn = draw_pictures(8, seed=77_000_001, views=4)
    cameras = Cameras(drawn.c2w.flatten(0, 1), drawn.fov_deg.flatten())
    x = drawn.images.flatten(0, 1).float() / 127.5 - 1
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    alpha, sigma = prior.alpha_sigma(0.4)
    condition = prior.condition(prior.encode_text("an object"), cameras)
    found = prior.predict_noise(alpha * x + sigma * noise, 0.4, condition, 1.0)
    assert (found - noise).square().mean() < 0.25
    assert prior.calls == 1


def test_unknown_words_are_refused_and_the_known_ones_listed(prior: EmbeddedPrior) -> None:
    with pytest.raises(ValueError, match=r"does not know 'corgi'; it knows .*red.*mushroom.*--prior"):
        prior.encode_text("a corgi")
    with pytest.raises(ValueError, match="does not know 'blurry'"):
        prior.encode_text("a red mug", "blurry")
    with pytest.raises(ValueError, match="the prompt is empty"):
        prior.encode_text(" ")


def test_the_command_line_says_so_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a corgi", "--prior", "embedded", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "does not know 'corgi'" in said
    assert "--prior" in said
    assert not (tmp_path / "run").exists()


def test_what_it_names_is_what_there_is() -> None:
    prior = EmbeddedPrior()
    drawn = draw_pictures(24, seed=77_000_002, views=1)
    labels, distances = prior.describe(drawn.images[:, 0].float() / 255, turntable(24))
    right = [f"{colour} {kind}" for colour, kind in zip(drawn.colours, drawn.kinds, strict=True)]
    assert sum(label == truth for label, truth in zip(labels, right, strict=True)) >= 22
    assert distances is None


def test_sides_are_named_where_there_is_a_front() -> None:
    assert in_views("a red car")[:3] == [
        "a red car, front view",
        "a red car, side view",
        "a red car, back view",
    ]
    assert in_views("a red mug")[:3] == ["a red mug"] * 3
    assert in_views("an object")[:3] == ["an object"] * 3
    assert in_views("a red mug")[3] == "a red mug, overhead view"


def test_settings_reach_the_prior() -> None:
    config = GenerateConfig(prior="embedded-camera-free", view_words=False, image_size=16)
    prior = build_prior(config, torch.device("cpu"))
    assert prior.image_size == 16
    assert len(next(iter(prior.encode_text("a red car").rows.values()))) == 2


def test_other_variants_are_refused() -> None:
    with pytest.raises(ValueError, match="variant is 'stereo'; choose one of multi-view, camera-free"):
        EmbeddedPrior("stereo")


def test_the_weights_are_small() -> None:
    for variant in ("multi-view", "camera-free"):
        files = [path for path in (WEIGHTS / variant).rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) < 8e6
        assert {path.suffix for path in files} == {".json", ".safetensors"}
