"""The main workflow: extract, train_head, predict, and finetune."""

import functools
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

from pipeline.cli.command import (
    command,
    group_options,
    max_bad_option,
    print_json,
    print_notes,
    print_stderr,
    progress_bar,
    too_many_bad,
)
from pipeline.errors import UsageError
from pipeline.features.options import RecipeOptions, Speed, Storage
from pipeline.finetuning.options import Tuning
from pipeline.training.options import Training
from pipeline.trust.options import Trust
from pipeline.wording import count_of


@command
@click.argument("images")
@click.option("--out", required=True, metavar="FEATURES", help="The feature file, for instance artifacts/photos.h5.")
@click.option("--backbone", default="mobilenetv2", help="A Keras Applications name, a .keras model or a bundle.")
@group_options(recipe=RecipeOptions, storage=Storage, speed=Speed)
@max_bad_option
def extract(
    images: str,
    out: str,
    backbone: str,
    recipe: RecipeOptions,
    storage: Storage,
    speed: Speed,
    max_bad: float,
    as_json: bool,
    quiet: bool,
) -> int:
    """Stage 1: send every image through a convnet once and cache the vectors.

    IMAGES is a folder of class folders, a folder with train / validation / test of class folders, a
    folder of images, or a CSV or Parquet table with columns path[,label][,split][,group]. If run again,
    it processes only new and changed images.
    """
    from pipeline.features import extraction

    with progress_bar(" images", quiet) as progress:
        store = extraction.extract(
            images, out, backbone, recipe=recipe, storage=storage, speed=speed, progress=progress
        )
    with store:
        summary = store.summary
        if as_json:
            print_json(
                {"features": str(store.path), "recipe": str(store.recipe), "shape": store.shape, **vars(summary)}
            )
        else:
            _print_extraction(store, quiet)
    return too_many_bad(summary.skipped, summary.images, max_bad)


def _print_extraction(store: Any, quiet: bool) -> None:
    summary = store.summary
    click.echo(
        f"{count_of(summary.images, 'image')}: {summary.stored:,} stored ({summary.extracted:,} extracted,"
        f" {summary.reused:,} reused), {summary.skipped:,} skipped, {summary.dropped:,} dropped"
    )
    rate = f", {summary.images_per_second:,.3g} images/s" if summary.extracted else ""
    shape = " x ".join(map(str, store.shape))
    click.echo(f"{store.path}: {shape} {store.dtype} in {summary.seconds:.1f} s{rate}")
    if quiet:
        return
    print_stderr(f"recipe: {store.recipe}")
    for path, reason in list(store.skipped.items())[:5]:
        print_stderr(f"skipped {path!r}: {reason}")
    if summary.skipped > 5:
        print_stderr(f"skipped {summary.skipped - 5:,} more; the file lists all of them under skipped/")
    for kind, count in summary.left_out.items():
        print_stderr(f"left out: {count:,} x {kind}")


@command
@click.argument("features", nargs=-1, required=True)
@click.option("--out", required=True, metavar="BUNDLE", help="The bundle, for instance artifacts/photos.bundle.")
@click.option("--head", default="logreg", help="A head named above, or the import path of a scikit-learn classifier.")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of the head; repeatable.")
@group_options(training=Training, trust=Trust)
@click.option("--multi-label", metavar="SEPARATOR", help="Several labels per image, such as cat;dog, joined by this.")
@click.option("--report", "page", metavar="FILE.html", help="Write the report too; see report.")
def train_head(
    features: tuple[str, ...],
    out: str,
    head: str,
    params: tuple[str, ...],
    training: Training,
    trust: Trust,
    multi_label: str | None,
    page: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Stage 2: train a classifier on cached vectors.

    Fits on the training split, selects on the validation split, and reports on the test split; a file
    without splits gets a reproducible hold-out. Several FEATURES files of the same images are joined by
    image.

    \b
    Heads: auto (tries many), logreg, ridge, linear-svm, svm, knn, lda, random-forest,
    hist-gradient-boosting, nearest-centroid, dummy, dense
    """  # noqa: D301 - \b keeps click from wrapping the lines after it
    from pipeline.heads.classifiers import parse_params
    from pipeline.training.multi_label import train_multi_label
    from pipeline.training.single_label import train_head as train_single_label

    train = train_single_label
    if multi_label is not None:
        if page:
            raise UsageError("--multi-label does not support --report; leave out one or the other")
        train = functools.partial(train_multi_label, separator=multi_label)
    if page:
        from pipeline.insight.report import check_target, write_report

        check_target(page)  # before the training, not after it
    with progress_bar(" fits", quiet) as progress:
        bundle, report = train(
            list(features), head=head, params=parse_params(params), training=training, trust=trust, progress=progress
        )
    path = bundle.save(out)
    _add_to_runs(report, path)
    if page:
        with progress_bar(" images", quiet) as progress:
            write_report(path, page, features=features, progress=progress)
    lines = [f"{page}: open it in a browser"] if page else []
    _print_training(report, {"bundle": str(path)}, lines, as_json=as_json, quiet=quiet)


def _add_to_runs(report: Any, bundle: Path) -> None:
    """Add a training to the runs.jsonl beside its bundle."""
    from pipeline.training.runs import RUNS_FILE, append_record, record_of

    append_record(bundle.parent / RUNS_FILE, record_of(report, bundle))


def _print_training(report: Any, files: dict[str, str], lines: list[str], *, as_json: bool, quiet: bool) -> None:
    """Print the report of a training with the files that it wrote, as JSON; or as a table, then some more lines."""
    if as_json:
        print_json({**files, "accuracy": report.accuracy, **report.to_dict()})
        return
    click.echo(report.table())
    params = " with " + ", ".join(f"{name}={value}" for name, value in report.params.items()) if report.params else ""
    click.echo(f"\n{files['bundle']}: {report.head}{params}, scored on {report.scored_on}")
    for line in lines:
        click.echo(line)
    print_notes(report.notes, quiet)


@command
@click.argument("bundle")
@click.argument("images", nargs=-1, required=True)
@click.option("--out", default="-", help="FILE.csv, FILE.jsonl, FILE.parquet, or - for CSV on standard output.")
@click.option("--top-k", type=click.IntRange(1), default=1, help="Number of classes to list for each image.")
@click.option("--explain", metavar="FOLDER", help="Write a heat map of each image: the regions that favour its class.")
@group_options(speed=Speed)
@max_bad_option
def predict(
    bundle: str,
    images: tuple[str, ...],
    out: str,
    top_k: int,
    explain: str | None,
    speed: Speed,
    max_bad: float,
    as_json: bool,
    quiet: bool,
) -> int:
    """Predict the class of images with a bundle: one row per image, in input order.

    IMAGES are files, folders, a CSV or Parquet table with a path column, - for paths on standard
    input, or the feature files of the bundle's recipes. The row of an image that cannot be read holds
    the reason.
    """
    from pipeline.bundles.bundle import Bundle
    from pipeline.prediction import list_images, write_predictions
    from pipeline.prediction import predict as predict_images

    if as_json and out == "-":
        raise UsageError("--json and --out - both write to standard output; name a file with --out")
    if any(Path(out).exists() and Path(each).exists() and Path(out).samefile(each) for each in (bundle, *images)):
        raise UsageError(f"--out {out} is one of the inputs; name another file")
    started = time.monotonic()
    loaded = Bundle.load(bundle)
    source = _feature_files(images) or list_images(images)
    without_map: list[str] = []
    with progress_bar(" images", quiet) as progress:
        rows = predict_images(loaded, source, top_k=top_k, speed=speed, progress=progress)
        if explain:
            from pipeline.insight.explain import explained

            stores = source if isinstance(source, list) else []
            rows = explained(loaded, rows, explain, stores=stores, lost=without_map, speed=speed)
        counts = write_predictions(rows, out, top_k, novelty=loaded.safeguards.novelty is not None)
    summary = _summary_of(counts, time.monotonic() - started)
    if as_json:
        print_json({"bundle": bundle, "out": out, **summary})
    elif out != "-":
        click.echo(f"{out}: {_text_of(summary)}")
    elif not quiet:
        print_stderr(_text_of(summary))
    if without_map and not quiet:
        from pipeline.insight.pictures import lost_note

        root = source[0].index.root if isinstance(source, list) else "their folders"
        print_stderr(f"note: no heat maps: {lost_note(len(without_map), summary['predicted'], root)}")
    return too_many_bad(summary["bad"], summary["images"], max_bad)


def _summary_of(counts: Counter[str], seconds: float) -> dict[str, Any]:
    """Return how many predictions have which status, as plain data."""
    from pipeline.prediction import ANSWERED

    answers = {status: counts[status] for status in ANSWERED if counts[status]}
    images, predicted = counts.total(), sum(answers.values())
    return {
        "images": images,
        "predicted": predicted,
        "bad": images - predicted,
        "answers": answers,
        "reasons": {status: count for status, count in sorted(counts.items()) if status not in ANSWERED},
        "seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 1),
    }


def _text_of(summary: dict[str, Any]) -> str:
    doubtful = [f"{count:,} {status}" for status, count in summary["answers"].items() if status != "ok"]
    of_these = f" (of these {', '.join(doubtful)})" if doubtful else ""
    return (
        f"{count_of(summary['images'], 'image')}: {summary['predicted']:,} predicted{of_these},"
        f" {summary['bad']:,} bad, in {summary['seconds']:.1f} s"
    )


def _feature_files(images: tuple[str, ...]) -> Any:
    """Open the inputs if they are feature files; return None if they are images."""
    files = [image for image in images if image.endswith((".h5", ".hdf5"))]
    if not files:
        return None
    if len(files) < len(images):
        raise UsageError(f"{files[0]} is a feature file among images; give feature files or images, not both")
    from pipeline.features.store import FeatureStore

    return [FeatureStore(image) for image in images]


@command
@click.argument("bundle")
@click.option("--out", required=True, metavar="BUNDLE", help="The tuned bundle, for instance artifacts/tuned.bundle.")
@click.option(
    "--features", multiple=True, metavar="FEATURES", help="The bundle's training data.  [default: as recorded in it]"
)
@group_options(tuning=Tuning, speed=Speed)
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier tuning.")
def finetune(
    bundle: str,
    out: str,
    features: tuple[str, ...],
    tuning: Tuning,
    speed: Speed,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train the last blocks of a bundle's network at a low learning rate, then a new head on its vectors.

    The optional last step. Writes the new bundle and, next to it, the tuned weights and the feature file made with
    them.
    """
    from pipeline.finetuning.tuning import Places, fine_tune

    _, report = fine_tune(
        bundle,
        out,
        features=features,
        tuning=tuning,
        overwrite=overwrite,
        speed=speed,
        phases=functools.partial(progress_bar, quiet=quiet),
    )
    places = Places.of(out)
    files = {"bundle": out, "features": str(places.features), "weights": str(places.weights)}
    _add_to_runs(report, places.bundle)
    lines = [f"{places.features}, {places.weights}: its vectors and weights"]
    _print_training(report, files, lines, as_json=as_json, quiet=quiet)
