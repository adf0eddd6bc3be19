"""Fixtures that every test may use."""

import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Threads that wait for each other sleep: two workers share the cores, and spinning doubles the time of all.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import pytest
from attacks.fake import Factory, FakeEncoder
from click.testing import CliRunner

import pipeline
from pipeline import cli
from pipeline.features.extraction import fill_store
from pipeline.features.store import FeatureStore
from pipeline.images.manifest import Manifest

pytest.register_assert_rewrite("helpers")
hypothesis.settings.register_profile("no clock", deadline=None)
hypothesis.settings.load_profile("no clock")

from helpers import FakeBlocks, paint  # noqa: E402 - its asserts are rewritten only if it is imported after the line above


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with real photographs, weights and odd images; named by TWOSTAGE_DATA."""
    folder = os.environ.get("TWOSTAGE_DATA")
    if not folder:
        pytest.skip("TWOSTAGE_DATA is not set: no real photographs and weights to test with")
    return Path(folder).resolve()


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
    """Converted networks go to a folder of this test run, which its workers share, never to the user's."""
    folder = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "TWOSTAGE_CACHE", str((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache")
        )
        yield


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every recipe is run by the fake encoder."""
    from pipeline.features import engines

    monkeypatch.setattr(engines, "ENGINES", dict.fromkeys(engines.ENGINES, FakeEncoder))


@pytest.fixture(scope="session")
def workplace_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples of the documentation name.

    In ``photos/`` cats are reddish and dogs greenish; ``artifacts/`` holds ``photos.h5``, ``photos.bundle``,
    ``small.h5``, ``large.h5`` and ``tagged.h5``, whose images have several labels.
    """
    folder = tmp_path_factory.mktemp("workplace")
    for i in range(1, 13):
        paint(folder / f"photos/cat/{i}.jpg", (180 + i, 40, i))
        paint(folder / f"photos/dog/{i}.jpg", (9 + i, 90, i))
        paint(folder / f"tagged/{('beach', 'beach;sunset', 'sunset')[i % 3]}/{i}.jpg", (80 * (i % 3) + i, 40, i))
    paint(folder / "new.jpg", (190, 40, 3))
    paint(folder / "new_photos/a.png", (10, 90, 3))
    (folder / "weights.h5").write_bytes(b"imagenet")
    with pytest.MonkeyPatch.context() as patch:
        fake_networks(patch, folder)
        patch.chdir(folder)
        with pipeline.extract("photos/", out="artifacts/photos.h5") as store:
            pipeline.train_head(store)[0].save("artifacts/photos.bundle")
        pipeline.extract("photos/", out="artifacts/small.h5", backbone="mobilenet_0.25", size=96).close()
        pipeline.extract("photos/", out="artifacts/large.h5", size=96).close()
        pipeline.extract("tagged/", out="artifacts/tagged.h5").close()
    return folder


def fake_networks(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the fake encoder stand in for networks with trained weights, for which any file will do."""
    from pipeline.features import engines, recipe
    from pipeline.finetuning import tuning as finetuning

    def encoder(real, recipe, batch_size):
        return (real if recipe.weights.startswith("random:") else FakeEncoder)(recipe, batch_size)

    fakes = {name: functools.partial(encoder, real) for name, real in engines.ENGINES.items()}
    patch.setattr(engines, "ENGINES", fakes)
    patch.setattr(recipe, "imagenet_file", lambda *_: folder / "weights.h5")
    patch.setattr(finetuning, "LastBlocks", FakeBlocks)


@pytest.fixture
def workplace(workplace_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files that examples name, as the current folder, with fake networks."""
    folder = tmp_path / "workplace"
    shutil.copytree(workplace_files, folder)
    fake_networks(monkeypatch, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def store(photos: Path, tmp_path: Path) -> Iterator[FeatureStore]:
    """The fixture `photos` as a feature file of 15 rows and 3 columns, made by the fake encoder."""
    factory = Factory()
    with fill_store(Manifest.read(photos), tmp_path / "f.h5", factory.recipe, make_encoder=factory) as made:
        yield made


@pytest.fixture
def run(fake_engine):
    """Run a command in this process with the fake encoder: (exit code, stdout, stderr)."""

    def invoke(*words, stdin=None):
        result = CliRunner().invoke(cli.main, [str(word) for word in words], input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return invoke


@pytest.fixture
def made(run, photos, tmp_path):
    """A feature file and a bundle made by the commands."""
    features, bundle = tmp_path / "a" / "f.h5", tmp_path / "a" / "b.bundle"
    network = ["--backbone", "mobilenet", "--weights", "random", "--size", 32]
    code, _, err = run("extract", photos, "--out", features, *network)
    assert code == 0, err
    code, _, err = run("train-head", features, "--out", bundle, "--head", "nearest-centroid", "--cv", 2)
    assert code == 0, err
    return features, bundle, photos
