"""What is pure is tested without an event loop."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def nothing_is_left() -> None:
    """Take the place of the fixture of all tests, which would start a loop."""
