"""Fixtures of calib's tests."""

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture
def as_a_user() -> Iterator[None]:
    """No shape checks, which only tests have: wrong arguments reach the package's own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
