import json
import math

import numpy as np
import pytest
import sklearn.metrics as skm
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.metrics.evaluation import evaluate
from pipeline.metrics.intervals import bootstrap_intervals, wilson_interval
from pipeline.metrics.losses import label_log_losses, log_losses
from pipeline.metrics.tables import format_confusion, format_table
from pipeline.wording import display_width, printable, shorten

# Wide characters, accents, escapes, newlines, lone surrogates: all that a folder name may hold.
NAMES = st.text(max_size=90)


def example(seed, n=40, k=4):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(k), size=n)
    return rng.integers(0, k, n), p, [f"c{i}" for i in range(k)]


@st.composite
def cases(draw):
    k = draw(st.integers(2, 7))
    y, p, classes = example(draw(st.integers(0, 2**32 - 1)), n=draw(st.integers(1, 30)), k=k)
    return y, p, classes, draw(st.integers(0, k - 1))


def test_a_case_worked_by_hand():
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    metrics = evaluate(np.array([0, 0, 1, 1, 2]), p, ["a", "b", "c"], majority=1)
    assert metrics["n"] == 5
    assert metrics["accuracy"] == 3 / 5  # predicted: a c b a c
    assert metrics["confusion"] == [[1, 0, 1], [1, 1, 0], [0, 0, 1]]
    assert metrics["top_k"] == {"1": 3 / 5}  # 3 is not below 3 classes
    assert metrics["balanced_accuracy"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert metrics["log_loss"] == pytest.approx(-sum(map(math.log, [0.7, 0.1, 0.5, 0.3, 0.6])) / 5)
    assert metrics["per_class"][1] == {
        "class": "b",
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
    }
    assert metrics["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)
    assert metrics["majority"] == {"class": "b", "accuracy": 2 / 5}


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_numbers_are_those_of_scikit_learn(case):
    y, p, classes, majority = case
    k, labels, predicted = len(classes), np.arange(len(classes)), p.argmax(axis=1)
    metrics = evaluate(y, p, classes, majority=majority, top_k=range(1, k))
    assert metrics["accuracy"] == pytest.approx(skm.accuracy_score(y, predicted))
    recalls = [(predicted[y == c] == c).mean() for c in np.unique(y)]
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert metrics["log_loss"] == pytest.approx(skm.log_loss(y, p, labels=labels))
    assert metrics["macro_f1"] == pytest.approx(skm.f1_score(y, predicted, average="macro", zero_division=0))
    assert metrics["confusion"] == skm.confusion_matrix(y, predicted, labels=labels).tolist()
    for name, score in (("precision", skm.precision_score), ("recall", skm.recall_score), ("f1", skm.f1_score)):
        expected = score(y, predicted, labels=labels, average=None, zero_division=0)
        assert [row[name] for row in metrics["per_class"]] == pytest.approx(expected.tolist())
    if k > 2:
        for size in range(1, k):
            expected = skm.top_k_accuracy_score(y, p, k=size, labels=labels)
            assert metrics["top_k"][str(size)] == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_what_always_holds(case):
    y, p, classes, majority = case
    metrics = evaluate(y, p, classes, majority=majority)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    low, high = metrics["accuracy_interval"]
    assert 0 <= low <= metrics["accuracy"] <= high <= 1
    assert list(metrics["top_k"].values()) == sorted(metrics["top_k"].values())
    assert metrics["top_k"]["1"] == metrics["accuracy"]
    assert np.sum(metrics["confusion"]) == metrics["n"] == len(y)
    assert np.trace(metrics["confusion"]) == round(metrics["accuracy"] * len(y))
    assert np.sum(metrics["confusion"], axis=1).tolist() == [row["support"] for row in metrics["per_class"]]
    assert metrics["majority"]["accuracy"] == pytest.approx(metrics["per_class"][majority]["support"] / len(y))
    assert metrics["log_loss"] >= 0
    order = np.random.default_rng(0).permutation(len(y))
    shuffled = evaluate(y[order], p[order], classes, majority=majority)
    assert shuffled.pop("log_loss") == pytest.approx(metrics.pop("log_loss"))
    shuffled.pop("intervals"), metrics.pop("intervals")  # other draws
    assert shuffled == metrics


def test_balanced_accuracy_is_that_of_scikit_learn_where_all_classes_are_present():
    y, p, classes = example(0)
    expected = skm.balanced_accuracy_score(y, p.argmax(axis=1))
    assert evaluate(y, p, classes, majority=0)["balanced_accuracy"] == pytest.approx(expected)


def test_absent_classes_are_zero_and_do_not_warn():
    p = np.eye(4)[[0, 0, 1]]
    metrics = evaluate(np.array([0, 0, 0]), p, list("abcd"), majority=3)
    assert metrics["per_class"][3] == {"class": "d", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert metrics["balanced_accuracy"] == pytest.approx(2 / 3)
    assert metrics["macro_f1"] == pytest.approx(0.8 / 2)  # a and the wrongly predicted b
    assert metrics["majority"] == {"class": "d", "accuracy": 0.0}


def test_log_loss_is_clipped_where_the_truth_was_called_impossible():
    metrics = evaluate(np.array([1]), np.array([[1.0, 0.0]]), ["a", "b"], majority=0)
    assert metrics["log_loss"] == pytest.approx(-math.log(np.finfo(float).eps))
    sure = evaluate(np.array([0]), np.array([[1.0, 0.0]]), ["a", "b"], majority=0)
    assert str(sure["log_loss"]) == "0.0"


@settings(max_examples=60, deadline=None)
@given(cases())
def test_log_losses_are_those_of_scikit_learn(case):
    y, p, classes, _ = case
    p[0] = np.eye(len(classes))[0]  # clipped alike
    assert log_losses(y, p).mean() == pytest.approx(skm.log_loss(y, p, labels=range(len(classes))), rel=1e-12)
    Y = np.eye(len(classes), dtype=int)[y]
    each = [skm.log_loss(Y[:, i], p[:, i], labels=[0, 1]) for i in range(len(classes))]
    assert label_log_losses(Y, p).mean(axis=0) == pytest.approx(np.array(each), rel=1e-12)


def test_ties_go_to_the_first_class():
    p = np.full((4, 4), 0.25)
    metrics = evaluate(np.arange(4), p, list("abcd"), majority=0, top_k=(3, 1, 2, 4, 0))
    assert metrics["top_k"] == {"1": 0.25, "2": 0.5, "3": 0.75}


def test_float32_rows_that_add_up_roughly_are_accepted():
    y, p, classes = example(1)
    p32 = evaluate(y, p.astype(np.float32), classes, majority=0)
    assert p32["log_loss"] == pytest.approx(evaluate(y, p, classes, majority=0)["log_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("y", "p", "majority", "words"),
    [
        ([], np.zeros((0, 2)), 0, r"shape \(0,\).*n of at least 1"),
        ([0.5], [[0.5, 0.5]], 0, "type float64; expected .*whole numbers"),
        ([[0]], [[0.5, 0.5]], 0, r"shape \(1, 1\)"),
        ([0], [[0.5, 0.3, 0.2]], 0, r"shape \(1, 3\); expected \(1, 2\)"),
        ([0, 1], [[0.5, 0.5]], 0, r"shape \(1, 2\); expected \(2, 2\)"),
        ([2], [[0.5, 0.5]], 0, "labels run from 2 to 2 .*2 classes, 0 to 1"),
        ([-1], [[0.5, 0.5]], 0, "labels run from -1"),
        ([0], [[0.5, 0.5]], 2, "majority is 2"),
        ([0], [[0.9, 0.9]], 0, "row sums from 1.8 to 1.8; expected .*add up to 1"),
        ([0], [[np.nan, 1.0]], 0, "probabilities run from nan"),
        ([0], [[-0.5, 1.5]], 0, "probabilities run from -0.5"),
    ],
)
def test_what_does_not_fit_is_said(y, p, majority, words):
    with pytest.raises(UsageError, match=words):
        evaluate(np.array(y), np.array(p), ["a", "b"], majority=majority)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_interval_against_published_values(successes, n, low, high):
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, method 3, and symmetry.
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=6e-5)


def test_the_bounds_of_wilson_solve_the_equation_of_the_score_test():
    z = 1.959963984540054  # 97.5 % quantile of the normal distribution
    for successes, n in ((0, 1), (1, 1), (3, 7), (296, 341), (99_999, 100_000)):
        bounds = np.array(wilson_interval(successes, n))
        assert (successes / n - bounds) ** 2 == pytest.approx(z**2 * bounds * (1 - bounds) / n, abs=1e-12)
        assert 0 <= bounds[0] <= successes / n <= bounds[1] <= 1
        assert bounds[0] < bounds[1]


def test_table_names_everything():
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    p = np.c_[p, np.zeros(5)]
    table = format_table(evaluate(np.array([0, 0, 1, 1, 2]), p, ["a", "b", "c", "d"], majority=1))
    assert table.splitlines() == [
        "class  precision   recall      F1    images",
        "a          0.500    0.500   0.500         2",
        "b          1.000    0.500   0.667         2",
        "c          0.500    1.000   0.667         1",
        "d          0.000    0.000   0.000         0",
        "",
        "accuracy 0.600 on 5 images (95 % interval 0.231 to 0.882)",
        "majority baseline 0.400 (always b)",
        "balanced accuracy 0.667 (0.167 to 1.000)   macro F1 0.611 (0.133 to 1.000)",
        "log loss 1.013 (0.485 to 1.694)   top-3 1.000",
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.lists(NAMES, min_size=2, max_size=30), st.integers(60, 120), st.integers(0, 1))
def test_no_line_is_too_long_and_nothing_raw_is_printed(seed, names, width, majority):
    y, p, _ = example(seed, n=50, k=len(names))
    metrics = evaluate(y, p, names, majority=majority)
    for text in (format_table(metrics, width), format_confusion(metrics, width)):
        for line in text.split("\n"):
            assert display_width(line) <= width
            assert line.isprintable()
        text.encode()  # no lone surrogate
    assert len(format_table(metrics, width).split("\n")) >= len(names) + 5


def test_long_names_are_cut_with_an_ellipsis():
    metrics = evaluate(np.array([0, 1]), np.eye(2), ["x" * 100, "帽" * 50], majority=0)
    table = format_table(metrics, 80)
    assert "x…" in table
    assert "帽…" in table
    assert "x" * 100 not in table


def test_names_are_made_visible():
    assert printable("a\nb\t\x1b[31m\u202e\udcff") == "a\\nb\\t\\x1b[31m\\u202e\\udcff"
    assert printable("robe d'été 帽子") == "robe d'été 帽子"
    assert "\\n" in format_table(evaluate(np.array([0]), np.eye(2)[:1], ["a\nb", "c"], majority=0))


def test_shorten_counts_columns():
    assert shorten("帽子帽子", 5) == "帽子…"
    assert shorten("帽子帽子", 4) == "帽…"
    assert shorten("abc", 3) == "abc"
    assert display_width("e\u0301") == 1
    assert shorten("e\u0301e\u0301e\u0301", 2) == "e\u0301…"


@pytest.mark.parametrize(
    ("text", "columns"),
    [("한", 2), ("\u1112\u1161\u11ab", 2), ("❤\ufe0f", 2), ("🇩🇪", 2), ("\uff21\uff22", 4), ("สวัสดี", 4), ("", 0)],
)
def test_width_of_scripts_and_emoji(text, columns):
    assert display_width(text) == columns
    assert shorten(text, max(columns, 1)) == text
    assert display_width(shorten(text * 9, 7)) <= 7


def test_confusion_is_a_matrix_where_it_fits_and_pairs_where_not():
    y = np.repeat([0, 1], [30, 10])
    k = 40
    p = np.eye(k)[np.r_[np.zeros(18, int), np.full(7, 1), np.full(5, 2), np.zeros(4, int), np.ones(6, int)]]
    metrics = evaluate(y, p, [f"class {i}" for i in range(k)], majority=0)
    assert format_confusion(metrics).splitlines() == [
        "most frequent confusions: images of a true class predicted as another class",
        "7 of 30  class 0 as class 1",
        "5 of 30  class 0 as class 2",
        "4 of 10  class 1 as class 0",
    ]
    wide = format_confusion(metrics, 400).splitlines()
    assert len(wide) == 42
    assert wide[2].split() == ["1", "class", "0", "18", "7", "5", *["0"] * 37]


def test_only_the_worst_pairs_are_listed_and_the_rest_is_counted():
    y, p, classes = example(0, n=500, k=40)
    metrics = evaluate(y, p, classes, majority=0)
    lines = format_confusion(metrics).splitlines()
    wrong = np.array(metrics["confusion"]) * (1 - np.eye(40, dtype=int))
    shown = [int(line.split()[0]) for line in lines[1:-1]]
    assert shown == sorted(wrong.ravel().tolist(), reverse=True)[:10]
    assert lines[-1] == f"and {(wrong > 0).sum() - 10} other pairs with {wrong.sum() - sum(shown)} images"


def test_a_head_without_mistakes_is_told_so():
    metrics = evaluate(np.arange(40), np.eye(40), [f"c{i}" for i in range(40)], majority=0)
    assert format_confusion(metrics) == "no image was misclassified"


def test_a_terminal_too_narrow_is_refused():
    metrics = evaluate(np.array([0]), np.eye(2)[:1], ["a", "b"], majority=0)
    for layout in (format_table, format_confusion):
        with pytest.raises(UsageError, match=r"width of 30 columns is too narrow.*at least 60"):
            layout(metrics, 30)


def test_bootstrap_intervals_cover_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = {"accuracy": 0, "balanced_accuracy": 0}
    for _ in range(100):
        y = rng.integers(0, 2, 150)
        right = rng.random(150) < 0.8
        p = np.eye(2)[np.where(right, y, 1 - y)] * 0.9 + 0.05
        intervals = bootstrap_intervals(y, p, np.arange(150), resamples=200)
        for name in covered:
            low, high = intervals[name]
            covered[name] += low <= 0.8 <= high
    assert all(88 <= each <= 100 for each in covered.values()), covered


def test_bootstrap_scores_are_those_of_scikit_learn():
    """With one unit every draw is the data themselves."""
    from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

    rng = np.random.default_rng(1)
    y, p = rng.integers(0, 3, 60), rng.dirichlet(np.ones(3), 60)
    found = bootstrap_intervals(y, p, np.zeros(60, int), resamples=3)
    assert found["balanced_accuracy"] == pytest.approx([balanced_accuracy_score(y, p.argmax(1))] * 2)
    assert found["macro_f1"] == pytest.approx([f1_score(y, p.argmax(1), average="macro")] * 2)
    assert found["log_loss"] == pytest.approx([log_loss(y, p)] * 2)


def test_groups_make_intervals_wider():
    rng = np.random.default_rng(2)
    y = np.zeros(200, int)
    right = np.repeat(rng.random(20) < 0.7, 10)
    p = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
    alone = evaluate(y, p, ["a", "b"], majority=0)["accuracy_interval"]
    grouped = evaluate(y, p, ["a", "b"], majority=0, units=np.repeat(np.arange(20), 10))["accuracy_interval"]
    assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])
