"""`runs.jsonl`: one line per training, appended by any number of processes; listed and compared."""

import datetime
import fcntl
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, UsageError
from pipeline.files import writing
from pipeline.training.report import Report
from pipeline.wording import printable, shorten

RUNS_FILE = "runs.jsonl"
SCORES = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "mean_average_precision",
    "log_loss",
    "calibration_error",
    "coverage",
)
LOWER_IS_BETTER = ("log_loss", "calibration_error", "seconds")
SORTS = ("time", "seconds", *SCORES)
_EXTRAS = {"mlflow": "mlflow", "tensorboard": "tensorboard"}


def record_of(report: Report, bundle: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the record of a training, as plain data.

    Parameters
    ----------
    report : Report
    bundle : path
        Where the bundle was saved.

    Returns
    -------
    dict
        ``time`` (UTC, ISO 8601), ``bundle`` (absolute), ``head``, ``params``, ``chosen_on``, ``scored_on``, ``scores``
        (those of `SCORES` that there are), ``interval`` of the accuracy, ``counts``, ``seconds``, ``seed``,
        ``recipes``, ``fingerprints``, ``versions``, ``trust``, ``asked`` (the options that were given).
    """
    metrics = report.metrics[report.scored_on]
    scores = {name: metrics[name] for name in SCORES if metrics.get(name) is not None}
    if "calibration" in metrics:
        scores["calibration_error"] = metrics["calibration"]["after"]["error"]
    if "abstain" in metrics:
        scores["coverage"] = metrics["abstain"]["coverage"]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "bundle": os.path.abspath(bundle),  # noqa: PTH100 - links stay as they were given
        "head": report.head,
        "params": dict(report.params),
        "chosen_on": report.chosen_on,
        "scored_on": report.scored_on,
        "scores": scores,
        "interval": metrics.get("accuracy_interval"),
        "counts": dict(report.counts),
        "seconds": report.seconds,
        **{name: report.provenance.get(name) for name in ("seed", "recipes", "fingerprints", "versions")},
        "trust": {name: report.trust.get(name) for name in ("calibration", "threshold")},
        "asked": report.provenance.get("asked"),
    }


def append_record(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Append a record to a file of runs, which other processes may append to at the same time.

    The file is locked while the line is written. If a killed process left an unfinished last line, a newline comes
    first.

    Raises
    ------
    PipelineError
        If the file cannot be written.
    """
    line = json.dumps(record, default=str).encode() + b"\n"
    target = Path(path)
    with writing(target, advice="the bundle is saved, but the run is not recorded"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)  # in mode "a" always at the end
            file.flush()
            os.fsync(file.fileno())


def read_records(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], int]:
    """Read a file of runs.

    Returns
    -------
    records : list of dict
        In the order of the lines; ``number`` is the line number, from 1.
    damaged : int
        Number of lines that are not records and were skipped.

    Raises
    ------
    PipelineError
        If the file cannot be read.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise PipelineError(
            f"cannot read {path}: {error.strerror}; train a head first, or give the {RUNS_FILE} next to your bundles"
        ) from error
    records = []
    damaged = 0
    for number, line in enumerate(lines, start=1):
        record = _parsed(line)
        if record:
            records.append({"number": number, **record})
        elif line.strip():
            damaged += 1
    return records, damaged


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        scores = record["scores"].items()
        sound = all(isinstance(value, (int, float)) for _, value in scores) and isinstance(
            record["seconds"], (int, float)
        )
        sound &= all(isinstance(record[name], str) for name in ("time", "bundle", "head", "scored_on"))
        return record if sound and isinstance(record["params"], dict) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def sorted_records(records: Sequence[Mapping[str, Any]], by: str) -> list[Mapping[str, Any]]:
    """Sort records: the best first, or the latest if `by` is ``"time"``; those without the score come last.

    Raises
    ------
    UsageError
        If `by` is none of `SORTS`.
    """
    if by not in SORTS:
        raise UsageError(f"cannot sort by {by!r}; expected one of {', '.join(SORTS)}")
    if by == "time":
        return sorted(records, key=lambda record: record["time"], reverse=True)
    sign = 1 if by in LOWER_IS_BETTER else -1

    def key(record: Mapping[str, Any]) -> tuple[bool, float]:
        value = record["seconds"] if by == "seconds" else record["scores"].get(by)
        return value is None, sign * (value or 0.0)

    return sorted(records, key=key)


def format_records(records: Sequence[Mapping[str, Any]], by: str = "accuracy", width: int = 80) -> str:
    """Format runs for a terminal, one line each; `by` is the score of the third column.

    Examples
    --------
    >>> run = {"number": 1, "time": "2026-01-02T03:04:05.678+00:00", "bundle": "/a/b.bundle", "head": "logreg",
    ...        "params": {"C": 0.1}, "scores": {"accuracy": 0.9}, "scored_on": "test", "seconds": 1.5}
    >>> print(format_records([run]))
      run  time (UTC)        accuracy  on                  s  bundle and head
        1  2026-01-02 03:04     0.900  test              1.5  b.bundle: logreg C=0.1
    """
    title = by if by in SCORES else "accuracy"
    heading = shorten(title, 17)
    column = max(8, len(heading))
    header = "  run  time (UTC)      " + heading.rjust(column + 2) + "  on                  s  bundle and head"
    lines = [shorten(header, width)]
    for record in records:
        value = record["scores"].get(title)
        score = "-" if value is None else f"{value:.3f}"
        head = " ".join([record["head"], *(f"{name}={value}" for name, value in record["params"].items())])
        start = (
            f"{record['number']:>5}  {record['time'][:16].replace('T', ' ')}{score:>{column + 2}}"
            f"  {record['scored_on'][:12]:<12}{record['seconds']:>9.1f}  "
        )
        text = printable(f"{Path(record['bundle']).name}: {head}")
        lines.append(start + shorten(text, max(width - len(start), 10)))
    return "\n".join(lines)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values that differ between two runs: both values by name, with dots for nested names.

    Examples
    --------
    >>> differences({"head": "knn", "params": {"k": 1}}, {"head": "knn", "params": {"k": 3, "p": 2}})
    {'params.k': (1, 3), 'params.p': (None, 2)}
    """
    one, two = _flat(first), _flat(second)
    names = [*one, *(name for name in two if name not in one)]
    found = {name: (one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)}
    return {name: pair for name, pair in found.items() if name != "number"}


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def to_mlflow(records: Sequence[Mapping[str, Any]], uri: str) -> int:
    """Log the runs that are new to the experiment ``twostage`` of an MLflow tracking server; return their number.

    Raises
    ------
    UsageError
        If MLflow is not installed.
    PipelineError
        If the server cannot be reached or refuses.
    """
    _need("mlflow")
    from mlflow.exceptions import MlflowException

    try:
        return _log_runs(records, uri)
    except (MlflowException, ImportError) as error:  # mlflow-skinny lacks what a database needs
        raise PipelineError(
            f"MLflow cannot use {uri}: {str(error).splitlines()[0]}; give another --to-mlflow"
        ) from error


def _log_runs(records: Sequence[Mapping[str, Any]], uri: str) -> int:
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("twostage")
    number = experiment.experiment_id if experiment else client.create_experiment("twostage")
    known = {run.data.tags.get("twostage.id") for run in client.search_runs([number], max_results=50_000)}
    fresh = [record for record in records if _identity(record) not in known]
    for record in fresh:
        moment = int(datetime.datetime.fromisoformat(record["time"]).timestamp() * 1000)
        run = client.create_run(number, start_time=moment, run_name=Path(record["bundle"]).name)
        flat = _flat({name: record.get(name) for name in ("head", "params", "seed", "recipes", "scored_on", "trust")})
        client.log_batch(
            run.info.run_id,
            metrics=[Metric(name, float(value), moment, 0) for name, value in _numbers(record).items()],
            params=[Param(name, str(value)[:500]) for name, value in flat.items()],
            tags=[RunTag("twostage.id", _identity(record)), RunTag("twostage.bundle", record["bundle"])],
        )
        client.set_terminated(run.info.run_id, end_time=moment + int(1000 * record["seconds"]))
    return len(fresh)


def to_tensorboard(records: Sequence[Mapping[str, Any]], folder: str) -> int:
    """Write runs as TensorBoard event files, one folder per run, replacing earlier ones; return their number.

    Raises
    ------
    UsageError
        If TensorBoard is not installed.
    """
    _need("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for record in records:
        target = Path(folder) / f"{record['time'][:23].replace(':', '')}-{Path(record['bundle']).name}"
        for old in target.glob("events.out.tfevents.*"):
            old.unlink()
        writer = EventFileWriter(str(target))
        moment = datetime.datetime.fromisoformat(record["time"]).timestamp()
        for name, value in _numbers(record).items():
            summary = Summary(value=[Summary.Value(tag=name, simple_value=float(value))])
            writer.add_event(Event(wall_time=moment, step=0, summary=summary))
        writer.close()
    return len(records)


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {**record["scores"], "seconds": record["seconds"]}


def _identity(record: Mapping[str, Any]) -> str:
    return f"{record['time']} {record['bundle']}"


def _need(extra: str) -> None:
    if importlib.util.find_spec(_EXTRAS[extra]) is None:
        raise UsageError(f"{extra} is not installed; run: pip install twostage-features[{extra}]")
