"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with real photographs, weights and odd images; named by TWOSTAGE_DATA."""
    folder = os.environ.get("TWOSTAGE_DATA")
    if not folder:
        pytest.skip("TWOSTAGE_DATA is not set: no real photographs and weights to test with")
    return Path(folder).resolve()
