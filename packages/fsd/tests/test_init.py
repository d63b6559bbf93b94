"""The public names: each is there, and the package imports without its heavy parts."""

import subprocess
import sys
from importlib.metadata import version

import fsd
import pytest


def test_version_is_the_distributions():
    assert fsd.__version__ == version("fsd")


@pytest.mark.parametrize("name", fsd.__all__)
def test_public_names_are_there(name):
    assert getattr(fsd, name).__doc__


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fsd.nothing  # noqa: B018


def test_guidance_needs_neither_diffusers_nor_accelerate():
    code = (
        "import sys, fsd; fsd.FlowScoreDistillation, fsd.WorldMapNoise, fsd.MixturePrior, fsd.RenderBank; "
        "print([m for m in ('accelerate', 'diffusers', 'transformers', 'trimesh', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
