"""What several test modules share: feature files, training data, pictures of one colour, quick heads."""

import dataclasses
from pathlib import Path

import numpy as np
from attacks.fake import RECIPE, Factory
from PIL import Image

from pipeline.features.extraction import fill_store
from pipeline.features.store import FeatureStore, Index, Skipped, write_store
from pipeline.images.manifest import Manifest
from pipeline.training.training_data import TrainingData

FIXTURES = Path(__file__).parent / "fixtures"
# Small settings of the slow heads, so that the whole table can be tried in seconds.
QUICK = {
    "dense": {"hidden": (8,), "epochs": 15, "learning_rate": 0.05},
    "random-forest": {"n_estimators": 5, "n_jobs": 1},
    "hist-gradient-boosting": {"max_iter": 10, "min_samples_leaf": 2, "max_features": 1.0},
    "logreg": {"C": 1.0},
    "ridge": {"alpha": 1.0},
    "linear-svm": {"C": 0.1},
}


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 10)) -> Path:
    """Write a PNG of one colour; its fake vector is that colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, "PNG")
    return path


class FakeBlocks:
    """Last blocks that hand on what comes in, and learn nothing."""

    def __init__(self, recipe, after, seed):
        self.recipe, self.after, self.count = recipe, after or "last", 0

    def input_recipe(self, views):
        return dataclasses.replace(self.recipe, views=views)

    def attach(self, head, learning_rate):
        self.probabilities = head.predict_proba

    def step(self, maps, targets, *, first):
        return {"loss": 1.0, "accuracy": 1.0}

    def weights(self):
        return []

    def restore(self, weights):
        assert weights == []

    def save(self, path):
        path.write_bytes(b"tuned")


def fill(folder, out, factory=None, **options):
    """Extract with the fake encoder, and check what must hold after every run."""
    factory = factory or Factory()
    manifest = folder if isinstance(folder, Manifest) else Manifest.read(folder)
    store = fill_store(manifest, out, factory.recipe, make_encoder=factory, **options)
    assert len(store) + len(store.skipped) == len(manifest)
    assert sorted([*store.paths, *store.skipped]) == sorted(manifest.paths)
    assert store.summary.images == store.summary.stored + store.summary.skipped
    assert store.summary.extracted + store.summary.reused == store.summary.stored
    assert sorted(p.name for p in Path(out).parent.iterdir() if p.name.startswith((".", Path(out).name))) == [
        Path(out).name
    ]
    return store


def make_index(paths, dim=3, **changes):
    n = len(paths)
    rng = np.random.default_rng(0)
    index = Index(
        recipe=RECIPE,
        segments={"last": (0, dim)},
        paths=list(paths),
        digests=rng.integers(0, 256, (n, 32), dtype=np.uint8),
        sizes_mtimes=rng.integers(0, 2**62, (n, 2)),
        labels=rng.integers(-1, 2, n).astype(np.int32),
        splits=["train"] * n,
        groups=[""] * n,
        classes=("ant", "bee"),
        root="/somewhere",
        skipped=(Skipped("bad.jpg", "truncated: in row 3", 10, 20),),
        created_with={"numpy": "2"},
    )
    return dataclasses.replace(index, **changes)


def make_store(path, n=90, dim=4, noise=0.5, seed=0, **changes):
    """Three classes around three corners; splits 60 / 15 / 15 unless changed."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    vectors = (np.eye(3, dim)[labels] * 3 + rng.normal(0, noise, (n, dim))).astype(np.float32)
    splits = ["train" if i < n * 2 // 3 else "validation" if i < n * 5 // 6 else "test" for i in range(n)]
    index = make_index(
        [f"{'abc'[label]}/{i}.png" for i, label in enumerate(labels)],
        dim,
        labels=labels.astype(np.int32),
        classes=("a", "b", "c"),
        splits=splits,
    )
    index = dataclasses.replace(index, **changes)
    write_store(path, index, [vectors])
    return FeatureStore(path)


def make_duplicates(path, n=120, d=96, same=12, splits=None):
    """Two classes of random vectors; image 2i and 2i + 1 show nearly the same for the first `same` pairs."""
    rng = np.random.default_rng(0)
    labels = (np.arange(n) // 2 % 2).astype(np.int32)
    X = rng.standard_normal((n, d)) + labels[:, None]
    X[1 : 2 * same : 2] = X[0 : 2 * same : 2] + 0.1 * rng.standard_normal((same, d))
    changes = {"labels": labels, "classes": ("cat", "dog"), "splits": splits or [""] * n}
    index = make_index([f"{i:03d}.jpg" for i in range(n)], d, **changes)
    write_store(path, index, [X.astype(np.float32)])
    return FeatureStore(path)


def make_data(n=120, views=1, dim=6, noise=1.5, seed=0, splits=None, groups=None, k=3):
    """k classes around k corners; a further view is the same vector with other noise."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    X = np.eye(k, dim)[y][:, None] * 3 + rng.normal(0, noise, (n, views, dim))
    return TrainingData(
        X=X.astype(np.float32),
        y=y,
        splits=np.array(splits or ["train"] * n),
        groups=np.array(groups or [""] * n),
        classes=tuple("abcdefgh"[:k]),
        stores=(),
        notes=(),
    )
