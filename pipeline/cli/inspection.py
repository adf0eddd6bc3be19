"""Commands that inspect features and bundles: compare, runs, report, audit, similar, export_vectors, verify."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from pipeline.cli.command import (
    check_suffix,
    command,
    group_options,
    print_error,
    print_json,
    print_notes,
    print_stderr,
    progress_bar,
)
from pipeline.errors import IntegrityError, PipelineError, UsageError
from pipeline.features.options import Speed
from pipeline.insight.options import Options
from pipeline.wording import count_of


@command
@click.argument("features", nargs=-1, required=True)
@click.option("--head", default="logreg", help="The head that scores them, with its default parameters.")
@click.option("--join", default="pairs", help="none; pairs: every two files, and all together; all: all together.")
@click.option("--seed", default=0, help="Seed of drawn splits and of the head.")
@click.option("--out", metavar="FILE.json", help="Write the ranking as JSON.")
@click.option("--plot", metavar="FILE.png", help="Plot accuracy against cost; also .svg or .pdf.")
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
    """Rank backbones, layers, sizes and joins of them by the accuracy of a quick head, by LogME and by cost.

    FEATURES are feature files of the same images. The head is fitted on the training split and scored on the
    validation split; the test split is not used. LogME scores vectors without training a head. Costs are
    milliseconds per image, measured now on some of the images if their files are still there.
    """
    from pipeline.training import comparison

    with progress_bar(" fits", quiet) as progress:
        contenders = comparison.compare(list(features), head=head, join=join, seed=seed, progress=progress)
    written = {"out": out, "plot": str(comparison.plot_contenders(contenders, plot)) if plot else None}
    result = {"head": head, "contenders": [each.to_dict() for each in contenders], **written}
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(result, indent=1), "utf-8")
    if as_json:
        print_json(result)
    else:
        click.echo(comparison.format_contenders(contenders))


@command
@click.argument("file", default="artifacts/runs.jsonl", metavar="[RUNS]")
@click.option("--sort", default="time", help="time, seconds, accuracy, balanced_accuracy, log_loss, ...")
@click.option("--diff", nargs=2, type=int, metavar="A B", help="Print the differences between two runs.")
@click.option("--to-mlflow", metavar="URI", help="Log the runs to an MLflow tracking server.")
@click.option("--to-tensorboard", metavar="DIR", help="Write the runs as TensorBoard event files.")
def runs(
    file: str,
    sort: str,
    diff: tuple[int, int] | None,
    to_mlflow: str | None,
    to_tensorboard: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """List and compare trainings, which are recorded in the runs.jsonl beside their bundles.

    RUNS is artifacts/runs.jsonl by default.
    """
    from pipeline.training import runs as records

    found, damaged = records.read_records(file)
    if damaged and not quiet:
        print_stderr(f"note: {count_of(damaged, 'line')} of {file} cannot be read and were skipped")
    ordered = records.sorted_records(found, sort)
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
            print_json({"diff": {name: list(pair) for name, pair in changed.items()}})
        else:
            click.echo("\n".join(f"{name}: {one} -> {two}" for name, (one, two) in changed.items()) or "no difference")
    elif as_json:
        print_json({"runs": ordered, "damaged": damaged, "sent": sent})
    else:
        click.echo(records.format_records(ordered, sort))
    for where, count in sent.items():
        print_stderr(f"{where}: {count_of(count, 'run')} written")


@command
@click.argument("bundle")
@click.option("--out", required=True, metavar="FILE.html", help="The report, for instance artifacts/report.html.")
@click.option(
    "--features", multiple=True, metavar="FEATURES", help="The bundle's training data.  [default: as recorded in it]"
)
@group_options(options=Options)
def report(
    bundle: str,
    out: str,
    features: tuple[str, ...],
    options: Options,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write one HTML file that shows what a bundle has learned and what is wrong with its data.

    The file opens offline. It holds a summary, the confusion matrix, mistakes with their photographs,
    plots, a map of all images, and the audit.
    """
    from pipeline.insight.report import write_report

    with progress_bar(" images", quiet) as progress:
        written = write_report(bundle, out, features=features, options=options, progress=progress)
    if as_json:
        print_json({**vars(written), "path": str(written.path), "plots": [str(path) for path in written.plots]})
        return
    click.echo(f"{written.path}: {written.bytes / 1e6:.1f} MB in {written.seconds:.1f} s; open it in a browser")
    print_notes(written.notes, quiet)


@command
@click.argument("features")
@click.option("--out", metavar="FINDINGS.csv", help="The table of findings, for instance artifacts/findings.csv.")
@click.option("--images/--no-images", default=True, help="Check the image files too: dark, blurred, odd-sized ones.")
@click.option("--seed", default=0, help="Seed of the folds.")
def audit(features: str, out: str | None, images: bool, seed: int, as_json: bool, quiet: bool) -> None:
    """Find problems in the data: label errors, duplicates, leakage, outliers, bad photographs.

    Review the column "action" of the table, then train with --exclude: images whose action is "exclude" are
    left out.
    """
    from pipeline.features.store import FeatureStore
    from pipeline.images.findings import write_findings
    from pipeline.insight.audit import KINDS
    from pipeline.insight.audit import audit as audit_store

    check_suffix(out, ".csv")
    with FeatureStore(features) as store, progress_bar(" images", quiet) as progress:
        found = audit_store(store, images=images, seed=seed, progress=progress)
        labelled = bool((store.labels >= 0).any())
    if out:
        write_findings(found.findings, out)
    counts = found.counts()
    if as_json:
        print_json(
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
    print_notes(found.notes, quiet)


@command
@click.argument("features")
@click.argument("image")
@click.option("--out", metavar="FILE.png", help="Write a contact sheet of the photographs.")
@click.option("--top-k", type=click.IntRange(1), default=12, help="Number of images to find.")
@click.option("--index", "indexed", is_flag=True, help="Search an index, built on first use; for millions of images.")
@group_options(speed=Speed)
def similar(
    features: str,
    image: str,
    out: str | None,
    top_k: int,
    indexed: bool,
    speed: Speed,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find the stored images that are most similar to an image."""
    from pipeline.features.store import FeatureStore
    from pipeline.features.vector_index import VectorIndex
    from pipeline.insight.similar import contact_sheet, find_similar

    check_suffix(out, ".png")
    with FeatureStore(features) as store:
        with progress_bar(" rows", quiet) as progress:
            index = VectorIndex.of(store, progress=progress) if indexed else None
        found = find_similar(store, image, top_k, speed, index)
        notes = contact_sheet(store, image, found, out) if out else []
    if as_json:
        print_json({"image": image, "out": out, "similar": [each._asdict() for each in found], "notes": notes})
        return
    _print_csv([("path", "label", "cosine"), *((each.path, each.label, f"{each.cosine:.4f}") for each in found)])
    if out and not quiet:
        print_stderr(f"{out}: the photographs")
        print_notes(notes, quiet)


def _print_csv(rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    click.echo(text.getvalue().encode("utf-8", "backslashreplace"), nl=False)


@command
@click.argument("features")
@click.option("--out", required=True, metavar="FILE.parquet", help="The table, for instance artifacts/photos.parquet.")
def export_vectors(features: str, out: str, as_json: bool, quiet: bool) -> None:
    """Write vectors, paths, labels and splits as a Parquet table, for embedding viewers."""
    from pipeline.insight import vectors

    rows = vectors.export_vectors(features, out)
    if as_json:
        print_json({"out": out, "rows": rows})
    else:
        click.echo(f"{out}: {count_of(rows, 'row')}")


@command
@click.argument("paths", nargs=-1, required=True, metavar="FEATURES_OR_BUNDLE...")
def verify(paths: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """Check feature files and bundles for damage; exit code 4 if there is any."""
    from pipeline.bundles.bundle import verify_bundle
    from pipeline.features.store import verify as verify_features

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
            print_error(error, debug=False)
            failed = error.exit_code
    if as_json:
        print_json({"sound": not failed and not any(problems.values()), "problems": problems})
    else:
        for path, found in problems.items():
            for problem in found or ["sound"]:
                click.echo(problem if problem.startswith(path) else f"{path}: {problem}")
    return IntegrityError.exit_code if any(problems.values()) else failed
