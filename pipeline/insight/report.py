"""The report: one HTML file, complete in itself, that shows what was learned and what is wrong with the data."""

import base64
import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bundles.bundle import Bundle
from pipeline.errors import ImageError, PipelineError, UsageError, WeightsError
from pipeline.features.engines import Speed
from pipeline.files import replacing
from pipeline.images.decode import open_rgb
from pipeline.insight.answers import Answers
from pipeline.insight.audit import KINDS, Audit, audit
from pipeline.insight.commands import extract_command, report_command, train_command
from pipeline.insight.explain import CAM, Explainer, overlay
from pipeline.insight.pictures import data_address, look_at, pack, photograph, thumbnail, thumbnails
from pipeline.insight.plots import Plot, Scored, candidate_name, make_plots
from pipeline.insight.projection import project
from pipeline.trust.safeguards import format_trust
from pipeline.wording import count_of, printable, shorten

TEMPLATES = Path(__file__).parent / "templates"
MAX_POINTS = 10_000
_SHOWN = 24  # mistakes, unsure answers, findings of a kind
_NAME = 40  # columns of a class name on the page, whose full length is in its title
_LARGE = 144  # pixels of a photograph beside its facts
_SMALL = ((2_000, 112), (4_000, 88), (MAX_POINTS, 64))  # points on the map -> pixels of their thumbnails


@dataclass(frozen=True)
class Options:
    """What goes into a report beside the training's own numbers.

    Parameters
    ----------
    projection : {"tsne", "pca", "umap"}
        How the map is made.
    heat_maps : int
        How many of the most confident mistakes get one.
    seed : int
        Of the map, of the images on it where there are more than 10,000, and of the audit's folds.
    plots : path or None
        A folder that gets every plot as PNG and SVG.
    """

    projection: str = "tsne"
    heat_maps: int = 12
    seed: int = 0
    plots: str | os.PathLike[str] | None = None


@dataclass(frozen=True)
class Written:
    """What `write_report` wrote.

    Parameters
    ----------
    path : Path
    bytes : int
    plots : list of Path
    findings : dict of str to int
        Of the audit, by kind.
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
        The feature files that it was trained on; none for the places where they lay then.
    options : Options
    progress : callable (done, total) or None
        Called while image files are read.

    Returns
    -------
    Written

    Raises
    ------
    UsageError
        If the feature files are not those of the bundle, the bundle names several labels per image, or `out` is
        no HTML file.
    StoreError
        If they cannot be found.

    Examples
    --------
    >>> write_report("artifacts/photos.bundle", "artifacts/report.html").notes  # doctest: +SKIP
    []
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
        page = _Page(loaded, answers, options, progress)
        tuned = "tuning" in loaded.provenance  # finetune.py makes the feature file too
        made = [] if tuned else [extract_command(store) for store in answers.stores]
        made += [train_command(loaded, name or "BUNDLE", [str(store.path) for store in answers.stores])]
        html = page.html(
            name, [*made, report_command((name or "BUNDLE", out), features, vars(options), vars(Options()))]
        )
    try:
        with replacing(target) as file:
            file.write(html)
    except OSError as error:
        raise PipelineError(
            f"cannot write {out}: {error.strerror or error}; make space or choose another --out"
        ) from error
    try:
        plots = [path for plot in page.plots for path in plot.save(Path(options.plots))] if options.plots else []
    except OSError as error:
        raise PipelineError(
            f"cannot write the plots into {options.plots}: {error.strerror or error}; {out} was written, choose another"
            " --plots for these"
        ) from error
    seconds = round(time.monotonic() - started, 3)
    return Written(target, len(html), plots, page.audit.counts(), page.notes, seconds)


def check_target(out: str | os.PathLike[str]) -> Path:
    """Return the path of a report; one that does not end in .html is a UsageError."""
    target = Path(out)
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"cannot tell the format of {str(out)!r}; end it in .html")
    return target


@dataclass
class _Page:
    """The parts of the page, made one after the other."""

    bundle: Bundle
    answers: Answers
    options: Options
    progress: Callable[[int, int], None] | None
    notes: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    audit: Audit = field(default_factory=lambda: Audit([], 0, [], 0.0))

    def html(self, name: str, commands: Sequence[str]) -> bytes:
        answers, report = self.answers, dict(self.bundle.report)
        store = answers.store
        predicted = answers.proba.argmax(axis=1)
        sure = answers.proba.max(axis=1)
        split = report["scored_on"] if report["scored_on"] in set(answers.splits.tolist()) else ""
        judged = np.flatnonzero(answers.splits == split) if split else np.empty(0, np.int64)
        right = predicted == answers.y
        mistakes = judged[~right[judged]]
        mistakes = mistakes[np.argsort(-sure[mistakes], kind="stable")][:_SHOWN]
        unsure = judged[right[judged]]
        unsure = unsure[np.argsort(sure[unsure], kind="stable")][:_SHOWN]

        points = self._on_the_map(judged)
        side = next(size for most, size in _SMALL if len(points) <= most)
        pictures = look_at(store, side, answers.rows[points].tolist(), self.progress)
        self.audit = audit(store, pictures=pictures, seed=self.options.seed)
        self.notes += self.audit.notes
        findings = self._findings()
        shown = [int(answers.rows[each]) for each in (*mistakes, *unsure)]
        shown += [row for group in findings for item in group["items"] for row in item["rows"]]
        large = pack(thumbnails(store, sorted(set(shown)), _LARGE), _LARGE, 72)
        small = pack(pictures.thumbnails, side, 50)
        self.plots = make_plots(report, Scored(answers.y[judged], answers.proba[judged], self.bundle.classes, split))
        heat = self._heat_maps(mistakes, predicted)
        metrics = report["metrics"][report["scored_on"]]

        def card(each: int) -> dict[str, Any]:
            row = int(answers.rows[each])
            order = np.argsort(-answers.proba[each], kind="stable")
            return {
                "path": show(store.paths[row]),
                "row": row,
                "true": self.bundle.classes[answers.y[each]],
                "predicted": self.bundle.classes[predicted[each]],
                "probability": float(sure[each]),
                "second": self.bundle.classes[order[1]] if len(order) > 1 else "",
                "second_probability": float(answers.proba[each][order[1]]) if len(order) > 1 else 0.0,
                "own": float(answers.proba[each][answers.y[each]]),
                "heat": heat.get(each, ""),
            }

        layout = project(answers.vectors[points], self.options.projection, self.options.seed)
        return self._render(
            title=Path(name).name or "bundle",
            verdict=verdict(metrics, report["scored_on"]),
            report=report,
            metrics=metrics,
            trust=format_trust(metrics, report.get("trust") or {}),
            split=split,
            candidates=[{**row, "name": candidate_name(row, report["head"])} for row in report.get("candidates", [])],
            mistakes=[card(each) for each in mistakes.tolist()],
            unsure=[card(each) for each in unsure.tolist()],
            wrong=int((~right[judged]).sum()),
            judged=len(judged),
            plots=[
                {"title": each.title, "caption": each.caption, "name": each.name, "src": _svg(each)}
                for each in self.plots
            ],
            findings=findings,
            audited=self.audit,
            kinds=KINDS,
            large=large,
            small=small,
            on_map=len(points),
            images=len(answers.y),
            projection=self.options.projection,
            data={
                "classes": [short(each) for each in self.bundle.classes],
                "names": [show(each) for each in self.bundle.classes],
                "splits": ["train", "validation", "test"],
                "judged": split,
                "side": side,
                "x": np.round(layout[:, 0] * 10_000).astype(int).tolist(),
                "y": np.round(layout[:, 1] * 10_000).astype(int).tolist(),
                "label": answers.y[points].tolist(),
                "predicted": predicted[points].tolist(),
                "probability": np.round(sure[points] * 1000).astype(int).tolist(),
                "split": [("train", "validation", "test").index(each) for each in answers.splits[points].tolist()],
                "cell": [small.places.get(row, -1) for row in answers.rows[points].tolist()],
                "path": [show(store.paths[row]) for row in answers.rows[points].tolist()],
            },
            skipped=[(show(path), show(reason)) for path, reason in store.skipped.items()],
            heat_method="" if not heat else self._heat_method,
            heated=len(mistakes[: self.options.heat_maps]),
            store=store,
            recipes=[show(str(recipe)) for recipe in self.bundle.recipes],
            fingerprints=[recipe.fingerprint for recipe in self.bundle.recipes],
            versions=self.bundle.provenance.get("versions", {}),
            made_with=store.index.created_with,
            commands=commands,
            notes=self.notes,
            now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )

    def _on_the_map(self, judged: NDArray[np.int64]) -> NDArray[np.int64]:
        """Choose the images of the map: those that judge first, the rest by lot."""
        count = len(self.answers.y)
        if count <= MAX_POINTS:
            return np.arange(count)
        rest = np.random.default_rng(self.options.seed).permutation(np.setdiff1d(np.arange(count), judged))
        return np.sort(np.concatenate([judged, rest])[:MAX_POINTS])

    def _findings(self) -> list[dict[str, Any]]:
        """Group the findings by kind, the first ones of each with their photographs."""
        positions = self.answers.store.positions
        groups = []
        for kind, count in self.audit.counts().items():
            mine = [each for each in self.audit.findings if each.kind == kind and each.action != "keep"]
            items = [
                {
                    **each._asdict(),
                    "rows": [positions[path] for path in (each.path, each.suggestion) if path in positions],
                    "shown": show(each.path),
                    "detail": show(each.detail),
                    "fits": "" if each.suggestion in positions else show(each.suggestion),
                }
                for each in mine[:_SHOWN]
            ]
            rest = [(show(each.path or each.label), show(each.detail)) for each in mine[_SHOWN:]]
            groups.append({"kind": kind, "meaning": KINDS[kind], "count": count, "items": items, "rest": rest})
        return groups

    def _heat_maps(self, mistakes: NDArray[np.int64], predicted: NDArray[np.int64]) -> dict[int, str]:
        chosen = mistakes[: self.options.heat_maps].tolist()
        if not chosen:
            return {}
        store = self.answers.store
        found = {}
        try:
            explainer = Explainer(self.bundle, Speed())
            self._heat_method = "class activation map" if explainer.method == CAM else "occlusion"
            for each in chosen:
                try:
                    picture = thumbnail(open_rgb(photograph(store, int(self.answers.rows[each]))), 2 * _LARGE)
                except ImageError:
                    continue
                heat = explainer.map(picture, int(predicted[each]))
                found[each] = data_address(thumbnail(overlay(picture, heat, self.bundle.recipes[0].resize), _LARGE), 72)
        except (WeightsError, PipelineError) as error:
            self.notes.append(f"no heat maps: {error}")
        return found

    def _render(self, **parts: Any) -> bytes:
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters["show"] = show
        environment.filters["short"] = short
        environment.filters["count_of"] = count_of
        script = (TEMPLATES / "report.js").read_text("utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        style = (TEMPLATES / "report.css").read_text("utf-8")
        page = environment.get_template("report.html").render(script=script, digest=digest, style=style, **parts)
        return page.encode("utf-8", "backslashreplace")


def show(text: Any) -> str:
    r"""Make a name fit to be shown: what is no printable character becomes its escape.

    >>> print(show("a\udc80\n.jpg"))
    a\udc80\n.jpg
    """
    return printable(str(text))


def short(text: Any, columns: int = _NAME) -> str:
    """Keep the beginning of a long name.

    >>> short("a name as long as this", 12)
    'a name as l…'
    """
    return shorten(show(text), columns)


def verdict(metrics: Mapping[str, Any], split: str) -> str:
    """Say in words what a head is worth.

    Parameters
    ----------
    metrics : mapping
        From `pipeline.metrics.evaluation.evaluate`.
    split : str
        What it was scored on.

    Returns
    -------
    str

    Examples
    --------
    >>> from pipeline.metrics.evaluation import evaluate
    >>> p = np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.9, 0.1]])
    >>> text = verdict(evaluate(np.array([0, 1, 0, 0]), p, ["cat", "dog"], majority=0), "test")
    >>> print(text[:105])
    Right for 3 of 4 test images: accuracy 75.0 %, with 95 % certainty between 30.1 % and 95.4 %. Always answ
    """
    low, high = metrics["accuracy_interval"]
    confusion = np.array(metrics["confusion"])
    right = int(np.trace(confusion))
    where = (
        "training images, each judged by a head that had not seen it"
        if split == "cross-validation"
        else f"{split} images"
    )
    often = metrics["majority"]
    text = (
        f"Right for {right:,} of {metrics['n']:,} {where}: accuracy {_percent(metrics['accuracy'])}, with 95 %"
        f" certainty between {_percent(low)} and {_percent(high)}. Always answering {short(often['class'])} would be"
        f" right for {_percent(often['accuracy'])}."
    )
    np.fill_diagonal(confusion, 0)
    if not confusion.any():
        return f"{text} No image was taken for another class."
    true, taken = np.unravel_index(int(confusion.argmax()), confusion.shape)
    names = metrics["classes"]
    total = int(np.array(metrics["confusion"])[true].sum())
    return (
        f"{text} The most frequent mistake: {short(names[true])} taken for {short(names[taken])}"
        f" ({int(confusion[true, taken]):,} of {total:,})."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _svg(plot: Plot) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(plot.svg().encode()).decode()
