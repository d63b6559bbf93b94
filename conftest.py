"""Tests that need a GPU or a browser are skipped where there is none, unless that is demanded.

``make test GPU=1`` sets REQUIRE_GPU and .ci/run sets REQUIRE_BROWSER: what is demanded and absent is an
error, so that a green run cannot hide tests that never ran.
"""

import os
import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("REQUIRE_GPU") and not _has_gpu():
        raise pytest.UsageError("GPU=1 demands a CUDA device and torch sees none; run make test without it.")
    if os.environ.get("REQUIRE_BROWSER") and not _browser():
        raise pytest.UsageError(
            f"REQUIRE_BROWSER is set and none of these is on PATH: {', '.join(BROWSERS)}."
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("browser") and not _browser():
            item.add_marker(pytest.mark.skip(reason="needs Chromium or Chrome on PATH"))


@pytest.fixture(scope="session")
def browser_path() -> str:
    """Path of the system's Chromium or Chrome, for tests marked ``browser``."""
    path = _browser()
    if path is None:
        raise RuntimeError("browser_path is for tests marked 'browser' only")
    return path
