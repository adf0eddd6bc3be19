"""The map: vectors to points in the plane, seeded and kept in the user's cache folder."""

import contextlib
import hashlib
import importlib.metadata
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError, UsageError
from pipeline.features.keras_runtime import quiet_import
from pipeline.files import cache_folder
from pipeline.wording import closest

_AXES = 50  # t-SNE and UMAP get this many principal axes
_THREADED = 2_000  # points from which t-SNE gets all cores


def _pca(axes: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    return axes[:, :2]


def _tsne(axes: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, max(2.0, (len(axes) - 1) / 4))
    model = TSNE(2, perplexity=perplexity, init="pca", max_iter=400, random_state=seed, n_jobs=-1)
    # Threads meet after every step; for few points on a busy machine they wait a hundred times as long as they compute.
    with threadpool_limits(1 if len(axes) < _THREADED else None):
        return np.asarray(model.fit_transform(axes), np.float64)


def _umap(axes: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    with warnings.catch_warnings(action="ignore"):  # of numba, and of graphs in parts, which a map may well have
        try:
            with quiet_import():  # the package imports TensorFlow too, for a part that is not used here
                from umap import UMAP
        except ImportError as error:
            raise PipelineError(
                "the map by UMAP needs the package umap-learn; run: pip install twostage-features[umap], or choose"
                " tsne or pca"
            ) from error
        # With a seed UMAP runs in one thread anyway.
        model = UMAP(n_neighbors=min(15, len(axes) - 1), random_state=seed, n_jobs=1)
        return np.asarray(model.fit_transform(axes), np.float64)


METHODS: dict[str, Callable[[NDArray[np.float64], int], NDArray[np.float64]]] = {
    "tsne": _tsne,
    "pca": _pca,
    "umap": _umap,
}


def project(vectors: NDArray[np.floating], method: str = "tsne", seed: int = 0) -> NDArray[np.float32]:
    """Lay vectors out in the plane, so that similar images lie together.

    Parameters
    ----------
    vectors : ndarray of shape (n, d)
    method : {"tsne", "pca", "umap"}
        UMAP needs the extra ``umap``.
    seed : int

    Returns
    -------
    ndarray of float32, shape (n, 2)
        From 0 to 1 in both directions; taken from the cache where the same was asked before.

    Raises
    ------
    UsageError
        If there is no such method.
    PipelineError
        If its package is not installed.

    Examples
    --------
    >>> project(np.eye(3), "pca").shape
    (3, 2)
    """
    if method not in METHODS:
        raise UsageError(f"map {method!r} is unknown; {closest(method, METHODS)}")
    vectors = np.ascontiguousarray(vectors, np.float32)
    place = cache_folder() / "maps" / f"{_key(vectors, method, seed)}.npy"
    with contextlib.suppress(OSError, ValueError):
        kept = np.load(place, allow_pickle=False)
        if kept.shape == (len(vectors), 2):
            return np.asarray(kept, np.float32)
    points = np.zeros((len(vectors), 2))
    if len(vectors) > 3:
        points = METHODS[method](_principal(vectors, seed), seed)
    low, high = points.min(axis=0, initial=np.inf), points.max(axis=0, initial=-np.inf)
    scaled = np.asarray((points - low) / np.where(high > low, high - low, 1), np.float32)
    with contextlib.suppress(OSError):
        _keep(place, scaled)
    return scaled


def _principal(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    from sklearn.decomposition import PCA

    count = min(_AXES, *vectors.shape)
    axes = PCA(count, svd_solver="randomized", random_state=seed).fit_transform(vectors).astype(np.float64)
    return np.pad(axes, ((0, 0), (0, max(0, 2 - count))))


def _key(vectors: NDArray[np.float32], method: str, seed: int) -> str:
    versions = [importlib.metadata.version(name) for name in ("scikit-learn", "numpy")]
    if method == "umap":
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(importlib.metadata.version("umap-learn"))
    digest = hashlib.sha256(repr([method, seed, vectors.shape, versions]).encode())
    digest.update(vectors.data)
    return digest.hexdigest()


def _keep(place: Path, points: NDArray[np.float32]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.save(file, points)
    temporary.replace(place)
