"""The commands as a user types them: output, exit codes, messages, speed of --help."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import make_index, paint

from pipeline import cli
from pipeline.features.store import write_store
from pipeline.files import locked
from pipeline.training import race as racing

SCRIPTS = Path(__file__).parent.parent / "scripts"


def test_extract_says_what_it_did(run, photos, tmp_path):
    words = ["extract", photos, "--out", tmp_path / "f.h5", "--weights", "random", "--size", 32]
    code, out, err = run(*words)
    assert code == 0
    assert out.splitlines()[0] == "15 images: 15 stored (15 extracted, 0 reused), 0 skipped, 0 dropped"
    assert "f.h5: 15 x 3 float32 in" in out
    assert "recipe: mobilenetv2 avg-pooled at 32 px squash, weights random:0" in err
    code, out, err = run(*words, "--json")
    data = json.loads(out)
    assert (data["extracted"], data["reused"], data["shape"]) == (0, 15, [15, 3])
    code, out, err = run(*words, "--quiet")
    assert err == ""


def test_bad_images_set_the_exit_code(run, photos, tmp_path):
    for i in range(3):
        (photos / f"ant/bad{i}.jpg").write_text("no")
    words = ["extract", photos, "--out", tmp_path / "f.h5", "--weights", "random", "--size", 32]
    code, out, err = run(*words)
    assert code == 3
    assert "15 stored" in out
    assert "skipped 'ant/bad0.jpg': not-an-image" in err
    assert "error: 3 of 18 images could not be used, more than --max-bad 0.05 allows; the others were processed" in err
    assert run(*words, "--max-bad", 0.2)[0] == 0


def test_train_head_prints_the_table_and_the_baseline(run, made):
    features, bundle, _ = made
    code, out, _ = run("train-head", features, "--out", bundle, "--head", "lda", "--cv", 2)
    assert code == 0
    assert "majority baseline" in out
    assert max(map(len, out.splitlines())) <= 80 or str(bundle) in out
    code, out, _ = run("train-head", features, "--out", bundle, "--json", "--param", "C=0.5")
    data = json.loads(out)
    assert data["params"] == {"C": 0.5}
    assert 0 <= data["accuracy"] <= 1
    assert json.loads((bundle / "report.json").read_text())["head"] == "logreg"


def test_a_race_from_the_command_line(run, made, monkeypatch):
    from pipeline import Bundle

    monkeypatch.setattr(racing, "RACERS", ("logreg", "ridge", "knn"))
    features, bundle, _ = made
    code, out, err = run("train-head", features, "--out", bundle, "--head", "auto", "--budget", "1m", "--curve")
    assert code == 0, err
    assert "candidate" in out
    assert "training images  a class" in out
    assert "note: raced" in err
    assert Bundle.load(bundle).head_name in racing.RACERS
    code, out, _ = run("train-head", features, "--out", bundle, "--head", "auto", "--json", "--budget", "90")
    data = json.loads(out)
    assert {"accuracy_sd", "fit_seconds", "folds"} <= set(data["candidates"][0])
    code, _, err = run("train-head", features, "--out", bundle, "--head", "auto", "--budget", "soon")
    assert code == 2
    assert "'soon' is not a duration; give seconds or minutes, such as 60s or 5m" in err
    code, _, err = run("train-head", features, "--out", bundle, "--average-views")
    assert (code, "extract with --views first" in err) == (2, True)


def test_predict(run, made, tmp_path):
    features, bundle, photos = made
    code, out, _ = run("predict", bundle, photos / "bee", photos / "ant" / "0.png", "--quiet")
    assert code == 0
    assert out.splitlines()[0] == "path,status,label,probability"
    assert [line.split(",")[2] for line in out.splitlines()[1:]] == ["bee"] * 5 + ["ant"]
    _, out, _ = run("predict", bundle, features, "--out", tmp_path / "p.jsonl", "--json", "--top-k", 3)
    assert json.loads(out)["predicted"] == 15
    code, out, err = run("predict", bundle, "-", stdin=f"{photos}/cow/1.png\n{photos}/none.png\n")
    assert code == 3
    assert [line.split(",")[1].split(":")[0] for line in out.splitlines()[1:]] == ["ok", "missing"]
    assert "1 predicted, 1 bad" in err
    code, _, err = run("predict", bundle, features, "--json")
    assert (code, err.strip()) == (2, "error: --json and --out - both write to standard output; name a file with --out")


def test_verify(run, made):
    features, bundle, _ = made
    code, out, _ = run("verify", features, bundle)
    assert (code, out) == (0, f"{features}: sound\n{bundle}: sound\n")
    features.write_bytes(features.read_bytes()[:-50])
    (bundle / "report.json").write_text("{}")
    code, out, _ = run("verify", features, bundle)
    assert code == 4
    assert "f.h5 is damaged" in out
    assert "report.json has changed since the training" in out
    code, out, _ = run("verify", features, bundle, "--json")
    assert json.loads(out)["sound"] is False


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["extract", "nowhere", "--out", "f.h5"], 1, "'nowhere' does not exist: give a folder"),
        (["extract", "{photos}", "--out", "f.h5", "--backbone", "vgg61"], 2, "did you mean vgg19 or vgg16"),
        (["extract", "{photos}"], 2, "Missing option '--out'"),
        (["predict", "b.bundle", ""], 1, "b.bundle is not a bundle"),
        (["extract", "", "--out", "f.h5"], 1, "the path is empty: give a folder"),
        (["train-head", "none.h5", "--out", "b"], 1, "cannot read the feature file none.h5: No such file"),
        (["train-head", "none.h5", "--out", "b", "--head", "ridgy"], 2, "did you mean ridge"),
        (["predict", "none.bundle", "x.jpg"], 1, "none.bundle is not a bundle: it has no bundle.json"),
        (["verify", "none.h5"], 1, "No such file"),
    ],
)
def test_errors_are_one_line(run, photos, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    result, out, err = run(*[word.format(photos=photos) for word in words])
    assert (result, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    if "Missing" not in message:
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_another_recipe_and_another_writer(run, made):
    features, _, photos = made
    words = ["extract", photos, "--out", features, "--weights", "random", "--backbone", "mobilenet"]
    code, _, err = run(*words, "--size", 64)
    assert code == 2
    assert "size 64 instead of 32" in err
    assert "--overwrite" in err
    with locked(features):
        code, _, err = run(*words, "--size", 32)
    assert code == 5
    assert f"written by process {os.getpid()}" in err


def test_damage_is_exit_4(run, made):
    features, bundle, photos = made
    raw = bytearray(features.read_bytes())
    raw[300] ^= 4
    features.write_bytes(raw)
    again = ["extract", photos, "--out", features, "--weights", "random"]
    for words in (["train-head", features, "--out", bundle], again):
        code, _, err = run(*words)
        assert code == 4
        assert str(features) in err


def test_debug_shows_the_traceback(run):
    code, _, err = run("predict", "none.bundle", "x.jpg", "--debug")
    assert code == 1
    assert "Traceback" in err
    assert "error: none.bundle is not a bundle" in err


def test_an_interrupt_says_how_to_go_on(run, monkeypatch, photos, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.features.extraction.fill_store", interrupted)
    code, _, err = run("extract", photos, "--out", tmp_path / "f.h5", "--weights", "random")
    assert code == 130
    assert "run the same command again to continue" in err


SCRIPT_NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_help_is_quick_and_imports_nothing_heavy(name):
    """The bound of half a second is checked on the imports, which are what it is made of, and generously on time."""
    command = [sys.executable, "-X", "importtime", str(SCRIPTS / f"{name}.py"), "--help"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 5
    assert "Usage" in done.stdout
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {
        "tensorflow",
        "keras",
        "sklearn",
        "scipy",
        "h5py",
        "skops",
        "pyarrow",
        "PIL",
        "numpy",
        "matplotlib",
        "jinja2",
        "cleanlab",
    }


def test_scripts_and_the_console_command_are_the_same():
    assert set(cli.main.commands) == {
        "audit", "compare", "export-vectors", "extract", "finetune", "predict", "report", "runs", "similar",
        "train-head", "verify",
    }  # fmt: skip
    for name in cli.main.commands:
        text = (SCRIPTS / f"{name.replace('-', '_')}.py").read_text()
        assert f"from pipeline.cli import {name.replace('-', '_')}" in text
    done = subprocess.run(
        [Path(sys.executable).parent / "twostage", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("twostage, version ")


def test_logreg_never_imports_tensorflow(tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    index = make_index([f"{i}" for i in range(40)], 3, labels=(np.arange(40) % 2).astype(np.int32), splits=[""] * 40)
    write_store(tmp_path / "f.h5", index, [rng.normal(size=(40, 3)).astype(np.float32)])
    code = (
        "import sys; from pipeline.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'sklearn' in sys.modules and not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    words = ["train-head", str(tmp_path / "f.h5"), "--out", str(tmp_path / "b")]
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)


def test_a_second_run_never_imports_keras(data, tmp_path):
    environment = os.environ | {"KERAS_HOME": str(data / "keras_home")}
    (tmp_path / "p").mkdir()
    for file in sorted((data / "clothing" / "validation" / "hat").iterdir())[:3]:
        shutil.copy(file, tmp_path / "p")
    words = ["extract", tmp_path / "p", "--out", tmp_path / "f.h5", "--backbone", "mobilenet_0.25", "--size", "128"]
    code = (
        "import sys; from pipeline.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, *map(str, words)]
    first = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    second = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "(3 extracted, 0 reused)" in first.stdout
    assert "(0 extracted, 3 reused)" in second.stdout
    assert "0 []" in second.stdout


def test_odd_images_of_the_data_folder(data, run, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(data / "odd_images" / "pngsuite", folder, ignore=shutil.ignore_patterns("*README*"))
    code, out, _ = run("extract", folder, "--out", tmp_path / "f.h5", "--weights", "random", "--json")
    summary = json.loads(out)
    assert code == 3
    assert (summary["stored"], summary["skipped"]) == (161, 14)


def test_names_that_are_not_utf8(run, photos, tmp_path):
    odd = os.fsdecode(b"caf\xe9\n<img onerror=x>.png")
    paint(photos / "ant" / odd, (3, 3, 7))
    (photos / "ant" / os.fsdecode(b"bad\xff.png")).write_text("x")
    features, bundle = tmp_path / "f.h5", tmp_path / "b"
    code, _, err = run("extract", photos, "--out", features, "--weights", "random", "--size", 32, "--max-bad", 1)
    assert code == 0
    assert "bad\\udcff.png" in err
    assert run("train-head", features, "--out", bundle, "--head", "lda", "--cv", 2)[0] == 0
    assert run("predict", bundle, photos, "--out", tmp_path / "p.jsonl", "--max-bad", 1)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert f"{photos}/ant/{odd}" in [row["path"] for row in rows]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--param", "C=abc"], 2, "head 'logreg': The 'C' parameter of LogisticRegression must be a float"),
        (["--param", "C=-1"], 2, "must be a float in the range"),
        (["--seed", "-1"], 2, "seed -1 is out of range; give a whole number from 0 to 4294967295"),
        (["--head", "os.abort"], 2, "'os.abort' is not a scikit-learn classifier"),
        (["--head", "sys.exit"], 2, "'sys.exit' is not a scikit-learn classifier"),
        (["--cv", "1000"], 1, "too few for 1000 folds; add images, or leave out --cv"),
        (["--out", ""], 2, "'' names no folder"),
    ],
)
def test_values_that_a_head_cannot_take(run, made, words, code, message):
    features, bundle, _ = made
    result, out, err = run("train-head", features, "--out", bundle, "--quiet", *words)
    assert (result, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_solver_that_does_not_converge_is_a_note(run, made):
    features, bundle, _ = made
    code, _, err = run("train-head", features, "--out", bundle, "--param", "max_iter=1", "--param", "C=1.0")
    assert code == 0
    assert "note: logreg: lbfgs failed to converge" in err


def test_outputs_that_would_cost_something_dear(run, made, tmp_path):
    features, bundle, photos = made
    paint(tmp_path / "holiday.jpg", (1, 2, 3))
    before = (tmp_path / "holiday.jpg").read_bytes()
    words = ["--weights", "random", "--size", 32, "--backbone", "mobilenet"]
    code, _, err = run("extract", photos, "--out", tmp_path / "holiday.jpg", "--overwrite", *words)
    assert code == 2
    assert "holiday.jpg is not a feature file, so it is not overwritten" in err
    assert (tmp_path / "holiday.jpg").read_bytes() == before
    code, _, err = run("extract", photos / "ant", "--out", features, *words)
    assert code == 2
    assert "none of the 15 images in" in err
    assert "check the folder" in err
    assert run("extract", photos / "ant", "--out", features, "--overwrite", *words)[0] == 0
    table = tmp_path / "new.csv"
    table.write_text(f"path\n{photos}/ant/0.png\n")
    code, _, err = run("predict", bundle, table, "--out", table)
    assert code == 2
    assert "is one of the inputs; name another file" in err
    assert table.read_text().startswith("path\n")


@pytest.mark.parametrize("out", ["", ".", "/proc/x.h5"])
def test_places_where_no_file_can_be(run, photos, out):
    code, _, err = run("extract", photos, "--out", out, "--weights", "random", "--size", 32)
    assert code in (1, 2)
    assert err.startswith("error: ")
    assert "fault of twostage" not in err


def test_a_failure_prints_no_header(run, made, tmp_path):
    (tmp_path / "empty").mkdir()
    code, out, err = run("predict", made[1], tmp_path / "empty")
    assert (code, out) == (1, "")
    assert "no images in" in err


def test_verify_goes_on_after_a_missing_file(run, made):
    code, out, err = run("verify", "none.h5", made[0])
    assert (code, out) == (1, f"{made[0]}: sound\n")
    assert "none.h5: No such file" in err


def test_an_absurd_batch_is_refused(run, photos, tmp_path):
    words = ["extract", photos, "--out", tmp_path / "f.h5", "--weights", "random", "--size", 224]
    code, _, err = run(*words, "--batch-size", 100000)
    assert code == 2
    assert "batch size 100000 needs too much memory at 224 px; give 1 to 1024" in err


def test_the_help_of_train_head_lists_every_head(run):
    from pipeline.heads.classifiers import AUTO, HEADS

    _, text, _ = run("train-head", "--help")
    listed = re.search(r"Heads: (.*?)\n\n", text, re.DOTALL)[1]
    assert {name.split(" ")[0] for name in re.split(r",\s+", listed.strip())} == {AUTO, *HEADS}
