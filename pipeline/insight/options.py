"""`Options`: what goes into a report."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """What goes into a report.

    Parameters
    ----------
    projection : {"tsne", "pca", "umap"}
        Method of the map.
    heat_maps : int
        Number of most confident mistakes that get one.
    seed : int
        Of the map, of the sample of images on it if there are more than 10,000, and of the audit's folds.
    plots : path or None
        Folder that gets every plot as PNG and SVG.
    """

    projection: str = "tsne"
    heat_maps: int = 12
    seed: int = 0
    plots: str | os.PathLike[str] | None = None
