"""Presets carry the paper's constants; a command stays small."""

from dataclasses import asdict

import pytest
from calib.config import PRESETS, AdaptConfig
from calib.neighbours import Neighbours
from calib.step import Weights
from calib.views import Views
from pydantic import ValidationError


def test_settings_of_the_loss_and_of_views_have_the_defaults_of_what_they_become():
    assert AdaptConfig().loss.model_dump() == asdict(Weights())
    assert AdaptConfig().views.model_dump() == asdict(Views())
    assert AdaptConfig().neighbours.model_dump() == asdict(Neighbours())


def test_neighbours_without_views_to_agree_on_are_refused():
    with pytest.raises(ValidationError, match=r"give loss\.views above 0"):
        AdaptConfig(neighbours={"count": 5})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole_and_survive_a_round_trip(name):
    config = PRESETS[name]()
    assert AdaptConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("name", "epsilon", "width", "blocks", "patch", "steps", "batch", "rate"),
    [
        ("mnist-usps", 0.4, 8, 9, 4, 11_200, 128, 1e-4),
        ("usps-mnist", 0.9, 4, 9, 8, 2_800, 128, 1e-4),
        ("svhn-mnist", 0.8, 8, 8, 8, 11_700, 512, 2e-4),
    ],
)
def test_the_papers_constants(name, epsilon, width, blocks, patch, steps, batch, rate):
    config = PRESETS[name]()
    assert config.epsilon == epsilon / 2  # of [-1, 1] there, of the value range here
    assert (config.width, config.blocks, config.patch, config.steps) == (width, blocks, patch, steps)
    assert (config.batch_size, config.optim.learning_rate, config.classifier) == (batch, rate, "small:dtn")
    assert config.loss.source == 0.1


def test_a_command_has_fifteen_flags_at_most():
    from typing import get_args

    from tyro.conf import Suppress

    hidden = get_args(Suppress[int])[1]
    assert sum(hidden not in field.metadata for field in AdaptConfig.model_fields.values()) <= 15


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [1, 1]}, "none twice"),
        ({"epsilon": 0}, "greater than 0"),
        ({"compat": "released"}, "but mode is signed: say mode: released, too"),
        ({"compat": "released", "mode": "positive"}, "but mode is positive"),
        ({"compat": "released", "mode": "released", "loss": {"hold": 1.0}}, "leave them 0"),
    ],
)
def test_values_that_cannot_be(values, message):
    with pytest.raises(ValidationError, match=message):
        AdaptConfig(**values)


def test_the_released_code_is_asked_for_by_both_keys():
    config = AdaptConfig(compat="released", mode="released")
    assert (config.compat, config.mode) == ("released", "released")
    assert AdaptConfig(mode="released").compat == "none"
