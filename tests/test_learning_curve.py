"""The learning curve: nested parts, a power law, and refusing to guess."""

import itertools
import json

import numpy as np
import pytest
from helpers import make_data, make_store

from pipeline.training.fitting import Fitter
from pipeline.training.learning_curve import _part, extrapolate, format_curve, learning_curve
from pipeline.training.single_label import train_head

SIZES = np.array([100, 200, 400, 800, 1600])


def draws_of(errors, images=1000, seed=0):
    rng = np.random.default_rng(seed)
    return rng.binomial(images, errors, (300, len(errors))) / images


def test_a_power_law_is_found_again():
    errors = 0.05 + 2.0 * SIZES**-0.5
    law, reason = extrapolate(SIZES, errors, draws_of(errors))
    assert reason == ""
    np.testing.assert_allclose(law.best, [0.05, 2.0, 0.5], rtol=0.05)
    assert law.error(3200) == pytest.approx(0.05 + 2.0 * 3200**-0.5, abs=1e-3)
    low, high = np.percentile(law.band(3200), [2.5, 97.5])
    assert low < law.error(3200) < high
    said = law.verdict(1600, errors[-1], draws_of(errors)[:, -1])
    assert said.startswith("more images may help: twice as many images would add about 0.01")
    law, _ = extrapolate(SIZES, errors, draws_of(errors, 50_000))
    said = law.verdict(1600, errors[-1], draws_of(errors, 50_000)[:, -1])
    assert said.startswith("more images would help: twice as many images would add about 0.015")
    # What is said is what the table shows: the gain over the measured point, not over the law at that point.
    assert "add about 0.035" in law.verdict(1600, errors[-1] + 0.02, draws_of(errors, 50_000)[:, -1] + 0.02)


def test_a_flat_curve_says_that_more_would_hardly_help():
    errors = np.full(5, 0.1)
    law, _ = extrapolate(SIZES, errors, draws_of(errors, 20_000))
    said = law.verdict(1600, errors[-1], draws_of(errors, 20_000)[:, -1])
    assert said.startswith("more images would hardly help")


def test_points_that_follow_no_law_are_not_extrapolated():
    errors = np.array([0.1, 0.3, 0.1, 0.3, 0.1])
    law, reason = extrapolate(SIZES, errors, draws_of(errors))
    assert law is None
    assert "no power law fits" in reason
    assert extrapolate(SIZES[:3], errors[:3], draws_of(errors)[:, :3])[1].startswith(
        "3 sizes are too few, 4 are needed"
    )
    few = np.array([0.6, 0.5, 0.4, 0.3, 0.2])
    assert "could be anything from" in extrapolate(SIZES, few, draws_of(few, 12))[1]


def test_parts_are_nested_stratified_and_keep_groups():
    data = make_data(n=120, groups=[f"g{i // 4}" for i in range(120)])
    fitter = Fitter(data, seed=3)
    rows = np.arange(120)
    parts = [_part(fitter, rows, share, 0) for share in (1 / 16, 1 / 4, 1 / 2, 1.0)]
    for small, large in itertools.pairwise(parts):
        assert set(small) <= set(large)
    assert len(parts[-1]) == 120
    for part in parts:
        assert set(data.y[part]) == {0, 1, 2}
        assert set(data.units[part]).isdisjoint(data.units[np.setdiff1d(rows, part)])
    assert set(_part(fitter, rows, 1 / 4, 0)) != set(_part(fitter, rows, 1 / 4, 1))


@pytest.mark.parametrize("validation", [True, False])
def test_more_images_are_better_and_the_points_say_so(validation):
    splits = ["train"] * 400 + ["validation" if validation else "train"] * 200
    curve = learning_curve(Fitter(make_data(n=600, dim=30, noise=2.5, splits=splits)), "logreg", {"C": 0.01})
    assert curve["scored_on"] == ("validation" if validation else "cross-validation")
    json.dumps(curve, allow_nan=False)
    accuracies = [each["accuracy"] for each in curve["points"]]
    assert len(accuracies) == 5
    assert accuracies[-1] > accuracies[0] + 0.05
    assert curve["points"][-1]["images"] == 400
    for each in curve["points"]:
        assert each["interval"][0] <= each["accuracy"] <= each["interval"][1]
        assert each["per_class"] == pytest.approx(each["images"] / 3, abs=0.1)
    assert curve["verdict"]
    assert max(map(len, format_curve(curve).splitlines())) <= 80


def test_a_small_file_gets_its_points_and_no_guess(tmp_path):
    _, report = train_head(make_store(tmp_path / "f.h5", n=12), curve=True)
    assert report.curve["fit"] is None
    assert report.curve["extrapolation"] == []
    assert report.curve["verdict"].startswith("no extrapolation: ")
    assert "no extrapolation" in report.table()
