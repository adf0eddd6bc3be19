"""`Options` of a report. Importing this module is light."""

import os

from pipeline.option_groups import option, options


@options
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

    projection: str = option(default="tsne", flag="--map", help="Method of the map: tsne, pca or umap (if installed).")
    heat_maps: int = option(default=12, min=0, help="Number of mistakes that get a heat map.")
    seed: int = option(default=0, help="Seed of the map and of the audit's folds.")
    plots: str | os.PathLike[str] | None = option(
        default=None, metavar="FOLDER", help="Write every plot as PNG and SVG too."
    )
