"""The race of feature files, layers and joins."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import make_store

from pipeline import cli
from pipeline.errors import PipelineError, TrainingError, UsageError, WeightsError
from pipeline.features.store import write_store
from pipeline.heads.classifiers import make_head
from pipeline.metrics.transferability import logme
from pipeline.training import comparison
from pipeline.training.comparison import Contender, compare, format_contenders, measure_cost, plot_contenders
from pipeline.training.training_data import load_training_data
from pipeline.wording import display_width


@pytest.fixture
def files(tmp_path, monkeypatch):
    """One file with clear vectors of two layers, one with noisy ones whose cost is not known."""
    monkeypatch.setattr(comparison, "measure_cost", lambda store: 2.5 if store.path.stem == "good" else None)
    good = make_store(tmp_path / "good.h5", n=300, dim=6, noise=0.6)
    index = dataclasses.replace(good.index, segments={"early": (0, 1), "last": (1, 6)})
    write_store(tmp_path / "good.h5", index, [good.features])
    poor = make_store(tmp_path / "poor.h5", n=300, dim=4, noise=4.0, seed=1)
    return [str(tmp_path / "good.h5"), str(poor.path)]


def test_the_race(files):
    seen = []
    found = compare(files, progress=lambda *each: seen.append(each))
    assert {each.name: each.columns for each in found} == {
        "good": 6,
        "good: early": 1,
        "good: last": 5,
        "poor": 4,
        "good + poor": 10,
    }
    accuracies = [each.accuracy for each in found]
    assert accuracies == sorted(accuracies, reverse=True)
    by_name = {each.name: each for each in found}
    assert by_name["good"].accuracy > by_name["poor"].accuracy + 0.3
    assert by_name["good"].logme > by_name["good: last"].logme > by_name["poor"].logme
    assert {name: each.milliseconds for name, each in by_name.items()} == {
        "good": 2.5,
        "good: early": 2.5,
        "good: last": 2.5,
        "poor": None,
        "good + poor": None,
    }
    assert seen[-1] == (5, 5)


def test_the_numbers_are_those_of_the_head(files):
    found = {each.name: each for each in compare(files[:1], head="lda", join="none")}["good: last"]
    data = load_training_data(files[0])
    train, validation = data.rows("train"), data.rows("validation")
    X = data.X[:, 0, 1:6]
    head = make_head("lda").fit(X[train], data.y[train])
    assert found.accuracy == (head.predict(X[validation]) == data.y[validation]).mean()
    size = np.sqrt((X[train].astype(float) ** 2).mean(axis=0))
    assert found.logme == pytest.approx(logme(X[train] / size, data.y[train]), abs=1e-9)


def test_joins(files, tmp_path):
    third = make_store(tmp_path / "third.h5", n=300)

    def names(join):
        return sorted(each.name for each in compare([*files, third], head="nearest-centroid", join=join))

    alone = ["good", "good: early", "good: last", "poor", "third"]
    assert names("none") == alone
    assert names("all") == sorted([*alone, "good + poor + third"])
    assert names("pairs") == sorted([*alone, "good + poor", "good + third", "poor + third", "good + poor + third"])


def test_wrong_requests(files, tmp_path):
    with pytest.raises(UsageError, match="join 'some' is unknown; expected one of none, pairs, all"):
        compare(files, join="some")
    with pytest.raises(UsageError, match="unknown head 'nought'"):
        compare(files, head="nought")
    result = CliRunner().invoke(cli.main, ["compare", *map(str, files), "--head", "auto"])
    assert (result.exit_code, result.stderr) == (
        2,
        "error: head 'auto' cannot compare vectors; name one head to fit on all of them, such as logreg\n",
    )
    store = make_store(tmp_path / "t.h5", splits=["train"] * 90)
    with pytest.raises(TrainingError, match="cannot compare on 90 training images and 0 validation images"):
        compare([store])


def test_table_fits(files):
    found = compare(files)
    lines = format_contenders(found).splitlines()
    assert len(lines) == 6
    assert lines[0].split() == ["vectors", "columns", "LogME", "accuracy", "95", "%", "interval", "ms/image"]
    assert all(display_width(line) == display_width(lines[0]) for line in lines)
    long = [dataclasses.replace(found[0], name="帽" * 90, milliseconds=123.456)]
    assert max(display_width(line) for line in format_contenders(long).splitlines()) <= 80


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_plot(files, tmp_path, suffix):
    path = plot_contenders(compare(files), tmp_path / "new" / f"race{suffix}")
    assert path.stat().st_size > 2000
    if suffix == ".svg":
        assert "good: last" in path.read_text()


def test_what_cannot_be_drawn(tmp_path):
    unknown = [Contender("a", 3, 0.1, 0.5, (0.4, 0.6), None)]
    with pytest.raises(UsageError, match="the cost of no feature file is known, so there is nothing to draw"):
        plot_contenders(unknown, tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"cannot draw 'a\.txt'; expected a name that ends in \.png, \.svg or \.pdf"):
        plot_contenders(unknown, "a.txt")
    (tmp_path / "file").touch()
    known = [dataclasses.replace(unknown[0], milliseconds=1.0)]
    with pytest.raises(PipelineError, match=r"cannot write .*; choose another --plot"):
        plot_contenders(known, tmp_path / "file" / "a.png")


def test_the_command(files, tmp_path):
    out, plot = tmp_path / "race.json", tmp_path / "race.png"
    result = CliRunner().invoke(cli.main, ["compare", *files, "--out", str(out), "--plot", str(plot), "--join", "all"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("vectors")
    written = json.loads(out.read_text())
    assert written["contenders"][0]["name"] == result.stdout.splitlines()[1].split("  ")[0].strip()
    assert plot.stat().st_size > 2000
    result = CliRunner().invoke(cli.main, ["compare", *files, "--json", "--quiet"])
    assert len(json.loads(result.stdout)["contenders"]) == 5


@pytest.mark.usefixtures("fake_engine")
def test_the_cost_is_measured_where_images_and_network_are_at_hand(photos, store):
    assert 0 < measure_cost(store) < 1000
    (photos / "ant" / "0.png").write_bytes(b"no longer an image")
    assert measure_cost(store) is None
    for path in photos.rglob("*.png"):
        path.unlink()
    assert measure_cost(store) is None


def test_without_the_network_there_is_no_cost(store, monkeypatch):
    def absent(*_):
        raise WeightsError("the weights are gone")

    monkeypatch.setattr(comparison, "make_encoder", absent)
    assert measure_cost(store) is None
