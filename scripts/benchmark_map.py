"""Measure the frame times of a report's map in Chromium, with 10,000 synthetic images, for every gesture.

Each frame gets one event (a turn of the wheel, a step of the pointer, a click), which is faster than any user. Without
a GPU, Chromium renders in software, on the same cores as the page's scripts.
"""

import hashlib
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from PIL import Image

    from pipeline import FeatureStore

CLASSES = tuple(f"class {number}" for number in range(10))
COLUMNS = 64
SCREENS = {"desk": (1280, 900), "phone": (390, 844)}
FRAMES = 120

# The script that runs before frame n of each gesture. The map has the keyboard focus, so that it gets wheel events.
GESTURES = {
    "zooming": "canvas.dispatchEvent(new WheelEvent('wheel', {...at(n), deltaY: n % 24 < 12 ? -1 : 1}))",
    "panning": "if (n === 1) { zoom(0); zoom(3); pointer('down', n); } pointer(n === LAST ? 'up' : 'move', n)",
    "hovering": "if (n === 1) zoom(0); pointer('move', n)",
    "filtering": "$('legend').children[n % 10].click()",
    "colouring": "$('colour').selectedIndex = n % 3; $('colour').dispatchEvent(new Event('change'))",
    "selecting": "if (n === 1) { $('select').click(); pointer('down', 0); }"
    " pointer(n === LAST ? 'up' : 'move', n); if (n === LAST) $('select').click()",
}
RUN = """
const done = arguments[0], LAST = %d, times = [];
canvas.setPointerCapture = () => {};  // a synthetic pointer cannot be captured
canvas.focus();
const size = canvas.getBoundingClientRect();
const at = (n) => ({clientX: size.left + size.width * (0.1 + 0.8 * n / LAST), cancelable: true, bubbles: true,
  clientY: size.top + size.height * (0.5 + 0.4 * Math.sin(n / 6)), pointerId: 1, pointerType: "mouse"});
const pointer = (what, n) => canvas.dispatchEvent(new PointerEvent("pointer" + what, at(n)));
let n = 0, last = 0;
requestAnimationFrame(function frame() {
  const now = performance.now();
  if (n) times.push(now - last);
  last = now;
  if (n++ === LAST + 1) return done(times);
  if (n <= LAST) { %s; }
  requestAnimationFrame(frame);
});
"""


def paint(rng: Any) -> "Image.Image":
    """Paint a picture with as much detail as a thumbnail of a photograph: soft colours, an object, some grain."""
    import numpy as np
    from PIL import Image

    soft = Image.fromarray(rng.integers(0, 256, (4, 3, 3), np.uint8)).resize((72, 96), Image.Resampling.BICUBIC)
    left, top, width, height = rng.integers([5, 5, 20, 30], [30, 40, 40, 50]).tolist()
    soft.paste(tuple(rng.integers(0, 256, 3).tolist()), (left, top, left + width, top + height))
    grain = rng.normal(0, 8, (96, 72, 3))
    return Image.fromarray(np.clip(np.asarray(soft) + grain, 0, 255).astype(np.uint8))


def make_store(folder: Path, images: int, seed: int = 0) -> "FeatureStore":
    """Paint images and draw their vectors from ten Gaussian clusters that overlap."""
    import numpy as np
    from attacks.fake import RECIPE

    from pipeline import FeatureStore
    from pipeline.features.store import Index, write_store
    from pipeline.images.texts import Texts

    rng = np.random.default_rng(seed)
    photos = folder / "photos"
    photos.mkdir()
    digests = []
    for number in range(images):
        path = photos / f"{number:05d}.jpg"
        paint(rng).save(path, quality=85)
        digests.append(np.frombuffer(hashlib.sha256(path.read_bytes()).digest(), np.uint8))
    labels = rng.integers(0, len(CLASSES), images, dtype=np.int32)
    vectors = rng.standard_normal((images, COLUMNS)) + 3 * np.eye(len(CLASSES), COLUMNS)[labels]
    index = Index(
        recipe=RECIPE,
        segments={"last": (0, COLUMNS)},
        paths=Texts.of(f"{number:05d}.jpg" for number in range(images)),
        digests=np.array(digests),
        sizes_mtimes=np.zeros((images, 2), np.int64),
        labels=labels,
        splits=Texts.of(rng.choice(["train", "validation", "test"], images, p=[0.7, 0.15, 0.15]).tolist()),
        groups=Texts.of([""] * images),
        classes=CLASSES,
        root=str(photos),
        skipped=(),
        created_with={},
    )
    write_store(folder / "map.h5", index, [vectors.astype(np.float32)])
    return FeatureStore(folder / "map.h5")


def make_report(folder: Path, images: int) -> Path:
    """Write the report of a quick head on synthetic images."""
    from pipeline import train_head
    from pipeline.insight.report import Options, write_report

    with make_store(folder, images) as store:
        bundle, _ = train_head(store, "nearest-centroid")
        bundle.save(folder / "map.bundle")
        return write_report(folder / "map.bundle", folder / "report.html", options=Options("pca", heat_maps=0)).path


@contextmanager
def chromium(size: tuple[int, int]) -> Iterator[Any]:
    """Start headless Chromium with a screen of this size."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        shape = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
        yield driver
    finally:
        driver.quit()


def measure(page: Path, size: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Open the page, make every gesture, and return statistics of the milliseconds between frames."""
    rows = {}
    with chromium(size) as driver:
        driver.set_script_timeout(300)
        driver.get(page.as_uri())
        load = "const t = performance.getEntriesByType('navigation')[0]; return t.loadEventEnd - t.startTime"
        rows["loading"] = {"median": driver.execute_script(load)}
        driver.execute_script("canvas.scrollIntoView({block: 'center'})")
        for name, step in GESTURES.items():
            times = driver.execute_async_script(RUN % (FRAMES, step))
            rows[name] = {
                "median": statistics.median(times),
                "p95": statistics.quantiles(times, n=20)[-1],
                "longest": max(times),
            }
        if errors := driver.get_log("browser"):
            raise click.ClickException(f"the page has errors: {errors}")
    return rows


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--images", default=10_000, help="Number of points.")
@click.option("--page", type=click.Path(exists=True, path_type=Path), help="An existing report to measure instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def benchmark_map(images: int, page: Path | None, as_json: bool) -> None:
    """Print the milliseconds between frames while the map of a report is moved."""
    with tempfile.TemporaryDirectory() as folder:
        if page is None:
            print(f"painting {images:,} images", file=sys.stderr)
            page = make_report(Path(folder), images)
        size = page.stat().st_size
        found = {name: measure(page.resolve(), shape) for name, shape in SCREENS.items()}
    if as_json:
        print(json.dumps({"bytes": size, **found}))
        return
    print(f"{size / 1e6:.1f} MB; milliseconds between frames\n")
    print("| | " + " | ".join(f"{name}, median | 95 % | longest" for name in found) + " |")
    print("| --- |" + " --- |" * 3 * len(found))
    for gesture in ("loading", *GESTURES):
        cells = [found[screen][gesture].get(key) for screen in found for key in ("median", "p95", "longest")]
        print(f"| {gesture} | " + " | ".join("" if cell is None else f"{cell:.0f}" for cell in cells) + " |")


if __name__ == "__main__":
    benchmark_map()
