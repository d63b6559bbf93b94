"""The configuration: what is refused, in which words, and that it is the same after a file."""

import subprocess
import sys

import pytest
from fsd.config import PRESETS, CameraSettings, GenerateConfig, seed_range
from pydantic import ValidationError
from shared_core.run.atomic import write_yaml
from shared_core.run.config import ConfigError, load_yaml


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_file(name, tmp_path):
    config = PRESETS[name]()
    write_yaml(tmp_path / "config.yaml", config.model_dump(mode="json"))
    assert load_yaml(GenerateConfig, tmp_path / "config.yaml") == config


def test_presets_are_what_their_names_say():
    assert PRESETS["bank"]().prior == "bank"
    assert PRESETS["mvdream"]().batch_size % 4 == 0
    assert all(PRESETS[name]().prior == "" for name in ("tiny", "stable-diffusion", "mvdream", "deepfloyd"))


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-3", [0, 1, 2, 3]), ("5", [5]), (" 2-2 ", [2]), ("9-10", [9, 10])]
)
def test_seed_ranges(text, seeds):
    assert seed_range(text) == seeds
    assert GenerateConfig.model_validate({"seeds": text}).seeds == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "0-3-5", "1,2", "0 - 3"])
def test_seeds_that_are_none(text):
    with pytest.raises(ValueError, match=r"seeds .*: give numbers, or a range such as 0-3"):
        seed_range(text)


def test_backward_ranges():
    with pytest.raises(ValueError, match="seeds '3-0': the range runs backwards"):
        seed_range("3-0")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"seeds": []}, "give at least one, none twice"),
        ({"seeds": [1, 1]}, "give at least one, none twice"),
        ({"seeds": [0, -1]}, "greater than or equal to 0"),
        ({"guidance": []}, "give at least one, none twice"),
        ({"guidance": ["fsd", "fsd"]}, "give at least one, none twice"),
        ({"guidance": ["dreamfusion"]}, "'sds-annealed'"),
        ({"prompts": ["a mug", " "]}, "a prompt is empty or there twice"),
        ({"prompts": ["a mug", "a mug"]}, "a prompt is empty or there twice"),
        ({"t_min": 0.9, "t_max": 0.5}, r"t_min=0.9 is above t_max=0.5"),
        ({"t_max": 1.2}, "less than or equal to 1"),
        ({"beta": 1.5}, "less than or equal to 1"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"size": 4}, "greater than or equal to 8"),
        ({"map_degrees": 0.0}, "greater than 0"),
        ({"optim": {"learning_rate": float("inf")}}, "finite number"),
        (
            {"cameras": {"elevation_deg": (40.0, 0.0)}},
            r"elevation_deg is \(40.0, 0.0\); give \(low, high\) within -90",
        ),
        ({"cameras": {"fov_deg": (0.0, 40.0)}}, "within 1 to 170"),
        ({"cameras": {"distance": (2.0, 200.0)}}, "within 0.1 to 100"),
        ({"stepz": 3}, "Extra inputs are not permitted"),
        ({"field": {"samplez": 3}}, "Extra inputs are not permitted"),
    ],
)
def test_refused(values, said):
    with pytest.raises(ValidationError, match=said):
        GenerateConfig.model_validate(values)


def test_it_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        PRESETS["bank"]().steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_key_of_the_file_that_nobody_reads(tmp_path):
    write_yaml(tmp_path / "config.yaml", {"stepz": 3})
    with pytest.raises(ConfigError, match="stepz"):
        load_yaml(GenerateConfig, tmp_path / "config.yaml")


def test_cameras_may_stand_still():
    assert CameraSettings(distance=(3.0, 3.0)).distance == (3.0, 3.0)


def test_it_needs_no_torch():
    code = "import sys, fsd.config; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
