"""The public names: each is there, and the package imports without its heavy parts."""

import subprocess
import sys
from importlib.metadata import version

import calib
import pytest


def test_version_is_the_distributions():
    assert calib.__version__ == version("calib-uda")


@pytest.mark.parametrize("name", calib.__all__)
def test_public_names_are_things_and_not_modules(name):
    assert callable(getattr(calib, name))


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        calib.nothing  # noqa: B018


def test_losses_and_modules_need_neither_accelerate_nor_torchvision():
    code = (
        "import sys, calib; calib.Calibrator(1); calib.PixelCritic(1); calib.critic_loss; calib.attach; "
        "print([m for m in ('accelerate', 'torchvision', 'diffusers', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
