"""Run the whole workflow without preparation: extract, train and predict on handwritten digits or a folder of yours."""

import sys
import time
from pathlib import Path

import click


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--images", type=click.Path(exists=True, file_okay=False), help="Your own folder of class folders.")
@click.option("--out", default="artifacts/demo", help="Folder for all output.")
@click.option("--backbone", default="mobilenetv2", help="A Keras Applications name.")
def demo(images: str | None, out: str, backbone: str) -> None:
    """Run both stages and batch prediction; print accuracy, rates and the paths of all files.

    Without --images, it uses the 1,797 handwritten digits that come with scikit-learn.
    """
    from pipeline import PipelineError

    try:
        run(Path(images) if images else None, Path(out), backbone)
    except PipelineError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


def run(images: Path | None, out: Path, backbone: str) -> None:
    """Extract, train and predict, and print a line about each step."""
    from pipeline import Bundle, Recipe, extract, predict, train_head
    from pipeline.cli import progress_bar
    from pipeline.errors import WeightsError
    from pipeline.prediction import write_predictions

    started = time.monotonic()
    photos = images or write_digits(out / "digits")
    size = None if images else 112  # the digits have 8 x 8 pixels: a larger input only takes longer
    features, folder, table = out / "features.h5", out / "head.bundle", out / "predictions.csv"
    print_row("images", photos)
    weights = "imagenet"
    try:
        Recipe.create(backbone, size=size)
    except WeightsError as error:
        weights = "random"
        print_row("weights", f"random, because {str(error).split(';')[0]}")
    with progress_bar(" images") as progress:
        store = extract(photos, features, backbone, size=size, weights=weights, overwrite=True, progress=progress)
    print_row("features", f"{features}: {len(store):,} x {store.dim}, {store.recipe}")
    print_row("", f"{store.summary.seconds:.1f} s, {store.summary.images_per_second:,.0f} images/s")

    bundle, report = train_head(store)
    bundle.save(folder)
    metrics = report.metrics[report.scored_on]
    print_row("bundle", f"{folder}: {report.head} {report.params}, {report.seconds:.1f} s")
    print_row("accuracy", f"{report.accuracy:.3f} on {metrics['n']} images of the {report.scored_on} split")
    print_row("baseline", f"{metrics['majority']['accuracy']:.3f} (always {metrics['majority']['class']!r})")

    sample = [photos / path for path in store.paths[:: max(1, len(store) // 100)]]
    prediction_started = time.monotonic()
    counts = write_predictions(predict(Bundle.load(folder), sample), table)
    seconds = time.monotonic() - prediction_started
    print_row("predictions", f"{table}: {counts.total()} images, {seconds:.1f} s from bundle and files to labels")
    print_row("done in", f"{time.monotonic() - started:.0f} s")


def write_digits(folder: Path) -> Path:
    """Write scikit-learn's bundled digits as PNG files in ten class folders."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target.tolist(), strict=True)):
        path = folder / str(label) / f"{number:04d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * (255 / 16)).astype(np.uint8)).resize((64, 64)).save(path)
    return folder


def print_row(name: str, text: object) -> None:
    """Print one line of the summary."""
    click.echo(f"{name:12s} {text}")


if __name__ == "__main__":
    demo()
