"""The table of findings: images with a possible problem, such as a wrong label or a near duplicate.

The audit writes the table, a person edits its column ``action``, and training reads it.
"""

import codecs
import contextlib
import csv
import io
import os
from collections.abc import Container, Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import UsageError
from pipeline.files import writing
from pipeline.wording import count_of

EXCLUDE = "exclude"
REVIEW = "review"
KEEP = "keep"
ACTIONS = (EXCLUDE, REVIEW, KEEP)
_SEPARATORS = ",;\t"
# Encodings that spreadsheets write: with a byte order mark, or the code pages of Western Windows and old Macs.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CODE_PAGES = ("cp1252", "mac_roman")


class Finding(NamedTuple):
    """One row of the table.

    Parameters
    ----------
    action : {"exclude", "review", "keep"}
        Training leaves out images with ``exclude``; the other two have no effect on it.
    kind : str
        The kind of problem, for example ``"label-error"``; see `pipeline.insight.audit.KINDS`.
    path : str
        As in the feature file; empty if the finding is about a whole class.
    label, split : str
        Of the image.
    suggestion : str
        The label that fits better, or the image that this one duplicates.
    score : float
        Severity from 0 to 1.
    group : str
        Images of one group show the same picture and belong in one split.
    detail : str
        Description of the problem.
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
    """Write findings as CSV in UTF-8; file names that are not UTF-8 keep their bytes.

    Raises
    ------
    PipelineError
        If the file cannot be written.
    """
    path = Path(out)
    with writing(out, advice="choose another --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.writer(file)
            table.writerow(Finding._fields)
            for finding in findings:
                table.writerow((finding._asdict() | {"score": f"{finding.score:.4f}"}).values())


def read_findings(path: str | os.PathLike[str]) -> list[Finding]:
    """Read a table of findings as written by `write_findings` or by a spreadsheet.

    The separator is a comma, a semicolon or a tab, and the case of the headings is ignored. Only the column
    ``path`` is required; without a column ``action`` every row counts as ``exclude``. Rows without a path (about
    a whole class) are skipped. Without a byte order mark the encoding is UTF-8; bytes of another encoding stay in
    the paths as surrogates for `with_known_paths`.

    Raises
    ------
    UsageError
        If the table is missing or cannot be read, or a row has an unknown action.

    Examples
    --------
    >>> read_findings("no.csv")
    Traceback (most recent call last):
        ...
    pipeline.errors.UsageError: cannot read the findings no.csv: No such file or directory; create them with audit.py
    """
    try:
        data = Path(path).read_bytes()
        encoding = next((encoding for mark, encoding in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
        plain = data.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict")
        if "\0" in plain:
            raise UsageError(f"{path} is not plain text; save the table as CSV, UTF-8")
        text = io.StringIO(plain, newline="")
        heading = text.readline()
        text.seek(0)
        table = csv.DictReader(text, delimiter=max(_SEPARATORS, key=heading.count))
        table.fieldnames = columns = [name.strip().lower() for name in table.fieldnames or []]
        rows = [{name: value or "" for name, value in row.items() if name} for row in table]
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read the findings {path}: {reason}; create them with audit.py") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not valid {error.encoding}; save the table as CSV, UTF-8") from error
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


def with_known_paths(findings: Iterable[Finding], known: Container[str]) -> list[Finding]:
    r"""Correct the paths that a spreadsheet saved in another encoding.

    Parameters
    ----------
    findings : iterable of Finding
    known : container of str
        All paths of the images. A path outside them with bytes that are not UTF-8 is decoded as Windows-1252,
        then as Mac Roman, and replaced by the first result that is known.

    Returns
    -------
    list of Finding

    Examples
    --------
    >>> with_known_paths([Finding("exclude", "dark", "b\udce4r.jpg")], {"bär.jpg"})[0].path
    'bär.jpg'
    """
    return [finding._replace(path=_known_path(finding.path, known)) for finding in findings]


def _known_path(path: str, known: Container[str]) -> str:
    if path in known or path.isprintable():
        return path
    for page in _CODE_PAGES:
        with contextlib.suppress(UnicodeDecodeError):
            if (decoded := path.encode("utf-8", "surrogateescape").decode(page)) in known:
                return decoded
    return path


def excluded_paths(findings: Iterable[Finding]) -> set[str]:
    """Return the paths whose action is ``exclude``.

    >>> excluded_paths([Finding("exclude", "dark", "a.jpg"), Finding("review", "dark", "b.jpg")])
    {'a.jpg'}
    """
    return {finding.path for finding in findings if finding.action == EXCLUDE}


def describe_findings(findings: Iterable[Finding]) -> str:
    """Return the number of findings of each kind, such as ``3 dark, 1 label-error``."""
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.kind] = counts.get(finding.kind, 0) + 1
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) or count_of(0, "finding")
