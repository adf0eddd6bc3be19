"""Groups of options: fields as keywords, unknown names and wrong types in one line."""

import dataclasses
import os
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli.command import group_options
from pipeline.errors import UsageError
from pipeline.option_groups import accepts_fields, option, options
from pipeline.training.options import read_seconds


@options
class Size:
    """A group."""

    side: int | None = option(default=None, help="Side in pixels.")
    share: float = option(default=0.5, help="A share.")
    names: tuple[str, ...] = option(default=(), help="Names.")
    weights: str | os.PathLike[str] = option(default="imagenet", help="Weights.")
    overwrite: bool = option(default=False, help="Replace what is there.")


DEFAULT = Size()


@accepts_fields
def run(images, *, size: Size = DEFAULT, progress=None):
    return images, size, progress


@options
class Shape:
    """A group with a field that `Size` has too."""

    side: int = option(default=1, help="Number of sides.")
    round: bool = option(default=False, help="Without corners.")


def test_a_field_of_two_groups_is_given_within_its_group():
    @accepts_fields
    def paint(*, size: Size = Size(), shape: Shape = Shape()):  # noqa: B008
        return size, shape

    assert paint(round=True, shape=Shape(side=4)) == (Size(), Shape(4, round=True))
    with pytest.raises(UsageError, match="paint has no option 'side'"):
        paint(side=4)


def test_a_group_is_frozen_and_compares_by_its_values():
    assert Size(side=3) == Size(3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Size().side = 4


@pytest.mark.parametrize(
    "given",
    [
        {"side": np.int64(3)},
        {"share": np.float32(0.25)},
        {"share": 1},
        {"names": ["a", "b"]},
        {"weights": Path("w.h5")},
        {"overwrite": True},
    ],
)
def test_fields_are_keywords_of_the_function(given):
    assert run("photos", **given) == ("photos", Size(**given), None)
    assert run("photos", size=Size(side=7), **given)[1] == dataclasses.replace(Size(side=7), **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sid": 3}, "run has no option 'sid'; did you mean side or size?"),
        ({"side": "150"}, "side is '150' (str), expected int or None"),
        ({"side": True}, "side is True (bool), expected int or None"),
        ({"side": 1.5}, "side is 1.5 (float), expected int or None"),
        ({"names": "last"}, "names is 'last' (str), expected a sequence of str"),
        ({"names": (1,)}, "names is (1,) (tuple), expected a sequence of str"),
        ({"weights": 5}, "weights is 5 (int), expected str or path"),
        ({"overwrite": 1}, "overwrite is 1 (int), expected bool"),
        ({"size": 150}, "size is 150, expected Size(...)"),
    ],
)
def test_wrong_names_and_types_are_one_line(given, words):
    with pytest.raises(UsageError) as caught:
        run("photos", **given)
    assert str(caught.value) == words


@options
class Drawing:
    """A group with all kinds of options."""

    lines: tuple[str, ...] = option(default=(), flag="--line", metavar="NAME", help="A line; repeatable.")
    count: int | None = option(default=None, min=1, help="How many.")
    scale: float = option(default=0.5, help="A factor.")
    dense: bool = option(default=False, help="More of them.")
    angle: int = option(default=3, in_python=True, help="Not on the command line.")
    time: float | None = option(default=None, metavar="TIME", parse=read_seconds, help="A duration.")
    paper: str | os.PathLike[str] = option(default="a4", help="Name or file.")


@click.command()
@click.option("--seed", default=0)
@group_options(drawing=Drawing, size=Size)
def draw(seed, drawing, size):
    print(seed, drawing == Drawing(("a", "b"), 2, 1.5, True, 3, 300.0, "x"), size == Size())


def test_a_command_gets_whole_groups():
    result = CliRunner().invoke(draw, "--line a --line b --count 2 --scale 1.5 --dense --time 5m --paper x")
    assert (result.exit_code, result.output) == (0, "0 True True\n")
    flags = [option.opts[0] for option in draw.params]
    assert flags[:7] == ["--seed", "--line", "--count", "--scale", "--dense", "--time", "--paper"]
    lines = CliRunner().invoke(draw, "--help").output.splitlines()
    assert "  --line NAME            A line; repeatable." in lines
    assert "  --count INTEGER RANGE  How many.  [x>=1]" in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--count 0", "0 is not in the range x>=1"),
        ("--scale two", "'two' is not a valid float"),
        ("--time soon", "'soon' is not a duration; give seconds or minutes, such as 60s or 5m"),
        ("--angle 3", "No such option '--angle'"),
    ],
)
def test_wrong_values_on_the_command_line(words, message):
    result = CliRunner().invoke(draw, words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_group_refuses_an_unknown_name_itself():
    with pytest.raises(UsageError, match=r"^Size has no option 'sise'; did you mean side\?$"):
        Size(sise=3)
