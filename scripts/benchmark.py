"""Compare both stages with plain Keras on the same images, as rates and ratios.

Every measurement runs in its own process. All of them are repeated `--repeat` times in turn, so that a slow minute
of the machine affects all alike; the table shows the median and the range.
"""

import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from attacks.memory import Memory

MEMORY_SECONDS = 0.1  # between samples of the memory of a measured process and its decoders
Result = dict[str, Any]


def plain_keras(images: list[str], options: Result) -> Result:
    """Run the usual Keras code: image_dataset_from_directory, preprocess_input, predict."""
    import keras

    from pipeline import BACKBONES

    size = options["size"]
    row = BACKBONES[options["backbone"]]
    width = {} if row.alpha is None else {"alpha": row.alpha}
    build = getattr(keras.applications, row.constructor)
    model = build(include_top=False, input_shape=(size, size, 3), pooling="avg", **width)
    module = sys.modules[build.__module__]
    data = keras.utils.image_dataset_from_directory(
        options["folder"], image_size=(size, size), batch_size=32, shuffle=False, labels=None, verbose=False
    )
    started = time.perf_counter()
    vectors = model.predict(data.map(module.preprocess_input), verbose=0)
    return {"rate": len(vectors) / (time.perf_counter() - started)}


def extraction(images: list[str], options: Result) -> Result:
    """Run an extraction: list, decode, encode, store; the converted network is in the cache already."""
    from pipeline import Speed, extract

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with extract(
            options["folder"],
            Path(folder) / "f.h5",
            options["backbone"],
            size=options["size"],
            precision=options["precision"],
            views=options["views"],
            speed=Speed(options["engine"]),
        ) as store:
            return {"rate": len(store) / (time.perf_counter() - started)}


def bookkeeping(images: list[str], options: Result) -> Result:
    """Extract a tree of files with fake decoding and a fake network, to measure everything else."""
    import numpy as np
    from attacks.fake import RECIPE, FakeEncoder

    from pipeline import Manifest
    from pipeline.features import extraction, image_encoder, store

    pixels = np.zeros((1, RECIPE.size, RECIPE.size, 3), np.uint8)
    part = store.block_rows(1280)  # as for the vectors of MobileNetV2
    vars(image_encoder)["Decoders"] = lambda _: contextlib.nullcontext(lambda *_: pixels)
    vars(extraction)["block_rows"] = lambda _: part
    started = time.perf_counter()
    manifest = Manifest.read(options["tree"])
    extraction.fill_store(manifest, options["out"], RECIPE, make_encoder=lambda: FakeEncoder(batch_size=32)).close()
    return {"seconds": time.perf_counter() - started}


def decode_only(images: list[str], options: Result) -> Result:
    """Decode files to pixels in one thread."""
    from pipeline.images.decode import load_pixels, read_bytes

    started = time.perf_counter()
    for path in images[:600]:
        load_pixels(read_bytes(path), options["size"])
    return {"rate": len(images[:600]) / (time.perf_counter() - started)}


def model_only(images: list[str], options: Result) -> Result:
    """Encode decoded pixels on all cores."""
    import numpy as np

    from pipeline import Recipe, Speed
    from pipeline.features.engines import make_encoder
    from pipeline.images.decode import load_pixels

    recipe = Recipe.create(options["backbone"], size=options["size"], precision=options["precision"])
    encoder = make_encoder(recipe, Speed(options["engine"]))
    batch = [load_pixels(path, recipe.size) for path in images[: encoder.batch_size]]
    pixels = np.stack(batch * 4)
    encoder.encode(pixels)
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < 5:
        encoder.encode(pixels)
        done += len(pixels)
    return {"rate": done / (time.perf_counter() - started)}


def keras_one(images: list[str], options: Result) -> Result:
    """Predict one image with plain Keras, including the time to import and load it."""
    import keras
    import numpy as np

    from pipeline import BACKBONES

    row = BACKBONES[options["backbone"]]
    build = getattr(keras.applications, row.constructor)
    width = {} if row.alpha is None else {"alpha": row.alpha}
    model = build(include_top=False, input_shape=(options["size"],) * 2 + (3,), pooling="avg", **width)
    image = keras.utils.img_to_array(keras.utils.load_img(images[0], target_size=(options["size"],) * 2))
    model.predict(sys.modules[build.__module__].preprocess_input(image[np.newaxis]), verbose=0)
    return {}


def grid_search(images: list[str], options: Result) -> Result:
    """Run GridSearchCV of scikit-learn over the race's candidates, on the same training images and folds."""
    from joblib.externals.loky import get_reusable_executor
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from pipeline.heads.classifiers import HEADS, make_head
    from pipeline.training.candidates import DEFAULT_FOLDS
    from pipeline.training.race import RACERS
    from pipeline.training.training_data import load_training_data

    data = load_training_data(options["features"])
    train, test = data.rows("train"), data.rows("test")
    folds = StratifiedKFold(DEFAULT_FOLDS, shuffle=True, random_state=0)
    searches = []
    for name in RACERS:
        last = make_head(name)[-1]
        classifier = getattr(last, "estimator", last)
        if "n_jobs" in classifier.get_params():
            classifier.set_params(n_jobs=1)  # the search uses all cores
        pipeline = make_pipeline(StandardScaler(), classifier)
        grid = {f"{type(classifier).__name__.lower()}__{key}": values for key, values in HEADS[name].search.items()}
        search = GridSearchCV(pipeline, grid, cv=folds, n_jobs=-1)
        searches.append(search.fit(data.X[train, 0], data.y[train]))
    get_reusable_executor().shutdown(wait=True)  # so that the CPU time of its processes is counted
    best = max(searches, key=lambda search: search.best_score_)
    return {"accuracy": float(best.score(data.X[test, 0], data.y[test])), "found": str(best.best_params_)}


MEASURES: dict[str, Callable[[list[str], Result], Result]] = {
    function.__name__: function
    for function in (plain_keras, extraction, bookkeeping, decode_only, model_only, keras_one, grid_search)
}
STYLES = {
    "accuracy": ".1%",
    "share": ".0%",
    "images/s": ".0f",
    "bytes": ".0f",
}  # format of a ratio, by a word in its name
RACED, SEARCHED = "train_head.py --head auto", "GridSearchCV over the same candidates"
COLUMNS = [
    # name in the table, measure, engine, precision, views
    ("plain Keras, end to end", "plain_keras", "", "", "1"),
    ("keras float32, end to end", "extraction", "keras", "float32", "1"),
    ("openvino float32, end to end", "extraction", "openvino", "float32", "1"),
    ("openvino bfloat16, end to end", "extraction", "openvino", "bfloat16", "1"),
    ("openvino float32, two views of each, end to end", "extraction", "openvino", "float32", "flip"),
    ("decode only, one thread", "decode_only", "", "", "1"),
    ("keras float32, model only", "model_only", "keras", "float32", "1"),
    ("openvino float32, model only", "model_only", "openvino", "float32", "1"),
    ("openvino bfloat16, model only", "model_only", "openvino", "bfloat16", "1"),
]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--images", type=click.Path(exists=True, file_okay=False), help="Default: $TWOSTAGE_DATA/clothing/train.")
@click.option(
    "--backbone", default="mobilenetv2", help="A Keras Applications name whose ImageNet weights are available."
)
@click.option("--size", default=224, help="Side of the input in pixels.")
@click.option("--repeat", default=3, help="Number of times each measurement is taken.")
@click.option("--out", default="artifacts/benchmark", help="Path without suffix of the .md and .json files to write.")
@click.option("--copies", default=0, help="Also measure the memory to extract this many copies of the images.")
@click.option("--paths", default=0, help="Also measure the memory and time per path, with this many tiny files.")
@click.option("--measure", hidden=True)
def benchmark(
    images: str | None, backbone: str, size: int, repeat: int, out: str, copies: int, paths: int, measure: str | None
) -> None:
    """Measure rates, start-up and memory, and write a table (Markdown and JSON)."""
    folder = images or os.path.join(os.environ.get("TWOSTAGE_DATA", ""), "clothing", "train")  # noqa: PTH118
    if not Path(folder).is_dir():
        raise click.UsageError("there is no folder of images; give --images, or set TWOSTAGE_DATA")
    files = sorted(str(path) for path in Path(folder).rglob("*.jpg"))
    if measure:
        options = json.loads(measure)
        result = MEASURES[options["measure"]](files, options)
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        result["cpu_seconds"] = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        print("RESULT" + json.dumps(result))
        return
    common = {"folder": folder, "backbone": backbone, "size": size}
    rows = run_rates(common, repeat)
    rows += run_starts(common, files, repeat)
    if copies:
        rows.append(run_memory(common, files, copies))
    if paths:
        rows += run_paths(common, paths)
    report = {"machine": machine(), "images": len(files), **common, "rows": rows, "ratios": ratios(rows)}
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps(report, indent=1))
    target.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


def child(options: Result) -> Result:
    """Take one measurement in a new process."""
    command = [sys.executable, __file__, "--images", options["folder"], "--measure", json.dumps(options)]
    started = time.perf_counter()
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        Memory(process.pid, MEMORY_SECONDS) as memory,
    ):
        stdout, stderr = process.communicate()
        seconds = time.perf_counter() - started
    lines = [line for line in stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise click.ClickException(f"{options['measure']} failed:\n{stderr[-2000:]}")
    return {"seconds": seconds, "peak_mb": memory.peak_mb, **json.loads(lines[0].removeprefix("RESULT"))}


def run_rates(common: Result, repeat: int) -> list[Result]:
    """Measure images per second, all kinds in turn; a first unmeasured round fills the caches."""
    taken: dict[str, list[Result]] = {name: [] for name, *_ in COLUMNS}
    for number in range(repeat + 1):
        for name, measure, engine, precision, views in COLUMNS:
            if number == 0 and measure != "model_only":
                continue
            print(f"{number}/{repeat} {name}", file=sys.stderr)
            options = {"measure": measure, "engine": engine, "precision": precision, "views": views}
            result = child({**common, **options})
            if number:
                taken[name].append(result)
    return [
        {
            "name": name,
            "rate": statistics.median(each["rate"] for each in results),
            "low": min(each["rate"] for each in results),
            "high": max(each["rate"] for each in results),
            "peak_mb": max(each["peak_mb"] for each in results),
        }
        for name, results in taken.items()
    ]


def run_starts(common: Result, paths: list[str], repeat: int) -> list[Result]:
    """Measure whole processes: start-up and one image, an extraction with nothing new, and trainings."""
    rows = []
    with tempfile.TemporaryDirectory() as work:
        features, bundle = f"{work}/f.h5", f"{work}/b.bundle"
        scripts = Path(__file__).parent
        size = ["--size", str(common["size"]), "--backbone", common["backbone"]]
        extract = [sys.executable, str(scripts / "extract.py"), common["folder"], "--out", features, "--quiet", *size]
        train = [sys.executable, str(scripts / "train_head.py"), features, "--out", bundle, "--quiet"]
        predict = [sys.executable, str(scripts / "predict.py"), bundle, paths[0], "--quiet"]
        timed(extract)
        timed([*train, "--param", "C=0.01"])
        one = {**common, "measure": "keras_one"}
        search = {**common, "measure": "grid_search", "features": features}
        repeats = max(repeat, 3)
        kinds: list[tuple[str, int, Callable[[], Result]]] = [
            ("one image, plain Keras", repeats, lambda: child(one)),
            ("one image, predict.py", repeats, lambda: timed(predict)),
            ("extract.py with nothing new", repeats, lambda: timed(extract)),
            ("train_head.py, logreg with its C chosen", repeats, lambda: timed(train)),
            (RACED, repeats, lambda: {**timed([*train, "--head", "auto"]), **scored(bundle)}),
            (SEARCHED, 1, lambda: child(search)),
        ]
        for name, times, measure in kinds:
            print(name, file=sys.stderr)
            results = [measure() for _ in range(times)]
            seconds = [each["seconds"] for each in results]
            rows.append(
                {
                    "name": name,
                    "seconds": statistics.median(seconds),
                    "low": min(seconds),
                    "high": max(seconds),
                    "peak_mb": max(each["peak_mb"] for each in results),
                    "cpu_seconds": statistics.median(each["cpu_seconds"] for each in results),
                    **{key: value for key, value in results[0].items() if key in ("accuracy", "found")},
                }
            )
    return rows


def scored(bundle: str) -> Result:
    """Return the accuracy and the chosen parameters that a bundle's report holds."""
    report = json.loads((Path(bundle) / "report.json").read_text("utf-8"))
    return {
        "accuracy": report["metrics"][report["scored_on"]]["accuracy"],
        "found": f"{report['head']} {report['params']}",
    }


def run_memory(common: Result, paths: list[str], copies: int) -> Result:
    """Measure the peak memory of an extraction of `copies` links to each image."""
    with tempfile.TemporaryDirectory() as work:
        for number in range(copies):
            (Path(work) / "photos" / str(number)).mkdir(parents=True)
            for index, path in enumerate(paths):
                (Path(work) / "photos" / str(number) / f"{index}.jpg").symlink_to(path)
        words = ["--out", f"{work}/f.h5", "--quiet", "--size", str(common["size"]), "--backbone", common["backbone"]]
        name = f"extract.py of {copies * len(paths):,} images"
        print(name, file=sys.stderr)
        result = timed([sys.executable, str(Path(__file__).parent / "extract.py"), f"{work}/photos", *words])
        seconds = result["seconds"]
        return {"name": name, "seconds": seconds, "low": seconds, "high": seconds, "peak_mb": result["peak_mb"]}


def run_paths(common: Result, count: int) -> list[Result]:
    """Extract `count` files, and a quarter as many: a first run, a run with nothing new, and one with 1 % new."""
    rows = []
    for files in (count // 4, count):
        with tempfile.TemporaryDirectory() as work:
            options = {**common, "measure": "bookkeeping", "tree": f"{work}/photos", "out": f"{work}/f.h5"}
            for number in range(100):
                Path(work, "photos", f"class_{number:02d}").mkdir(parents=True)
            for run, start, stop in [
                ("first run", 0, files),
                ("nothing new", files, files),
                ("1 % new", files, files + files // 100),
            ]:
                for number in range(start, stop):
                    Path(work, "photos", f"class_{number % 100:02d}", f"image_{number:09d}.jpg").write_text(str(number))
                print(f"{files} paths, {run}", file=sys.stderr)
                result = child(options)
                seconds = dict.fromkeys(("seconds", "low", "high"), result["seconds"])
                name = f"{files:,} paths without decoding and network, {run}"
                rows.append({"name": name, "run": run, "paths": stop, "peak_mb": result["peak_mb"], **seconds})
    return rows


def timed(command: list[str]) -> Result:
    """Run a command; return its wall time, peak memory and CPU time."""
    started, before = time.perf_counter(), children_seconds()
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL) as process,
        Memory(process.pid, MEMORY_SECONDS) as memory,
    ):
        status = process.wait()
        seconds = time.perf_counter() - started
    if status:
        raise click.ClickException(f"{' '.join(command)} failed")
    return {"seconds": seconds, "peak_mb": memory.peak_mb, "cpu_seconds": children_seconds() - before}


def children_seconds() -> float:
    """Return the CPU time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def ratios(rows: list[Result]) -> Result:
    """Return ratios to plain Keras, and to the bound at which no core ever waits."""
    rate = {row["name"]: row["rate"] for row in rows if "rate" in row}
    seconds = {row["name"]: row["seconds"] for row in rows if "seconds" in row}
    cores = len(os.sched_getaffinity(0))
    found: Result = {}
    for kind in ("keras float32", "openvino float32", "openvino bfloat16"):
        whole = rate[f"{kind}, end to end"]
        bound = cores / (1 / rate["decode only, one thread"] + cores / rate[f"{kind}, model only"])
        found[f"{kind}: times plain Keras"] = whole / rate["plain Keras, end to end"]
        found[f"{kind}: bound, images/s"] = bound
        found[f"{kind}: times plain Keras at the bound"] = bound / rate["plain Keras, end to end"]
        found[f"{kind}: share of the bound"] = whole / bound
    found["one image: times faster than plain Keras"] = (
        seconds["one image, plain Keras"] / seconds["one image, predict.py"]
    )
    race, search = (next(row for row in rows if row["name"] == name) for name in (RACED, SEARCHED))
    found["auto race: times faster than GridSearchCV"] = search["seconds"] / race["seconds"]
    found["auto race: times less processor time than GridSearchCV"] = search["cpu_seconds"] / race["cpu_seconds"]
    found["auto race: test accuracy"] = race["accuracy"]
    found["GridSearchCV: test accuracy"] = search["accuracy"]
    return found | path_costs(rows)


def path_costs(rows: list[Result]) -> Result:
    """Return the memory and time of each additional path."""
    found: Result = {}
    taken = [row for row in rows if "run" in row]
    for few, many in zip(taken[: len(taken) // 2], taken[len(taken) // 2 :], strict=True):
        more = many["paths"] - few["paths"]
        found[f"{few['run']}: bytes of memory for each path"] = (many["peak_mb"] - few["peak_mb"]) * 2**20 / more
        found[f"{few['run']}: microseconds for each path"] = (many["seconds"] - few["seconds"]) * 1e6 / more
    return found


def machine() -> Result:
    """Describe the machine and the versions that were measured."""
    import importlib.metadata

    names = ("keras", "tensorflow", "openvino", "numpy", "Pillow", "scikit-learn", "twostage-features")
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def markdown(report: Result) -> str:
    """Return the report as a Markdown table."""
    host = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
    lines = [
        f"{report['images']:,} photographs, {report['backbone']} at {report['size']}; {host['processor']},"
        f" {host['cores']} cores; Python {host['python']}, {versions}.",
        "",
        "| measured | median | spread | peak memory |",
        "| --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        if "rate" in row:
            value, spread = f"{row['rate']:.0f} images/s", f"{row['low']:.0f} to {row['high']:.0f}"
        else:
            value, spread = f"{row['seconds']:.2f} s", f"{row['low']:.2f} to {row['high']:.2f}"
        lines.append(f"| {row['name']} | {value} | {spread} | {row['peak_mb']:.0f} MB |")
    lines += ["", "| compared | |", "| --- | --- |"]
    for name, value in report["ratios"].items():
        style = next((style for word, style in STYLES.items() if word in name), ".1f")
        lines.append(f"| {name} | {value:{style}} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    benchmark()
