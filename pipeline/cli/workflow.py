"""The main job: extract, train_head, predict, and finetune."""

import functools
import time
from pathlib import Path
from typing import Any

import click

from pipeline.cli.command import (
    command,
    max_bad_option,
    params_text,
    print_json,
    progress_bar,
    read_seconds,
    say,
    say_notes,
    speed_options,
    too_many_bad,
)
from pipeline.errors import UsageError
from pipeline.wording import count_of


@command
@click.argument("images")
@click.option("--out", required=True, metavar="FEATURES", help="The feature file, for instance artifacts/photos.h5.")
@click.option("--backbone", default="mobilenetv2", help="A Keras Applications name, a .keras model or a bundle.")
@click.option("--weights", default="imagenet", help="imagenet, random, random:SEED or a .h5 file.")
@click.option("--layer", "layers", multiple=True, metavar="NAME", help="A layer as features; repeatable.")
@click.option("--pooling", default="avg", help="avg, max or flatten.")
@click.option("--size", type=int, metavar="PX", help="Side of the input.  [default: the backbone's own]")
@click.option("--resize", default="squash", help="squash, crop or pad.")
@click.option(
    "--precision", default="float32", help="Arithmetic of the network: float32, bfloat16, or float16 on a GPU."
)
@click.option(
    "--views", default="1", help="Versions of each image: flip, or a number of random ones, K or K:SEED (1 is none)."
)
@click.option("--dtype", default="float32", help="Stored type: float32 or float16.")
@speed_options
@max_bad_option
@click.option("--overwrite", is_flag=True, help="Replace a file that was made with another recipe.")
def extract(
    images: str,
    out: str,
    dtype: str,
    engine: str,
    batch_size: int | None,
    workers: int | None,
    max_bad: float,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **recipe: Any,
) -> int:
    """Stage 1: send every image through a convnet once and cache the vectors.

    IMAGES is a folder of class folders, a folder with train / validation / test of class folders, a
    folder of images, or a CSV or Parquet table with columns path[,label][,split][,group]. Run again,
    it does only what is new or changed.
    """
    from pipeline.features.engines import Speed
    from pipeline.features.extraction import extract as run

    with progress_bar(" images", quiet) as progress:
        store = run(
            images,
            out,
            recipe.pop("backbone"),
            dtype=dtype,
            overwrite=overwrite,
            speed=Speed(engine, batch_size, workers),
            progress=progress,
            **recipe,
        )
    with store:
        summary = store.summary
        if as_json:
            print_json(
                {"features": str(store.path), "recipe": str(store.recipe), "shape": store.shape, **vars(summary)}
            )
        else:
            _print_extraction(store, summary, quiet)
    return too_many_bad(summary.skipped, summary.images, max_bad)


def _print_extraction(store: Any, summary: Any, quiet: bool) -> None:
    click.echo(
        f"{count_of(summary.images, 'image')}: {summary.stored:,} stored ({summary.extracted:,} extracted,"
        f" {summary.reused:,} reused), {summary.skipped:,} skipped, {summary.dropped:,} dropped"
    )
    rate = f", {summary.images_per_second:,.3g} images/s" if summary.extracted else ""
    shape = " x ".join(map(str, store.shape))
    click.echo(f"{store.path}: {shape} {store.dtype} in {summary.seconds:.1f} s{rate}")
    if quiet:
        return
    say(f"recipe: {store.recipe}")
    for path, reason in list(store.skipped.items())[:5]:
        say(f"skipped {path!r}: {reason}")
    if summary.skipped > 5:
        say(f"skipped {summary.skipped - 5:,} more; all are listed in the file under skipped/")
    for kind, count in summary.left_out.items():
        say(f"left out: {count:,} x {kind}")


@command
@click.argument("features", nargs=-1, required=True)
@click.option("--out", required=True, metavar="BUNDLE", help="The bundle, for instance artifacts/photos.bundle.")
@click.option("--head", default="logreg", help="A name below, or the import path of a scikit-learn classifier.")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of the head; repeatable.")
@click.option("--cv", type=int, metavar="K", help="Choose by K-fold cross-validation in the training split.")
@click.option(
    "--budget",
    callback=read_seconds,
    metavar="TIME",
    help="For --head auto: how long to race, 60s or 5m.  [default: 60s]",
)
@click.option("--average-views", is_flag=True, help="Predict from the mean over the views of an image.")
@click.option("--curve", is_flag=True, help="Also measure accuracy against training images, and extrapolate.")
@click.option("--seed", default=0, help="Of drawn splits, folds and the head.")
@click.option("--calibration", default="auto", help="Of the probabilities: auto, none, temperature or isotonic.")
@click.option("--abstain", type=float, metavar="ACCURACY", help="Accuracy that answers shall have; others abstain.")
@click.option("--multi-label", metavar="SEPARATOR", help="Labels such as cat;dog are several of an image.")
@click.option("--novelty", is_flag=True, help="Flag images unlike anything in training when predicting.")
@click.option("--exclude", metavar="FINDINGS.csv", help="Leave out what the audit's table says; see audit.")
@click.option("--report", "page", metavar="FILE.html", help="Write the report too; see report.")
def train_head(
    features: tuple[str, ...],
    out: str,
    head: str,
    params: tuple[str, ...],
    multi_label: str | None,
    page: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Stage 2: train a classifier on cached vectors.

    Fits on the training split, chooses on validation, reports on test; a file without splits gets a
    stable hold-out. Several FEATURES files of the same images are joined by image.

    \b
    Heads: auto (races many), logreg, ridge, linear-svm, svm, knn, lda, random-forest,
    hist-gradient-boosting, nearest-centroid, dummy, dense
    """  # noqa: D301 - click's mark for lines that stay as they are
    from pipeline.heads.classifiers import parse_params
    from pipeline.training.multi_label import train_multi_label
    from pipeline.training.runs import RUNS_FILE, append_record, record_of
    from pipeline.training.single_label import train_head as run
    from pipeline.trust.options import Trust

    options["params"] = parse_params(params)
    if page:
        from pipeline.insight.report import check_target, write_report

        check_target(page)  # before the work, not after it
    with progress_bar(" fits", quiet) as progress:
        if multi_label is None:
            trust = Trust(**{name: options.pop(name) for name in ("calibration", "abstain", "novelty")})
            bundle, report = run(list(features), head, trust=trust, progress=progress, **options)
        else:
            bundle, report = train_multi_label(
                list(features), multi_label, head, progress=progress, **_multi_label_options(**options, report=page)
            )
    path = bundle.save(out)
    append_record(path.parent / RUNS_FILE, record_of(report, path))
    if page:
        with progress_bar(" images", quiet) as progress:
            write_report(path, page, features=features, progress=progress)
    if as_json:
        print_json({"bundle": str(path), "accuracy": report.accuracy, **report.to_dict()})
        return
    click.echo(report.table())
    click.echo(f"\n{path}: {report.head}{params_text(report.params)}, scored on {report.scored_on}")
    if page:
        click.echo(f"{page}: open it in a browser")
    say_notes(report.notes, quiet)


def _multi_label_options(params: dict[str, Any], seed: int, novelty: bool, **others: Any) -> dict[str, Any]:
    if unusable := [name for name, value in others.items() if value not in (None, False, "auto")]:
        option = unusable[0].replace("_", "-")
        raise UsageError(f"--multi-label goes without --{option}; leave one of them out")
    return {"params": params, "seed": seed, "novelty": novelty}


@command
@click.argument("bundle")
@click.argument("images", nargs=-1, required=True)
@click.option("--out", default="-", help="FILE.csv, FILE.jsonl, FILE.parquet, or - for CSV on standard output.")
@click.option("--top-k", type=click.IntRange(1), default=1, help="How many classes to name for each image.")
@click.option("--explain", metavar="FOLDER", help="Write a heat map of each image: what spoke for its class.")
@speed_options
@max_bad_option
def predict(
    bundle: str,
    images: tuple[str, ...],
    out: str,
    top_k: int,
    explain: str | None,
    engine: str,
    batch_size: int | None,
    workers: int | None,
    max_bad: float,
    as_json: bool,
    quiet: bool,
) -> int:
    """Predict the class of images with a bundle: one row per image, in input order.

    IMAGES are files, folders, a CSV or Parquet table with a path column, - for paths on standard
    input, or the feature files of the bundle's recipes. An image that cannot be read has the reason in its row.
    """
    from pipeline.bundles.bundle import Bundle
    from pipeline.features.engines import Speed
    from pipeline.prediction import ANSWERED, list_images, write_predictions
    from pipeline.prediction import predict as run

    if as_json and out == "-":
        raise UsageError("--json and --out - both want standard output; name a file with --out")
    if any(Path(out).exists() and Path(each).exists() and Path(out).samefile(each) for each in (bundle, *images)):
        raise UsageError(f"--out {out} is one of the inputs; name another file")
    started = time.monotonic()
    loaded = Bundle.load(bundle)
    source = _feature_files(images) or list_images(images)
    lost: list[str] = []
    with progress_bar(" images", quiet) as progress:
        speed = Speed(engine, batch_size, workers)
        rows = run(loaded, source, top_k=top_k, speed=speed, progress=progress)
        if explain:
            from pipeline.insight.explain import explained

            stores = source if isinstance(source, list) else []
            rows = explained(loaded, rows, explain, stores=stores, lost=lost, speed=speed)
        counts = write_predictions(rows, out, top_k, novelty=loaded.safeguards.novelty is not None)
    total, good = counts.total(), sum(counts[status] for status in ANSWERED)
    seconds = time.monotonic() - started
    summary = {
        "bundle": bundle,
        "out": out,
        "images": total,
        "predicted": good,
        "bad": total - good,
        "answers": {status: counts[status] for status in ANSWERED if counts[status]},
        "reasons": {reason: count for reason, count in sorted(counts.items()) if reason not in ANSWERED},
        "seconds": round(seconds, 3),
        "images_per_second": round(total / seconds, 1),
    }
    if as_json:
        print_json(summary)
    elif not quiet or out != "-":
        doubts = [f"{counts[status]:,} {status}" for status in ANSWERED[1:] if counts[status]]
        among = f" (of these {', '.join(doubts)})" if doubts else ""
        text = f"{count_of(total, 'image')}: {good:,} predicted{among}, {total - good:,} bad, in {seconds:.1f} s"
        click.echo(text if out == "-" else f"{out}: {text}", err=out == "-")
    if lost and not quiet:
        from pipeline.insight.pictures import lost_note

        where = source[0].index.root if isinstance(source, list) else "their places"
        say(f"note: no heat maps: {lost_note(len(lost), good, where)}")
    return too_many_bad(total - good, total, max_bad)


def _feature_files(images: tuple[str, ...]) -> Any:
    files = [image for image in images if image.endswith((".h5", ".hdf5"))]
    if not files:
        return None
    if len(files) < len(images):
        raise UsageError(f"{files[0]} is a feature file among images; predict from the one or the other")
    from pipeline.features.store import FeatureStore

    return [FeatureStore(image) for image in images]


@command
@click.argument("bundle")
@click.option("--out", required=True, metavar="BUNDLE", help="The tuned bundle, for instance artifacts/tuned.bundle.")
@click.option(
    "--features", multiple=True, metavar="FEATURES", help="What it was trained on.  [default: as at the training]"
)
@click.option("--after", metavar="LAYER", help="Tune what follows this layer.  [default: the last fifth to third]")
@click.option("--epochs", default=20, help="At most; the best one on validation is kept.")
@click.option("--learning-rate", default=3e-4, help="Of Adam.")
@click.option("--views", default="1", help="Augmented versions of each image to learn from; see extract.")
@click.option("--seed", default=0, help="Of the order of images and of dropout.")
@speed_options
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier tuning.")
def finetune(
    bundle: str,
    out: str,
    features: tuple[str, ...],
    engine: str,
    batch_size: int | None,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **tuning: Any,
) -> None:
    """Train the last blocks of a bundle's network too, at a low rate, and a new head on what it then sees.

    The optional last step. Writes the new bundle, and beside it the tuned weights and the feature file made with them.
    """
    from pipeline.features.engines import Speed
    from pipeline.finetuning.tuning import Places, Tuning, fine_tune
    from pipeline.training.runs import RUNS_FILE, append_record, record_of

    _, report = fine_tune(
        bundle,
        out,
        features=features,
        tuning=Tuning(**tuning),
        overwrite=overwrite,
        speed=Speed(engine, batch_size, workers),
        phases=functools.partial(progress_bar, quiet=quiet),
    )
    places = Places.of(out)
    append_record(places.bundle.parent / RUNS_FILE, record_of(report, places.bundle))
    files = {"bundle": out, "features": str(places.features), "weights": str(places.weights)}
    if as_json:
        print_json({**files, "accuracy": report.accuracy, **report.to_dict()})
        return
    click.echo(report.table())
    click.echo(f"\n{out}: {report.head}{params_text(report.params)}, scored on {report.scored_on}")
    click.echo(f"{files['features']}, {files['weights']}: its vectors and weights")
    say_notes(report.notes, quiet)
