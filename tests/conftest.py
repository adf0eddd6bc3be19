"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with real photographs, weights and odd images; named by TWOSTAGE_DATA."""
    folder = os.environ.get("TWOSTAGE_DATA")
    if not folder:
        pytest.skip("TWOSTAGE_DATA is not set: no real photographs and weights to test with")
    return Path(folder).resolve()


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 10)) -> Path:
    """Write a PNG of one colour; its fake vector is that colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, "PNG")
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three classes with five one-coloured images each; image i of class c is (80 * c + i, i, 7)."""
    folder = tmp_path / "photos"
    for label, name in enumerate(["ant", "bee", "cow"]):
        for i in range(5):
            paint(folder / name / f"{i}.png", (80 * label + i, i, 7))
    return folder
