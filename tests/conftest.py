"""Fixtures that every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    from pipeline.features.store import FeatureStore


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


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Converted networks go to a folder of this test run, never to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOSTAGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recipe is run by the fake encoder."""
    from fake import FakeEncoder

    from pipeline.features import engines

    monkeypatch.setattr(engines, "ENGINES", dict.fromkeys(engines.ENGINES, FakeEncoder))


@pytest.fixture
def store(photos: Path, tmp_path: Path) -> Iterator["FeatureStore"]:
    """The fixture `photos` as a feature file of 15 rows and 3 columns, made by the fake encoder."""
    from fake import Factory

    from pipeline.features.extraction import fill_store
    from pipeline.images.manifest import Manifest

    factory = Factory()
    with fill_store(Manifest.read(photos), tmp_path / "f.h5", factory.recipe, make_encoder=factory) as made:
        yield made
