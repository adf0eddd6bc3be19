"""Batch prediction: one row per image, in input order, from images or cached vectors."""

import contextlib
import csv
import io
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Bundle
from pipeline.errors import ImageError, UsageError
from pipeline.features.options import Speed
from pipeline.features.recipe import Recipe
from pipeline.features.store import FeatureStore
from pipeline.files import replacing, writing
from pipeline.images.manifest import Manifest
from pipeline.images.texts import Texts
from pipeline.option_groups import accepts_fields
from pipeline.parallel import Progress
from pipeline.trust.safeguards import ABSTAIN, NOVEL, OK

STDOUT = "-"
_NUMBERS = ("probability", "novelty")  # columns
ANSWERED = (OK, ABSTAIN, NOVEL)  # any other status is the reason why an image could not be read


class Prediction(NamedTuple):
    """The prediction for one image.

    Parameters
    ----------
    path : str
        As given.
    status : str
        ``"ok"``; ``"abstain"`` or ``"novel"`` if the answer should not be trusted; or the reason why there is
        no answer.
    labels : tuple of str
        The most probable classes, best first; empty if the image could not be read.
    probabilities : tuple of float
        Of `labels`, from 0 to 1.
    novelty : float or None
        Above 1 if the image is unlike anything in training; None if the bundle has no novelty score.
    """

    path: str
    status: str
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    novelty: float | None = None


@accepts_fields
def predict(
    bundle: Bundle,
    images: Iterable[str | os.PathLike[str]] | FeatureStore | Sequence[FeatureStore],
    *,
    top_k: int = 1,
    speed: Speed = Speed(),
    progress: Progress | None = None,
) -> Iterator[Prediction]:
    """Predict the class of each image, in order; memory does not grow with the number of images.

    Parameters
    ----------
    bundle : Bundle
    images : iterable of paths, or FeatureStore, or a sequence of them
        Images are decoded and encoded as in an extraction. Feature files, one for each of the bundle's recipes, are
        joined by image.
    top_k : int
        Number of classes to return for each image.
    speed : Speed
        engine, batch_size, workers; may be given as keywords.
    progress : callable (done, total) or None
        Called after each batch; `total` is 0 if unknown.

    Yields
    ------
    Prediction
        One for each image; if it cannot be read, `status` is the reason.

    Raises
    ------
    UsageError
        If `top_k` is out of range, or the feature files do not match the bundle's recipes.
    WeightsError
        If the weights are missing or have changed since the training.

    Examples
    --------
    >>> bundle = Bundle.load("artifacts/photos.bundle")
    >>> [row.labels[0] for row in predict(bundle, ["new.jpg"])]
    ['cat']
    """
    _check_top_k(bundle, top_k)
    given: Any = [images] if isinstance(images, FeatureStore) else images
    if isinstance(given, (list, tuple)) and given and all(isinstance(each, FeatureStore) for each in given):
        return _from_stores(bundle, _one_for_each_recipe(bundle, given), top_k, progress)
    return _from_files(bundle, given, top_k, speed, progress)


class Predictor:
    """A bundle with its networks loaded and its decoding processes running; a context manager.

    `predict` opens one for a single stream of images. A server keeps one open: threads may share it.

    Parameters
    ----------
    bundle : Bundle
    speed : Speed

    Raises
    ------
    WeightsError
        On entering, if the weights are missing or have changed since the training.

    Examples
    --------
    >>> upload = ("new.jpg", Path("new.jpg").read_bytes())
    >>> with Predictor(Bundle.load("artifacts/photos.bundle")) as predictor:
    ...     for batch in predictor.batches([upload, "absent.jpg"]):
    ...         print([(row.path, row.status.split(":")[0], row.labels) for row in batch])
    [('new.jpg', 'ok', ('cat',)), ('absent.jpg', 'missing', ())]
    """

    def __init__(self, bundle: Bundle, speed: Speed = Speed()) -> None:
        self.bundle = bundle
        self._images = bundle.image_encoder(speed)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._images).load()
            self._close = stack.pop_all().close  # networks that cannot be loaded leave no processes behind
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def batches(
        self, images: Iterable[str | os.PathLike[str] | tuple[str, bytes]], top_k: int = 1
    ) -> Iterator[list[Prediction]]:
        """Yield the predictions for a stream of images, in order, batch by batch.

        Parameters
        ----------
        images : iterable of path, or (name, bytes) for the content of an image file
        top_k : int
            Number of classes to return for each image.

        Raises
        ------
        UsageError
            If `top_k` is out of range.
        """
        _check_top_k(self.bundle, top_k)
        named = (image if isinstance(image, tuple) else (os.fspath(image), os.fspath(image)) for image in images)
        decoded = self._images.decoded(named, lambda item: self._images.try_to_decode(item[1]))
        for batch in self._images.encoded(decoded):
            good = [(name, result) for (name, _), result in batch if not isinstance(result, ImageError)]
            paths, vectors = [name for name, _ in good], [each for _, each in good]
            rows = _ranked(self.bundle, paths, np.stack(vectors), top_k) if good else iter(())
            yield [
                Prediction(name, str(result)) if isinstance(result, ImageError) else next(rows)
                for (name, _), result in batch
            ]


def list_images(inputs: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Yield the path of each image in files, folders, manifests and ``-`` (standard input).

    A folder means all images in it at any depth; a ``.csv`` or ``.parquet`` file its rows; standard input one path
    per line.

    Raises
    ------
    ManifestError
        If a folder has no images or a manifest cannot be read.
    UsageError
        If a path is empty.
    """
    for each in inputs:
        text = os.fspath(each)
        if not text:
            raise UsageError("a path is empty; give files or folders (. is the current folder)")
        if text == STDOUT:
            yield from (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer if line.strip())
        elif Path(text).is_dir():
            yield from _joined(text, Manifest.from_folder(text, labelled=False))
        elif text.lower().endswith((".csv", ".parquet")):
            yield from _joined(os.path.dirname(text), Manifest.from_table(text))  # noqa: PTH120 - keeps "" for here
        else:
            yield text


def _joined(folder: str, manifest: Manifest) -> Iterator[str]:
    return (os.path.join(folder, path) for path in manifest.paths)  # noqa: PTH118 - pathlib drops a leading ./


def _one_for_each_recipe(bundle: Bundle, stores: Sequence[FeatureStore]) -> list[FeatureStore]:
    """Return the stores in the order of the bundle's recipes; raise UsageError if they do not match."""
    if len({os.path.realpath(store.path) for store in stores}) < len(stores):
        raise UsageError("a feature file was given twice; give it once")
    left, ordered = list(stores), []
    for recipe in bundle.inputs:
        fitting = (store for store in left if recipe.same_as(_as_read(bundle, store)))
        if (store := next(fitting, None)) is None:
            raise UsageError(
                f"{', '.join(str(each.path) for each in stores)}: none was made with {recipe}, which the bundle"
                " expects; predict from the images instead"
            )
        left.remove(store)
        ordered.append(store)
    if left:
        raise UsageError(
            f"{left[0].path} was made with {left[0].recipe}, the bundle expects {bundle.describe()}; leave it out"
        )
    return ordered


def _as_read(bundle: Bundle, store: FeatureStore) -> Recipe:
    return store.recipe if bundle.average_views else store.recipe.with_one_view()


def _from_stores(
    bundle: Bundle, stores: Sequence[FeatureStore], top_k: int, progress: Progress | None
) -> Iterator[Prediction]:
    first, *others = stores
    for start, block in first.blocks():
        rows = np.arange(start, start + len(block))
        paths = first.paths[start : start + len(block)]
        reasons = [""] * len(block)
        blocks = [block]
        for store in others:
            matches = store.positions.find(Texts.of(paths))
            for number, match in enumerate(matches.tolist()):
                if match < 0:
                    reasons[number] = f"missing: no vector in {store.path}"
                elif (store.index.digests[match] != first.index.digests[rows[number]]).any():
                    reasons[number] = f"changed: other content in {store.path}"
            blocks.append(store.take(np.maximum(matches, 0)))
        views = slice(None) if bundle.average_views else slice(1)
        vectors = np.concatenate([each[:, views] for each in blocks], axis=2)
        for reason, row in zip(reasons, _ranked(bundle, paths, vectors, top_k), strict=True):
            yield Prediction(row.path, reason) if reason else row
        if progress:
            progress(start + len(block), len(first))


def _from_files(
    bundle: Bundle,
    images: Iterable[str | os.PathLike[str]],
    top_k: int,
    speed: Speed,
    progress: Progress | None,
) -> Iterator[Prediction]:
    total = len(images) if isinstance(images, Sequence) else 0
    done = 0
    with Predictor(bundle, speed) as predictor:
        for batch in predictor.batches(images, top_k):
            yield from batch
            done += len(batch)
            if progress:
                progress(done, total)


def _check_top_k(bundle: Bundle, top_k: int) -> None:
    if not 1 <= top_k <= len(bundle.classes):
        raise UsageError(f"top-k {top_k} is out of range; the bundle has {len(bundle.classes)} classes")
    if bundle.multi_label and top_k > 1:
        raise UsageError(f"top-k {top_k} does not apply where all labels above a threshold are named; leave it out")


def _ranked(bundle: Bundle, paths: Sequence[str], vectors: NDArray[np.float32], top_k: int) -> Iterator[Prediction]:
    probabilities = bundle.probabilities(vectors)
    statuses, novelty = bundle.safeguards.judge(vectors, probabilities)
    for path, row, status, score in zip(paths, probabilities, statuses, novelty, strict=True):
        if bundle.multi_label:
            label, sure = bundle.multi_label.answer(row, bundle.classes)
            yield Prediction(path, status, (label,), (sure,), score)
            continue
        best = np.argsort(-row, kind="stable")[:top_k]
        labels, numbers = tuple(bundle.classes[i] for i in best), tuple(float(row[i]) for i in best)
        yield Prediction(path, status, labels, numbers, score)


class _Writer(Protocol):
    def write(self, row: Prediction) -> None: ...

    def close(self) -> None: ...


def columns(top_k: int, novelty: bool = False) -> list[str]:
    """Return the column names of a table of predictions.

    >>> columns(2, novelty=True)
    ['path', 'status', 'label', 'probability', 'label_2', 'probability_2', 'novelty']
    """
    more = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "probability")]
    return ["path", "status", "label", "probability", *more, *["novelty"] * novelty]


def _cells(row: Prediction, names: Sequence[str]) -> list[Any]:
    ranked = [cell for pair in zip(row.labels, row.probabilities, strict=True) for cell in pair]
    score = [row.novelty] if names[-1] == "novelty" else []
    return [row.path, row.status, *ranked, *[None] * (len(names) - 2 - len(ranked) - len(score)), *score]


def _printable(text: Any) -> Any:
    # A name that is not UTF-8 would make the whole table unreadable; its invalid bytes become \udc80 and so on.
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else text


class _CsvWriter:
    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        self._text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        self._table = csv.writer(self._text)
        self._names = names
        self._table.writerow(names)

    def write(self, row: Prediction) -> None:
        cells = _cells(row, self._names)
        self._table.writerow([f"{cell:.6f}" if isinstance(cell, float) else _printable(cell) for cell in cells])

    def close(self) -> None:
        self._text.detach()


class _JsonLinesWriter:
    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        self._file = file
        self._names = names

    def write(self, row: Prediction) -> None:
        cells = dict(zip(self._names, _cells(row, self._names), strict=True))
        self._file.write(json.dumps(cells).encode() + b"\n")

    def close(self) -> None:
        self._file.flush()


class _ParquetWriter:
    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        import pyarrow
        import pyarrow.parquet

        self._names = names
        self._arrow = pyarrow
        self._schema = pyarrow.schema(
            [(name, pyarrow.float64() if name.startswith(_NUMBERS) else pyarrow.string()) for name in names]
        )
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)
        self._rows: list[list[Any]] = []

    def write(self, row: Prediction) -> None:
        self._rows.append([_printable(cell) for cell in _cells(row, self._names)])
        if len(self._rows) == 10_000:
            self._flush()

    def _flush(self) -> None:
        rows = [dict(zip(self._schema.names, row, strict=True)) for row in self._rows]
        self._writer.write_table(self._arrow.Table.from_pylist(rows, self._schema))
        self._rows = []

    def close(self) -> None:
        self._flush()
        self._writer.close()


WRITERS: dict[str, Callable[[BinaryIO, Sequence[str]], _Writer]] = {
    ".csv": _CsvWriter,
    ".jsonl": _JsonLinesWriter,
    ".parquet": _ParquetWriter,
}


def write_predictions(
    rows: Iterable[Prediction], out: str | os.PathLike[str], top_k: int = 1, *, novelty: bool = False
) -> Counter[str]:
    """Write predictions as CSV, JSON lines or Parquet, by the ending of `out`; completely or not at all.

    Parameters
    ----------
    rows : iterable of Prediction
    out : path
        ``.csv``, ``.jsonl`` or ``.parquet``; ``-`` for CSV on standard output.
    top_k : int
        As for `predict`.
    novelty : bool
        Whether to add a column with the novelty score.

    Returns
    -------
    Counter of str
        Number of rows by status: ``"ok"``, or the first word of the reason.

    Raises
    ------
    UsageError
        If `out` has another ending.
    PipelineError
        If it cannot be written.
    """
    counts: Counter[str] = Counter()
    target = Path(out)
    to_stdout = os.fspath(out) == STDOUT
    suffix = ".csv" if to_stdout else target.suffix.lower()
    if suffix not in WRITERS:
        raise UsageError(f"cannot tell the format of {str(out)!r}; end it in {', '.join(WRITERS)}, or give - for CSV")
    rows = iter(rows)
    first = list(itertools.islice(rows, 1))  # an error in the first row must not leave an empty table
    with writing(out), contextlib.nullcontext(sys.stdout.buffer) if to_stdout else replacing(target) as file:
        writer = WRITERS[suffix](file, columns(top_k, novelty))
        for row in itertools.chain(first, rows):
            writer.write(row)
            counts[row.status.split(":")[0]] += 1
        writer.close()
    return counts
