"""Read the rows of a CSV or Parquet table of images."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import ManifestError

_COLUMNS = ("path", "label", "split", "group")


class Row(NamedTuple):
    """A row of the table; "" for an empty cell."""

    number: int  # for messages
    path: str
    label: str = ""
    split: str = ""
    group: str = ""


def _csv_rows(table: Path) -> Iterator[Row]:
    try:
        with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            columns = _columns(table, header)
            for number, cells in enumerate(reader, start=2):
                if any(cells[len(header) :]):
                    raise ManifestError(
                        f"row {number} of {str(table)!r} has {len(cells)} cells, the header has {len(header)}: "
                        "put values that contain a comma in double quotes"
                    )
                if cells:
                    cells += [""] * (len(header) - len(cells))
                    yield _row(number, {name: cells[column] for name, column in columns.items()})
    except (OSError, csv.Error) as error:
        raise ManifestError(f"{str(table)!r} cannot be read as CSV: {error}") from error


def _parquet_rows(table: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with table.open("rb") as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            header = parquet.schema_arrow.names
            columns = _columns(table, header)
            number = 0
            for batch in parquet.iter_batches(columns=[header[column] for column in columns.values()]):
                values = {name: batch.column(header[column]).to_pylist() for name, column in columns.items()}
                for cells in zip(*values.values(), strict=True):
                    number += 1
                    yield _row(number, dict(zip(values, cells, strict=True)))
    except (OSError, pyarrow.ArrowException) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ManifestError(f"{str(table)!r} cannot be read as Parquet: {first}") from error


READERS = {".csv": _csv_rows, ".parquet": _parquet_rows}


def _columns(table: Path, header: Sequence[str]) -> dict[str, int]:
    """Return the position of each known column; spaces and case of the header are ignored."""
    if any("\0" in name for name in header):
        raise ManifestError(f"{str(table)!r} is not plain text in UTF-8; save the table as CSV, UTF-8")
    names = [name.strip().lower() for name in header]
    twice = [name for name in _COLUMNS if names.count(name) > 1]
    if "path" not in names or twice:
        problem = f"has the column {twice[0]!r} twice" if twice else "has no column 'path'"
        raise ManifestError(
            f"{str(table)!r} {problem}: expected path[,label][,split][,group], found {','.join(header)!r}"
        )
    return {name: names.index(name) for name in _COLUMNS if name in names}


def _row(number: int, cells: Mapping[str, Any]) -> Row:
    texts = {name: _text(value) for name, value in cells.items()}
    for name, text in texts.items():
        if name != "path" and not text.isprintable() and any("\udc80" <= letter <= "\udcff" for letter in text):
            raise ManifestError(f"row {number} has the {name} {text!r}, which is not UTF-8: save the table as UTF-8")
    # File names may begin or end with a space; spaces around other values are removed.
    return Row(number, **{name: text if name == "path" else text.strip() for name, text in texts.items()})


def _text(value: object) -> str:
    if value is None or value != value:  # NaN, which pandas writes for missing values
        return ""
    if (
        isinstance(value, float) and value.is_integer()
    ):  # pandas writes integers as floats in a column with missing values
        return str(int(value))
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)
