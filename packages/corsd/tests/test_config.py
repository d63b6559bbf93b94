"""Configurations agree with the plain classes that they become, and presets are whole."""

from dataclasses import fields

import pytest
from corsd.config import PRESETS, LossVariant, LossWeights, Optim, TrainConfig
from corsd.losses import Variant, Weights
from pydantic import ValidationError


@pytest.mark.parametrize(("config", "plain"), [(LossWeights, Weights), (LossVariant, Variant)])
def test_defaults_are_those_of_the_plain_class(config, plain):
    assert config().model_dump() == vars(plain())
    assert list(config.model_fields) == [field.name for field in fields(plain)]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_round_trip(name):
    config = PRESETS[name]()
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", PRESETS)
def test_batches_of_presets_divide_into_triplets(name):
    config = PRESETS[name]()
    if config.pairs == "triplets":
        assert config.batch_size % 3 == 0


def test_the_published_recipe():
    config = PRESETS["cifar100"]()
    assert (config.batch_size, config.epochs, config.pairs) == (129, 300, "triplets")
    assert (config.optim.lr, config.optim.momentum, config.optim.weight_decay) == (0.1, 0.9, 5e-4)
    assert config.optim.schedule == "onecycle"


def test_wrong_values_are_refused():
    with pytest.raises(ValidationError, match=r"at least one seed"):
        TrainConfig(seeds=[])
    with pytest.raises(ValidationError, match=r"none twice"):
        TrainConfig(seeds=[1, 1])
    with pytest.raises(ValidationError, match=r"greater than 0"):
        Optim(lr=0)
    with pytest.raises(ValidationError, match=r"Extra inputs are not permitted"):
        TrainConfig(epocs=3)
