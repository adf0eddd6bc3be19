"""`write_report`: one self-contained HTML file that shows what was learned and what is wrong with the data."""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.bundles.bundle import Bundle
from pipeline.errors import UsageError
from pipeline.files import replacing, writing
from pipeline.insight.answers import Answers
from pipeline.insight.command_lines import commands_of, report_command
from pipeline.insight.options import Options
from pipeline.insight.page import Page, Subject
from pipeline.insight.render import render
from pipeline.option_groups import accepts_fields

__all__ = ["Options", "Written", "check_target", "write_report"]


@dataclass(frozen=True)
class Written:
    """What `write_report` wrote.

    Parameters
    ----------
    path : Path
    bytes : int
    plots : list of Path
    findings : dict of str to int
        Number of findings of the audit, by kind.
    notes : list of str
        What is missing in the report, and why.
    seconds : float
    """

    path: Path
    bytes: int
    plots: list[Path]
    findings: dict[str, int]
    notes: list[str]
    seconds: float


@accepts_fields
def write_report(
    bundle: Bundle | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    features: Sequence[str | os.PathLike[str]] = (),
    options: Options = Options(),
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write the report of a bundle as a single HTML file.

    Parameters
    ----------
    bundle : Bundle or path
    out : path
        Ends in ``.html``.
    features : sequence of path
        The feature files that it was trained on; by default at their paths of then.
    options : Options
    progress : callable (done, total) or None
        Called while image files are read.

    Returns
    -------
    Written

    Raises
    ------
    UsageError
        If the bundle was trained on other feature files or predicts several labels per image, or `out` does not end
        in ``.html``.
    StoreError
        If a feature file cannot be found.
    PipelineError
        If the report or the plots cannot be written.

    Examples
    --------
    >>> write_report("artifacts/photos.bundle", "artifacts/report.html").path
    PosixPath('artifacts/report.html')
    """
    started = time.monotonic()
    target = check_target(out)
    name = "" if isinstance(bundle, Bundle) else os.fspath(bundle)
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    if loaded.multi_label:
        raise UsageError(
            f"{name or 'the bundle'} was trained with --multi-label, and the report shows one label per image; read"
            " report.json and README.md in the bundle, and look at single images with predict.py"
        )
    answers = Answers.of(loaded, features)
    with contextlib.ExitStack() as opened:
        for store in answers.stores:
            opened.enter_context(store)
        commands = commands_of(answers.stores, loaded, name or "BUNDLE")
        commands.append(report_command((name or "BUNDLE", out), features, options))
        page = Page.of(Subject(Path(name).name or "bundle", loaded, answers, options), commands, progress)
    html = render(page)
    with writing(out), replacing(target) as file:
        file.write(html)
    with writing(f"the plots into {options.plots}", advice=f"{out} was written, choose another --plots"):
        plots = [path for plot in page.plots.plots for path in plot.save(Path(options.plots))] if options.plots else []
    seconds = round(time.monotonic() - started, 3)
    findings = {group.kind: group.count for group in page.audit.groups}
    return Written(target, len(html), plots, findings, page.notes, seconds)


def check_target(out: str | os.PathLike[str]) -> Path:
    """Return the path of a report; raise UsageError if it does not end in .html."""
    target = Path(out)
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"cannot tell the format of {str(out)!r}; end it in .html")
    return target
