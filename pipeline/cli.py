"""The commands: a skin over the library. Heavy imports wait until a command runs."""

import contextlib
import functools
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from pipeline.errors import IntegrityError, PipelineError, UsageError, count_of

EXIT_TOO_MANY_BAD = 3
EXIT_INTERRUPTED = 130
_LINE_SECONDS = 10.0  # between progress lines where there is no terminal

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


@click.group(context_settings=_CONTEXT)
@click.version_option(package_name="twostage-features", prog_name="twostage")
def main() -> None:
    """Cache the vectors of a pre-trained convnet once, train classifiers in seconds, predict in batches."""


def _command(function: Callable[..., int | None]) -> click.Command:
    """Make a click command that answers errors with one line and the exit code of their kind."""

    @functools.wraps(function)
    def guarded(**options: Any) -> None:
        debug = options.pop("debug")
        kept = "what was done is kept, run the same command again to go on"
        printing = function.__name__ == "predict" and options["out"] == "-"
        hint = kept if function.__name__ == "extract" else "nothing was written"
        hint = "the rows printed so far are right, the rest is missing" if printing else hint
        sys.exit(_guarded(functools.partial(function, **options), debug, hint))

    command = main.command(context_settings=_CONTEXT)(guarded)
    command.params += [
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object with counts, rates and paths."),
        click.Option(["--quiet"], is_flag=True, help="No progress and no hints, only the result."),
        click.Option(["--debug"], is_flag=True, help="Show a traceback when something fails."),
    ]
    return command


def _guarded(run: Callable[[], int | None], debug: bool, hint: str) -> int:
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run() or 0
    except KeyboardInterrupt:
        _say(f"interrupted; {hint}")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; so does the rest
        return 1
    except PipelineError as error:
        _show(error, debug)
        return error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _show(PipelineError(f"{where}{error.strerror or error}"), debug)
        return 1
    except Exception as error:  # noqa: BLE001 - the last resort of a command: a line, not a traceback
        _show(error, debug)
        if not debug:
            _say("this is a fault of twostage; run again with --debug for the traceback")
        return 1


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _show(error: Exception, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    name = "" if isinstance(error, PipelineError) else f"{type(error).__name__}: "
    _say(f"error: {name}{' '.join(str(error).split())}")


def _say(text: str) -> None:
    # Names that are not UTF-8 must not turn a message into a crash.
    click.echo(text.encode("utf-8", "backslashreplace").decode(), err=True)


@contextlib.contextmanager
def progress_bar(unit: str, quiet: bool = False) -> Iterator[Callable[[int, int], None] | None]:
    """Give a callback (done, total): a bar on a terminal, a line now and then elsewhere."""
    if quiet:
        yield None
        return
    from tqdm import tqdm

    bar = tqdm(unit=unit, disable=None, file=sys.stderr, dynamic_ncols=True, leave=False)
    started = last = time.monotonic()
    first: int | None = None

    def update(done: int, total: int) -> None:
        nonlocal first, last
        if not bar.disable:
            bar.total = total or None
            if first is None:
                bar.initial = first = max(done - 1, 0)  # what an earlier run did counts for no rate
            bar.n = done
            bar.refresh() if done == total else bar.update(0)
        elif time.monotonic() - last > _LINE_SECONDS:
            last = time.monotonic()
            of = f" of {total:,}" if total else ""
            _say(f"{done:,}{of} {unit.strip()}, {last - started:.0f} s")

    try:
        yield update
    finally:
        bar.close()


def _print_json(data: dict[str, Any]) -> None:
    click.echo(json.dumps(data, indent=1))


def _speed_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        [
            click.option("--engine", default="auto", help="What runs the network: auto, keras or openvino."),
            click.option(
                "--batch-size", type=click.IntRange(1), help="Images per forward pass.  [default: suits the size]"
            ),
            click.option("--workers", type=click.IntRange(1), help="Decoding processes.  [default: one per core]"),
        ]
    ):
        function = option(function)
    return function


def _seconds(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """Read a time such as 90, 60s or 5m."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found:
        raise click.BadParameter(f"{text!r} is no time; give seconds or minutes, such as 60s or 5m")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


_max_bad = click.option(
    "--max-bad",
    type=click.FloatRange(0, 1),
    default=0.05,
    help="Share of unreadable images above which the exit code is 3.",
)


def _too_many_bad(bad: int, images: int, max_bad: float) -> int:
    if not images or bad / images <= max_bad:
        return 0
    _say(f"error: {bad:,} of {count_of(images, 'image')} bad, more than --max-bad {max_bad:g} allows; the rest is done")
    return EXIT_TOO_MANY_BAD


@_command
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
@_speed_options
@_max_bad
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
            _print_json(
                {"features": str(store.path), "recipe": str(store.recipe), "shape": store.shape, **vars(summary)}
            )
        else:
            _print_extraction(store, summary, quiet)
    return _too_many_bad(summary.skipped, summary.images, max_bad)


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
    _say(f"recipe: {store.recipe}")
    for path, reason in list(store.skipped.items())[:5]:
        _say(f"skipped {path!r}: {reason}")
    if summary.skipped > 5:
        _say(f"skipped {summary.skipped - 5:,} more; all are listed in the file under skipped/")
    for kind, count in summary.left_out.items():
        _say(f"left out: {count:,} x {kind}")


@_command
@click.argument("features", nargs=-1, required=True)
@click.option("--out", required=True, metavar="BUNDLE", help="The bundle, for instance artifacts/photos.bundle.")
@click.option("--head", default="logreg", help="A name below, or the import path of a scikit-learn classifier.")
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of the head; repeatable.")
@click.option("--cv", type=int, metavar="K", help="Choose by K-fold cross-validation in the training split.")
@click.option(
    "--budget", callback=_seconds, metavar="TIME", help="For --head auto: how long to race, 60s or 5m.  [default: 60s]"
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
    from pipeline.heads.multilabel_training import train_multi_label
    from pipeline.heads.records import RUNS_FILE, append_record, record_of
    from pipeline.heads.training import train_head as run
    from pipeline.heads.trust import Trust

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
        _print_json({"bundle": str(path), "accuracy": report.accuracy, **report.to_dict()})
        return
    click.echo(report.table())
    click.echo(f"\n{path}: {report.head}{_params_text(report.params)}, scored on {report.scored_on}")
    if page:
        click.echo(f"{page}: open it in a browser")
    if not quiet:
        for note in report.notes:
            _say(f"note: {note}")


def _check_ending(out: str | None, ending: str) -> None:
    if out is not None and not out.lower().endswith(ending):
        raise UsageError(f"cannot tell the format of {out!r}; end it in {ending}")


def _multi_label_options(params: dict[str, Any], seed: int, novelty: bool, **others: Any) -> dict[str, Any]:
    if unusable := [name for name, value in others.items() if value not in (None, False, "auto")]:
        option = unusable[0].replace("_", "-")
        raise UsageError(f"--multi-label goes without --{option}; leave one of them out")
    return {"params": params, "seed": seed, "novelty": novelty}


def _params_text(params: dict[str, Any]) -> str:
    return " with " + ", ".join(f"{name}={value}" for name, value in params.items()) if params else ""


@_command
@click.argument("features", nargs=-1, required=True)
@click.option("--head", default="logreg", help="The quick head, with its default parameters.")
@click.option("--join", default="pairs", help="none; pairs: each two files, and all together; all: all together.")
@click.option("--seed", default=0, help="Of drawn splits and the head.")
@click.option("--out", metavar="FILE.json", help="Write the race as JSON.")
@click.option("--plot", metavar="FILE.png", help="Draw accuracy against cost; also .svg or .pdf.")
def compare(
    features: tuple[str, ...],
    head: str,
    join: str,
    seed: int,
    out: str | None,
    plot: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Rank backbones, layers, sizes and joins by a quick head and by LogME, against their cost.

    FEATURES are feature files of the same images. The head is fitted on the training split and judged on the
    validation split; the test split takes no part. LogME scores vectors without training. Costs are
    milliseconds per image, measured now on some of the images where they still are.
    """
    from pipeline.heads.comparison import compare as run
    from pipeline.heads.comparison import format_contenders, plot_contenders

    with progress_bar(" fits", quiet) as progress:
        found = run(list(features), head=head, join=join, seed=seed, progress=progress)
    written = {"out": out, "plot": str(plot_contenders(found, plot)) if plot else None}
    result = {"head": head, "contenders": [each.to_dict() for each in found], **written}
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(result, indent=1), "utf-8")
    if as_json:
        _print_json(result)
    else:
        click.echo(format_contenders(found))


@_command
@click.argument("file", default="artifacts/runs.jsonl", metavar="[RUNS]")
@click.option("--sort", "by", default="time", help="time, seconds, accuracy, balanced_accuracy, log_loss, ...")
@click.option("--diff", nargs=2, type=int, metavar="A B", help="Show what differs between two runs.")
@click.option("--to-mlflow", metavar="URI", help="Log the runs to an MLflow tracking server.")
@click.option("--to-tensorboard", metavar="DIR", help="Write the runs as TensorBoard event files.")
def runs(
    file: str,
    by: str,
    diff: tuple[int, int] | None,
    to_mlflow: str | None,
    to_tensorboard: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """List and compare trainings: each wrote a line to the runs.jsonl beside its bundle.

    RUNS is artifacts/runs.jsonl unless you name another file.
    """
    from pipeline.heads import records

    found, damaged = records.read_records(file)
    if damaged and not quiet:
        _say(f"note: {count_of(damaged, 'line')} of {file} cannot be read and were left out")
    ordered = records.sorted_records(found, by)
    sent = {}
    if to_mlflow:
        sent["mlflow"] = records.to_mlflow(found, to_mlflow)
    if to_tensorboard:
        sent["tensorboard"] = records.to_tensorboard(found, to_tensorboard)
    if diff:
        numbered = {record["number"]: record for record in found}
        if missing := [number for number in diff if number not in numbered]:
            have = f"it has {count_of(len(found), 'run')}, see the first column"
            raise UsageError(f"{file} has no run {missing[0]}; {have}")
        changed = records.differences(*(numbered[number] for number in diff))
        if as_json:
            _print_json({"diff": {name: list(pair) for name, pair in changed.items()}})
        else:
            click.echo("\n".join(f"{name}: {one} -> {two}" for name, (one, two) in changed.items()) or "no difference")
    elif as_json:
        _print_json({"runs": ordered, "damaged": damaged, "sent": sent})
    else:
        click.echo(records.format_records(ordered, by))
    for where, count in sent.items():
        _say(f"{where}: {count_of(count, 'run')} written")


@_command
@click.argument("bundle")
@click.argument("images", nargs=-1, required=True)
@click.option("--out", default="-", help="FILE.csv, FILE.jsonl, FILE.parquet, or - for CSV on standard output.")
@click.option("--top-k", type=click.IntRange(1), default=1, help="How many classes to name for each image.")
@click.option("--explain", metavar="FOLDER", help="Write a heat map of each image: what spoke for its class.")
@_speed_options
@_max_bad
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
    from pipeline.features.engines import Speed
    from pipeline.heads.bundle import Bundle
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
        _print_json(summary)
    elif not quiet or out != "-":
        doubts = [f"{counts[status]:,} {status}" for status in ANSWERED[1:] if counts[status]]
        among = f" (of these {', '.join(doubts)})" if doubts else ""
        text = f"{count_of(total, 'image')}: {good:,} predicted{among}, {total - good:,} bad, in {seconds:.1f} s"
        click.echo(text if out == "-" else f"{out}: {text}", err=out == "-")
    if lost and not quiet:
        from pipeline.insight.pictures import lost_note

        where = source[0].index.root if isinstance(source, list) else "their places"
        _say(f"note: no heat maps: {lost_note(len(lost), good, where)}")
    return _too_many_bad(total - good, total, max_bad)


def _feature_files(images: tuple[str, ...]) -> Any:
    files = [image for image in images if image.endswith((".h5", ".hdf5"))]
    if not files:
        return None
    if len(files) < len(images):
        raise UsageError(f"{files[0]} is a feature file among images; predict from the one or the other")
    from pipeline.features.store import FeatureStore

    return [FeatureStore(image) for image in images]


@_command
@click.argument("bundle")
@click.option("--out", required=True, metavar="FILE.html", help="The report, for instance artifacts/report.html.")
@click.option(
    "--features", multiple=True, metavar="FEATURES", help="What it was trained on.  [default: as at the training]"
)
@click.option("--map", "projection", default="tsne", help="How the map is made: tsne, pca, or umap (an extra).")
@click.option("--heat-maps", type=click.IntRange(0), default=12, help="How many mistakes get a heat map.")
@click.option("--seed", default=0, help="Of the map and of the audit's folds.")
@click.option("--plots", metavar="FOLDER", help="Write every plot as PNG and SVG too.")
def report(
    bundle: str,
    out: str,
    features: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Show what a bundle has learned and what is wrong with its data, as one HTML file.

    It opens offline, and holds the verdict, the confusions, mistakes with photographs, plots, a map of all
    images, and the audit.
    """
    from pipeline.insight.report import Options, write_report

    with progress_bar(" images", quiet) as progress:
        written = write_report(bundle, out, features=features, options=Options(**options), progress=progress)
    if as_json:
        _print_json({**vars(written), "path": str(written.path), "plots": [str(path) for path in written.plots]})
        return
    click.echo(f"{written.path}: {written.bytes / 1e6:.1f} MB in {written.seconds:.1f} s; open it in a browser")
    if not quiet:
        for note in written.notes:
            _say(f"note: {note}")


@_command
@click.argument("features")
@click.option("--out", metavar="FINDINGS.csv", help="The table of findings, for instance artifacts/findings.csv.")
@click.option("--images/--no-images", default=True, help="Look at image files too: dark, blurred, odd-sized ones.")
@click.option("--seed", default=0, help="Of the folds.")
def audit(features: str, out: str | None, images: bool, seed: int, as_json: bool, quiet: bool) -> None:
    """Look for what is wrong with the data: label errors, duplicates, leakage, outliers, bad photographs.

    Go through the column "action" of the table, then train with --exclude: rows whose action is "exclude" are
    left out.
    """
    from pipeline.features.store import FeatureStore
    from pipeline.images.findings import write_findings
    from pipeline.insight.audit import KINDS
    from pipeline.insight.audit import audit as run

    _check_ending(out, ".csv")
    with FeatureStore(features) as store, progress_bar(" images", quiet) as progress:
        found = run(store, images=images, seed=seed, progress=progress)
        labelled = bool((store.labels >= 0).any())
    if out:
        write_findings(found.findings, out)
    counts = found.counts()
    if as_json:
        _print_json(
            {"out": out, "findings": counts, "images": found.images, "notes": found.notes, "seconds": found.seconds}
        )
        return
    for kind, count in counts.items():
        click.echo(f"{count:>7,} {kind}: {KINDS[kind]}")
    click.echo(
        f"{count_of(found.images, 'image')}: {count_of(sum(counts.values()), 'finding')} in {found.seconds:.1f} s"
    )
    if out:
        rows, kept = len(found.findings), len(found.findings) - sum(counts.values())
        advice = f"; change the column action, then train_head.py --exclude {out}" if labelled else ""
        also = f", with {count_of(kept, 'image')} kept of a group that repeats" if kept else ""
        click.echo(f"{out}: {count_of(rows, 'row')}{also}{advice}")
    if not quiet:
        for note in found.notes:
            _say(f"note: {note}")


@_command
@click.argument("bundle")
@click.option("--out", required=True, metavar="BUNDLE", help="The tuned bundle, for instance artifacts/tuned.bundle.")
@click.option(
    "--features", multiple=True, metavar="FEATURES", help="What it was trained on.  [default: as at the training]"
)
@click.option("--after", metavar="LAYER", help="Tune what follows this layer.  [default: the last fifth to third]")
@click.option("--epochs", default=10, help="At most; the best one on validation is kept.")
@click.option("--learning-rate", default=3e-4, help="Of Adam.")
@click.option("--views", default="1", help="Augmented versions of each image to learn from; see extract.")
@click.option("--seed", default=0, help="Of the order of images and of dropout.")
@_speed_options
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
    from pipeline.deploy.finetuning import Places, Tuning, fine_tune
    from pipeline.features.engines import Speed
    from pipeline.heads.records import RUNS_FILE, append_record, record_of

    made, report = fine_tune(
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
    files = {"bundle": out, "features": str(places.features), "weights": made.recipes[0].weights_path}
    if as_json:
        _print_json({**files, "accuracy": report.accuracy, **report.to_dict()})
        return
    click.echo(report.table())
    click.echo(f"\n{out}: {report.head}{_params_text(report.params)}, scored on {report.scored_on}")
    click.echo(f"{files['features']}, {files['weights']}: its vectors and weights")
    if not quiet:
        for note in report.notes:
            _say(f"note: {note}")


@_command
@click.argument("features")
@click.argument("image")
@click.option("--out", metavar="FILE.png", help="A sheet with the photographs.")
@click.option("--top-k", type=click.IntRange(1), default=12, help="How many images to find.")
@click.option("--index", "indexed", is_flag=True, help="Search an index, made when first used; for millions.")
@_speed_options
def similar(
    features: str,
    image: str,
    out: str | None,
    top_k: int,
    indexed: bool,
    engine: str,
    batch_size: int | None,
    workers: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find the stored images that look most like an image."""
    import csv
    import io

    from pipeline.features.engines import Speed
    from pipeline.features.store import FeatureStore
    from pipeline.features.vector_index import VectorIndex
    from pipeline.insight.similar import contact_sheet, find_similar

    _check_ending(out, ".png")
    with FeatureStore(features) as store:
        with progress_bar(" rows", quiet) as progress:
            index = VectorIndex.of(store, progress=progress) if indexed else None
        found = find_similar(store, image, top_k, Speed(engine, batch_size, workers), index)
        notes = contact_sheet(store, image, found, out) if out else []
    if as_json:
        _print_json({"image": image, "out": out, "similar": [each._asdict() for each in found], "notes": notes})
        return
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(("path", "label", "cosine"))
    table.writerows((each.path, each.label, f"{each.cosine:.4f}") for each in found)
    click.echo(lines.getvalue().encode("utf-8", "backslashreplace"), nl=False)
    if out and not quiet:
        _say(f"{out}: the photographs")
        for note in notes:
            _say(f"note: {note}")


@_command
@click.argument("features")
@click.option("--out", required=True, metavar="FILE.parquet", help="For instance artifacts/photos.parquet.")
def export_vectors(features: str, out: str, as_json: bool, quiet: bool) -> None:
    """Write vectors, paths, labels and splits as a Parquet table, for embedding viewers."""
    from pipeline.insight.vectors import export_vectors as run

    rows = run(features, out)
    if as_json:
        _print_json({"out": out, "rows": rows})
    else:
        click.echo(f"{out}: {count_of(rows, 'row')}")


@_command
@click.argument("paths", nargs=-1, required=True, metavar="FEATURES_OR_BUNDLE...")
def verify(paths: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """Read feature files and bundles through and say what is wrong; exit code 4 if anything is."""
    from pipeline.features.store import verify as verify_features
    from pipeline.heads.bundle import verify_bundle

    failed = 0
    problems: dict[str, list[str]] = {}
    for path in paths:
        try:
            if Path(path).is_dir():
                problems[path] = verify_bundle(path)
            else:
                with progress_bar(" rows", quiet) as progress:
                    problems[path] = verify_features(path, progress)
        except PipelineError as error:
            _show(error, debug=False)
            failed = error.exit_code
    if as_json:
        _print_json({"sound": not failed and not any(problems.values()), "problems": problems})
    else:
        for path, found in problems.items():
            for problem in found or ["sound"]:
                click.echo(problem if problem.startswith(path) else f"{path}: {problem}")
    return IntegrityError.exit_code if any(problems.values()) else failed


if __name__ == "__main__":
    main()
