"""The map: vectors projected to two dimensions, with a seed, cached in the user's cache folder."""

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

_AXES = 50  # principal components that t-SNE and UMAP get
_THREADED = 2_000  # points from which t-SNE uses all cores


def _pca(axes: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    return axes[:, :2]


def _tsne(axes: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, max(2.0, (len(axes) - 1) / 4))
    model = TSNE(2, perplexity=perplexity, init="pca", max_iter=400, random_state=seed, n_jobs=-1)
    # Threads synchronise after every step, which on a busy machine takes far longer than a step with few points.
    with threadpool_limits(1 if len(axes) < _THREADED else None):
        return np.asarray(model.fit_transform(axes), np.float64)


def _umap(axes: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    with warnings.catch_warnings(action="ignore"):  # about numba, and about graphs that are not connected
        try:
            with quiet_import():  # umap imports TensorFlow for a part that is not used here
                from umap import UMAP
        except ImportError as error:
            raise PipelineError(
                "a UMAP map needs the package umap-learn; run: pip install twostage-features[umap], or choose tsne"
                " or pca"
            ) from error
        # UMAP ignores n_jobs if it gets a seed, and warns.
        model = UMAP(n_neighbors=min(15, len(axes) - 1), random_state=seed, n_jobs=1)
        return np.asarray(model.fit_transform(axes), np.float64)


METHODS: dict[str, Callable[[NDArray[np.float64], int], NDArray[np.float64]]] = {
    "tsne": _tsne,
    "pca": _pca,
    "umap": _umap,
}


def project(vectors: NDArray[np.floating], method: str = "tsne", seed: int = 0) -> NDArray[np.float32]:
    """Project vectors to two dimensions, with similar vectors close together.

    Parameters
    ----------
    vectors : ndarray of shape (n, d)
    method : {"tsne", "pca", "umap"}
        UMAP needs the extra ``umap``.
    seed : int

    Returns
    -------
    ndarray of float32, shape (n, 2)
        Scaled to 0 to 1 in both dimensions; from the cache if it was computed before.

    Raises
    ------
    UsageError
        If the method is unknown.
    PipelineError
        If the package of the method is not installed.

    Examples
    --------
    >>> project(np.eye(3), "pca").shape
    (3, 2)
    """
    if method not in METHODS:
        raise UsageError(f"map {method!r} is unknown; {closest(method, METHODS)}")
    vectors = np.ascontiguousarray(vectors, np.float32)
    path = cache_folder() / "maps" / f"{_key(vectors, method, seed)}.npy"
    with contextlib.suppress(OSError, ValueError):
        cached = np.load(path, allow_pickle=False)
        if cached.shape == (len(vectors), 2):
            return np.asarray(cached, np.float32)
    points = np.zeros((len(vectors), 2))
    if len(vectors) > 3:
        points = METHODS[method](_principal(vectors, seed), seed)
    low, high = points.min(axis=0, initial=np.inf), points.max(axis=0, initial=-np.inf)
    scaled = np.asarray((points - low) / np.where(high > low, high - low, 1), np.float32)
    with contextlib.suppress(OSError):
        _save(path, scaled)
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


def _save(path: Path, points: NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.save(file, points)
    temporary.replace(path)
