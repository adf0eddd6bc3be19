"""Vectors, paths, labels and splits as a Parquet table, for embedding viewers."""

import os
from pathlib import Path

import numpy as np

from pipeline.errors import UsageError
from pipeline.features.store import FeatureStore
from pipeline.files import replacing, writing
from pipeline.insight.pictures import path_of


def export_vectors(features: FeatureStore | str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    r"""Write a feature file as a Parquet table, block by block.

    Columns: ``path`` (relative), ``image`` (full path), ``label``, ``split`` and ``group`` (null if absent), and
    ``vector``, a list of float32. Of several views only the first is written, the image itself. Bytes of a name that
    are not UTF-8 become ``\udcXX``.

    Parameters
    ----------
    features : FeatureStore or path
    out : path
        Ends in ``.parquet``; an existing file is replaced once the table is complete.

    Returns
    -------
    int
        Number of rows written.

    Raises
    ------
    UsageError
        If `out` does not end in ``.parquet``.
    PipelineError
        If the file cannot be written.

    Examples
    --------
    >>> export_vectors("artifacts/photos.h5", "artifacts/photos.parquet")
    24
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = Path(out)
    if target.suffix.lower() != ".parquet":
        raise UsageError(f"cannot tell the format of {str(out)!r}; end it in .parquet")
    store = features if isinstance(features, FeatureStore) else FeatureStore(features)
    text = [("path", pa.string()), ("image", pa.string()), ("label", pa.string()), ("split", pa.string())]
    schema = pa.schema([*text, ("group", pa.string()), ("vector", pa.list_(pa.float32()))])
    names = [store.classes[label] if label >= 0 else "" for label in store.labels.tolist()]
    with writing(out), replacing(target) as file, pq.ParquetWriter(file, schema) as writer:
        for start, vectors in store.blocks():
            own = vectors[:, 0]
            rows = range(start, start + len(own))
            columns = {
                "path": [_plain(store.paths[row]) for row in rows],
                "image": [_plain(path_of(store, row)) for row in rows],
                "label": [_plain(names[row]) or None for row in rows],
                "split": [store.splits[row] or None for row in rows],
                "group": [_plain(store.index.groups[row]) or None for row in rows],
                "vector": pa.ListArray.from_arrays(
                    np.arange(0, own.size + 1, own.shape[1], dtype=np.int32), np.ascontiguousarray(own).ravel()
                ),
            }
            writer.write_table(pa.table(columns, schema=schema))
    return len(store)


def _plain(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
