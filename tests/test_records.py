"""runs.jsonl: whole lines from many processes, read back, sorted, compared, sent elsewhere."""

import json
import multiprocessing

import pytest
from click.testing import CliRunner
from helpers import make_store

from pipeline import cli
from pipeline.errors import PipelineError, UsageError
from pipeline.training import runs as records
from pipeline.training.runs import append_record, differences, format_records, read_records, sorted_records
from pipeline.wording import display_width


def run(number, accuracy=0.5, head="knn", **params):
    return {
        "time": f"2026-01-{number:02}T03:04:05.678+00:00",
        "bundle": f"/somewhere/{number}.bundle",
        "head": head,
        "params": params,
        "scored_on": "test",
        "scores": {"accuracy": accuracy, "log_loss": 1 - accuracy},
        "seconds": 10.0 - number,
    }


def _append_many(path, who):
    for i in range(50):
        append_record(path, {**run(1 + i % 28), "who": who, "padding": "x" * 5000})


def test_lines_of_many_processes_stay_whole(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(path, who)) for who in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    found, damaged = read_records(path)
    assert (len(found), damaged) == (150, 0)
    assert sorted({each["who"] for each in found}) == [0, 1, 2]


def test_a_line_cut_off_spoils_no_other(tmp_path):
    path = tmp_path / "runs.jsonl"
    append_record(path, run(1))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    append_record(path, run(2))
    path.write_bytes(path.read_bytes() + b'\xff\xfe\n[1]\n{"scores": 3}\n\n')
    found, damaged = read_records(path)
    assert [each["number"] for each in found] == [1, 3]
    assert damaged == 4
    with pytest.raises(PipelineError, match=r"cannot read .*gone: No such file.*; train a head first, or give the"):
        read_records(tmp_path / "gone")
    with pytest.raises(PipelineError, match="the bundle is saved, but the run is not recorded"):
        append_record(path / "below", run(1))


def test_sorting():
    runs = [run(1, 0.5), run(2, 0.9), run(3, 0.7)]
    runs.append({**run(4), "scores": {}})

    def order(by):
        return [int(each["time"][8:10]) for each in sorted_records(runs, by)]

    assert order("accuracy") == [2, 3, 1, 4]
    assert order("log_loss") == [2, 3, 1, 4]
    assert order("seconds") == [4, 3, 2, 1]
    assert order("time") == [4, 3, 2, 1]
    with pytest.raises(UsageError, match="cannot sort by 'beauty'; expected one of time, seconds, accuracy"):
        sorted_records(runs, "beauty")


def test_differences_are_named_with_both_values():
    one, two = run(1, 0.5, C=1), run(1, 0.6, C=1, gamma=2)
    assert differences(one, two) == {
        "params.gamma": (None, 2),
        "scores.accuracy": (0.5, 0.6),
        "scores.log_loss": (0.5, 0.4),
    }
    assert differences(one, one) == {}


def test_the_table_fits_a_terminal():
    runs = [{"number": i, **run(i, head="h" * 50, C="帽" * 40)} for i in range(1, 4)]
    runs[0]["scored_on"] = "cross-validation"
    for by in records.SORTS:
        assert max(display_width(line) for line in format_records(runs, by).splitlines()) <= 80


def test_each_training_is_recorded_and_listed(tmp_path):
    store = make_store(tmp_path / "f.h5")

    def invoke(*words):
        return CliRunner().invoke(cli.main, [str(word) for word in words])

    for head, name in (("lda", "one"), ("knn", "two")):
        result = invoke("train-head", store.path, "--out", tmp_path / "a" / f"{name}.bundle", "--head", head)
        assert result.exit_code == 0, result.output
    path = tmp_path / "a" / "runs.jsonl"
    first, second = read_records(path)[0]
    assert (first["head"], second["head"]) == ("lda", "knn")
    assert first["bundle"] == str(tmp_path / "a" / "one.bundle")
    assert set(first["scores"]) >= {"accuracy", "log_loss", "calibration_error"}
    assert first["seed"] == 0
    assert first["versions"]["numpy"]
    assert len(first["fingerprints"][0]) == 64
    listed = invoke("runs", path, "--sort", "accuracy")
    assert listed.exit_code == 0, listed.output
    assert len(listed.stdout.splitlines()) == 3
    assert len(json.loads(invoke("runs", path, "--json").stdout)["runs"]) == 2
    diff = invoke("runs", path, "--diff", 1, 2)
    assert "head: lda -> knn" in diff.stdout
    assert json.loads(invoke("runs", path, "--diff", 1, 2, "--json").stdout)["diff"]["head"] == ["lda", "knn"]
    wrong = invoke("runs", path, "--diff", 1, 7)
    assert wrong.exit_code == 2
    assert "has no run 7; it has 2 runs, see the first column" in wrong.stderr
    path.write_bytes(path.read_bytes() + b"{")
    assert "note: 1 line of" in invoke("runs", path).stderr
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert invoke("runs", empty, "--diff", 1, 2).exit_code == 2
    assert invoke("runs", empty).exit_code == 0


@pytest.mark.parametrize("extra", ["mlflow", "tensorboard"])
def test_what_is_not_installed_is_said(extra, monkeypatch):
    monkeypatch.setattr(records.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=rf"{extra} is not installed; run: pip install twostage-features\[{extra}\]"):
        getattr(records, f"to_{extra}")([], "x")


@pytest.mark.filterwarnings("ignore")  # those of the other package
def test_mlflow(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    uri = (tmp_path / "mlruns").as_uri()
    runs = [run(1, 0.5, C=1), run(2, 0.75)]
    assert records.to_mlflow(runs, uri) == 2
    assert records.to_mlflow([*runs, run(3)], uri) == 1  # the first two are there
    client = MlflowClient(tracking_uri=uri)
    logged = client.search_runs([client.get_experiment_by_name("twostage").experiment_id])
    assert sorted(each.data.metrics["accuracy"] for each in logged) == [0.5, 0.5, 0.75]
    assert {each.data.params.get("params.C") for each in logged} == {None, "1"}
    with pytest.raises(PipelineError, match=r"MLflow cannot use gopher:.*; give another --to-mlflow"):
        records.to_mlflow(runs, "gopher://nowhere")


@pytest.mark.filterwarnings("ignore")
def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        assert records.to_tensorboard([run(1, 0.5), run(2, 0.75)], str(tmp_path)) == 2
    found = {}
    for folder in sorted(tmp_path.iterdir()):
        assert len(list(folder.iterdir())) == 1
        events = EventAccumulator(str(folder))
        events.Reload()
        found[folder.name.split("-")[-1]] = [each.value for each in events.Scalars("accuracy")]
    assert found == {"1.bundle": [0.5], "2.bundle": [0.75]}
