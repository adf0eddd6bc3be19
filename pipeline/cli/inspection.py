"""Looking at what there is: compare, runs, report, audit, similar, export_vectors, verify."""

import json
from pathlib import Path
from typing import Any

import click

from pipeline.cli.command import check_ending, command, print_json, progress_bar, say, say_notes, show, speed_options
from pipeline.errors import IntegrityError, PipelineError, UsageError
from pipeline.wording import count_of


@command
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
    from pipeline.training.comparison import compare as run
    from pipeline.training.comparison import format_contenders, plot_contenders

    with progress_bar(" fits", quiet) as progress:
        found = run(list(features), head=head, join=join, seed=seed, progress=progress)
    written = {"out": out, "plot": str(plot_contenders(found, plot)) if plot else None}
    result = {"head": head, "contenders": [each.to_dict() for each in found], **written}
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(result, indent=1), "utf-8")
    if as_json:
        print_json(result)
    else:
        click.echo(format_contenders(found))


@command
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
    from pipeline.training import runs as records

    found, damaged = records.read_records(file)
    if damaged and not quiet:
        say(f"note: {count_of(damaged, 'line')} of {file} cannot be read and were left out")
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
            print_json({"diff": {name: list(pair) for name, pair in changed.items()}})
        else:
            click.echo("\n".join(f"{name}: {one} -> {two}" for name, (one, two) in changed.items()) or "no difference")
    elif as_json:
        print_json({"runs": ordered, "damaged": damaged, "sent": sent})
    else:
        click.echo(records.format_records(ordered, by))
    for where, count in sent.items():
        say(f"{where}: {count_of(count, 'run')} written")


@command
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
        print_json({**vars(written), "path": str(written.path), "plots": [str(path) for path in written.plots]})
        return
    click.echo(f"{written.path}: {written.bytes / 1e6:.1f} MB in {written.seconds:.1f} s; open it in a browser")
    say_notes(written.notes, quiet)


@command
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

    check_ending(out, ".csv")
    with FeatureStore(features) as store, progress_bar(" images", quiet) as progress:
        found = run(store, images=images, seed=seed, progress=progress)
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
    say_notes(found.notes, quiet)


@command
@click.argument("features")
@click.argument("image")
@click.option("--out", metavar="FILE.png", help="A sheet with the photographs.")
@click.option("--top-k", type=click.IntRange(1), default=12, help="How many images to find.")
@click.option("--index", "indexed", is_flag=True, help="Search an index, made when first used; for millions.")
@speed_options
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

    from pipeline.features.options import Speed
    from pipeline.features.store import FeatureStore
    from pipeline.features.vector_index import VectorIndex
    from pipeline.insight.similar import contact_sheet, find_similar

    check_ending(out, ".png")
    with FeatureStore(features) as store:
        with progress_bar(" rows", quiet) as progress:
            index = VectorIndex.of(store, progress=progress) if indexed else None
        found = find_similar(store, image, top_k, Speed(engine, batch_size, workers), index)
        notes = contact_sheet(store, image, found, out) if out else []
    if as_json:
        print_json({"image": image, "out": out, "similar": [each._asdict() for each in found], "notes": notes})
        return
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(("path", "label", "cosine"))
    table.writerows((each.path, each.label, f"{each.cosine:.4f}") for each in found)
    click.echo(lines.getvalue().encode("utf-8", "backslashreplace"), nl=False)
    if out and not quiet:
        say(f"{out}: the photographs")
        say_notes(notes, quiet)


@command
@click.argument("features")
@click.option("--out", required=True, metavar="FILE.parquet", help="For instance artifacts/photos.parquet.")
def export_vectors(features: str, out: str, as_json: bool, quiet: bool) -> None:
    """Write vectors, paths, labels and splits as a Parquet table, for embedding viewers."""
    from pipeline.insight.vectors import export_vectors as run

    rows = run(features, out)
    if as_json:
        print_json({"out": out, "rows": rows})
    else:
        click.echo(f"{out}: {count_of(rows, 'row')}")


@command
@click.argument("paths", nargs=-1, required=True, metavar="FEATURES_OR_BUNDLE...")
def verify(paths: tuple[str, ...], as_json: bool, quiet: bool) -> int:
    """Read feature files and bundles through and say what is wrong; exit code 4 if anything is."""
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
            show(error, debug=False)
            failed = error.exit_code
    if as_json:
        print_json({"sound": not failed and not any(problems.values()), "problems": problems})
    else:
        for path, found in problems.items():
            for problem in found or ["sound"]:
                click.echo(problem if problem.startswith(path) else f"{path}: {problem}")
    return IntegrityError.exit_code if any(problems.values()) else failed
