"""`Finding`: something about an image that a person should look at, and the table of them.

The audit writes the table, a person goes through its column ``action``, the training reads it back.
"""

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import PipelineError, UsageError, count_of

EXCLUDE = "exclude"
REVIEW = "review"
KEEP = "keep"
ACTIONS = (EXCLUDE, REVIEW, KEEP)
_SEPARATORS = ",;\t"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class Finding(NamedTuple):
    """One row of the table.

    Parameters
    ----------
    action : {"exclude", "review", "keep"}
        What the training does: it leaves out what is to be excluded, and nothing else.
    kind : str
        For instance ``"label-error"``; see `pipeline.insight.audit.KINDS`.
    path : str
        As in the feature file; empty where a whole class is meant.
    label, split : str
    suggestion : str
        The label that fits better, or the image that this one repeats.
    score : float
        From 0 to 1; larger is worse.
    group : str
        Images of one group show the same picture and belong in one split.
    detail : str
        What was found, in words.
    """

    action: str
    kind: str
    path: str
    label: str = ""
    split: str = ""
    suggestion: str = ""
    score: float = 0.0
    group: str = ""
    detail: str = ""


def write_findings(findings: Iterable[Finding], out: str | os.PathLike[str]) -> None:
    """Write findings as CSV, UTF-8; bytes of a name that are not UTF-8 stay as they are.

    Raises
    ------
    PipelineError
        If the file cannot be written.
    """
    path = Path(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.writer(file)
            table.writerow(Finding._fields)
            for finding in findings:
                table.writerow(finding._replace(score=f"{finding.score:.4f}"))  # type: ignore[arg-type]
    except OSError as error:
        raise PipelineError(f"cannot write {out}: {error.strerror or error}; choose another --out") from error


def read_findings(path: str | os.PathLike[str]) -> list[Finding]:
    """Read the table back, as `write_findings` or a spreadsheet wrote it.

    Columns may be parted by commas, semicolons or tabs; the case of their headings does not matter. Only the
    column ``path`` must be there; without ``action`` every row is to be excluded. Rows without a
    path, about a whole class, are left out.

    Raises
    ------
    UsageError
        If there is no such table, it is in another encoding than UTF-8, or a row has an unknown action.

    Examples
    --------
    >>> read_findings("no.csv")
    Traceback (most recent call last):
        ...
    pipeline.errors.UsageError: cannot read the findings no.csv: No such file or directory; make them with audit.py
    """
    try:
        data = Path(path).read_bytes()
        if data.startswith(_UTF_16) or b"\0" in data:
            raise UsageError(f"{path} is no plain text in UTF-8; save the table as CSV, UTF-8")
        text = io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline="")
        heading = text.readline()
        text.seek(0)
        table = csv.DictReader(text, delimiter=max(_SEPARATORS, key=heading.count))
        table.fieldnames = columns = [name.strip().lower() for name in table.fieldnames or []]
        rows = [{name: value or "" for name, value in row.items() if name} for row in table]
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read the findings {path}: {reason}; make them with audit.py") from error
    if "path" not in columns:
        raise UsageError(f"{path} has the columns {', '.join(columns) or '(none)'}; expected at least path")
    findings = []
    for number, row in enumerate(rows, start=1):
        action = (row["action"].strip().lower() or REVIEW) if "action" in columns else EXCLUDE
        if action not in ACTIONS:
            raise UsageError(
                f"{path}: the action of finding {number} is {action!r}; expected one of {', '.join(ACTIONS)}"
            )
        if row["path"]:
            findings.append(
                Finding(
                    action, row.get("kind", ""), row["path"], group=row.get("group", ""), detail=row.get("detail", "")
                )
            )
    return findings


def excluded_paths(findings: Iterable[Finding]) -> set[str]:
    """Return the paths whose action is ``exclude``.

    >>> excluded_paths([Finding("exclude", "dark", "a.jpg"), Finding("review", "dark", "b.jpg")])
    {'a.jpg'}
    """
    return {finding.path for finding in findings if finding.action == EXCLUDE}


def describe_findings(findings: Iterable[Finding]) -> str:
    """Count findings by kind, in a line: ``3 dark, 1 label-error``."""
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.kind] = counts.get(finding.kind, 0) + 1
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) or count_of(0, "finding")
