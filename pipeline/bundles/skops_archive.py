"""skops archives whose bytes depend only on their content."""

import io
import itertools
import json
import zipfile
from typing import Any

_SCHEMA = "schema.json"


def normalised(data: bytes) -> bytes:
    """Remove from a skops archive what differs in each run: times, and memory addresses used as names.

    Parameters
    ----------
    data : bytes
        From ``skops.io.dumps``.

    Returns
    -------
    bytes
        The same objects; equal objects give equal bytes.

    Examples
    --------
    >>> import skops.io
    >>> normalised(skops.io.dumps([1.5, "two"])) == normalised(skops.io.dumps([1.5, "two"]))
    True
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(files.pop(_SCHEMA))
    numbers = itertools.count()
    known: dict[int, int] = {}
    names: dict[str, str] = {}

    def renumber(node: Any) -> None:
        if isinstance(node, list):
            for each in node:
                renumber(each)
        if isinstance(node, dict):
            if "__id__" in node:
                # Whether equal plain values are one object varies and does not matter.
                fresh = next(numbers)
                node["__id__"] = fresh if node.get("is_json") else known.setdefault(node["__id__"], fresh)
            if isinstance(node.get("file"), str) and node["file"] in files:
                old = node["file"]
                node["file"] = names.setdefault(old, f"{len(names)}.{old.rpartition('.')[2]}")
            for key, value in node.items():
                if key not in ("__id__", "file"):
                    renumber(value)

    renumber(schema)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for old, new in names.items():
            archive.writestr(zipfile.ZipInfo(new), files[old])
        archive.writestr(zipfile.ZipInfo(_SCHEMA), json.dumps(schema, indent=1))
    return buffer.getvalue()
