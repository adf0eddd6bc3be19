"""Drawn splits: stable, whole groups, right shares, no class missing."""

import hashlib
import math
import os
from collections import Counter, defaultdict

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import ManifestError, UsageError
from pipeline.images.splits import DEFAULT_FRACTIONS, SPLITS, draw_splits

TWO = {"train": 0.8, "test": 0.2}

# Names as os.fsdecode gives them: any byte that is not UTF-8 is a surrogate.
names = st.binary(min_size=1, max_size=8).map(os.fsdecode) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8
)


@st.composite
def tables(draw: st.DrawFn, *, mixed_groups: bool = True, some_given: bool = True) -> tuple[list, list, list, list]:
    """Paths, labels, groups and splits that do not contradict each other."""
    paths = draw(st.lists(names, unique=True, max_size=40))
    labels = draw(st.lists(st.integers(-1, 3), min_size=len(paths), max_size=len(paths)))
    groups = draw(st.lists(st.sampled_from(["", "", "g", "h", "i"]), min_size=len(paths), max_size=len(paths)))
    if not mixed_groups:
        groups = [f"{group}{label}" if group else "" for group, label in zip(groups, labels, strict=True)]
    split_of_group = {g: draw(st.sampled_from(SPLITS)) for g in sorted(set(groups))}
    splits = []
    for group in groups:
        fixed = some_given and draw(st.booleans())
        splits.append((split_of_group[group] if group else draw(st.sampled_from(SPLITS))) if fixed else "")
    return paths, labels, groups, splits


def by_hand(name: str, kind: str = "image", seed: int = 0) -> float:
    digest = hashlib.sha256(f"{seed}\0{kind}\0{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def test_the_hash_decides() -> None:
    paths = [f"folder/{i}.jpg" for i in range(2000)]
    drawn, notes = draw_splits(paths, [-1] * 2000, [""] * 2000, [""] * 2000, seed=7)
    assert notes == ()
    for path, split in zip(paths, drawn, strict=True):
        value = by_hand(path, seed=7)
        assert split == ("train" if value < 0.7 else "validation" if value < 0.85 else "test")


def test_the_group_decides_where_there_is_one() -> None:
    paths = [f"{i}.jpg" for i in range(300)]
    groups = [f"person {i % 50}" if i % 3 else "" for i in range(300)]
    drawn, _ = draw_splits(paths, [-1] * 300, groups, [""] * 300, fractions=TWO)
    for path, group, split in zip(paths, groups, drawn, strict=True):
        value = by_hand(group, "group") if group else by_hand(path)
        assert split == ("train" if value < 0.8 else "test")


def test_names_that_are_not_utf8() -> None:
    drawn, _ = draw_splits(["\udcff.jpg", "é.jpg"], [-1, -1], ["", ""], ["", ""])
    assert set(drawn) <= set(SPLITS)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(200, 2000))
def test_shares_within_the_binomial_bound(seed: int, count: int) -> None:
    paths = [f"{i}.png" for i in range(count)]
    drawn, _ = draw_splits(paths, [0] * count, [""] * count, [""] * count, seed=seed)
    counts = Counter(drawn)
    for split, share in DEFAULT_FRACTIONS.items():
        # Six standard deviations: one in five hundred million by chance.
        assert abs(counts[split] - count * share) <= 6 * math.sqrt(count * share * (1 - share))


@given(tables())
def test_given_splits_stay_and_all_get_one(table: tuple[list, list, list, list]) -> None:
    paths, labels, groups, splits = table
    drawn, _ = draw_splits(paths, labels, groups, splits)
    assert len(drawn) == len(paths)
    assert set(drawn) <= set(SPLITS)
    assert all(was in ("", now) for was, now in zip(splits, drawn, strict=True))


@given(tables())
def test_groups_never_straddle(table: tuple[list, list, list, list]) -> None:
    paths, labels, groups, splits = table
    drawn, _ = draw_splits(paths, labels, groups, splits)
    split_of: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, drawn, strict=True):
        if group:
            split_of[group].add(split)
    assert all(len(found) == 1 for found in split_of.values())


@given(tables(), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(table: tuple[list, list, list, list], random: object) -> None:
    paths, labels, groups, splits = table
    drawn, _ = draw_splits(paths, labels, groups, splits)
    order = list(range(len(paths)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled, _ = draw_splits(*([column[i] for i in order] for column in table))
    assert [drawn[i] for i in order] == list(shuffled)


@given(tables(mixed_groups=False, some_given=False), tables(mixed_groups=False, some_given=False))
def test_other_classes_move_nothing(table: tuple[list, list, list, list], other: tuple[list, list, list, list]) -> None:
    paths, labels, groups, splits = table
    drawn, _ = draw_splits(paths, labels, groups, splits)
    more_paths = [f"other/{path}" for path in other[0]]
    more_labels = [label + 10 if label >= 0 else -1 for label in other[1]]
    more_groups = [f"other {group}" if group else "" for group in other[2]]
    assume(not set(more_paths) & set(paths))
    joined, _ = draw_splits(paths + more_paths, labels + more_labels, groups + more_groups, splits + other[3])
    assert joined[: len(paths)] == drawn


@given(st.lists(names, unique=True, min_size=1, max_size=60), st.data())
def test_more_files_move_no_unmended_image(paths: list[str], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(paths)))
    few, few_notes = draw_splits(paths[:count], [0] * count, [""] * count, [""] * count)
    many, _ = draw_splits(paths, [0] * len(paths), [""] * len(paths), [""] * len(paths))
    moved = [path for path, old, new in zip(paths, few, many, strict=False) if old != new]
    # Only what was mended goes back to, or leaves, where its hash sends it; two mends of one class at most.
    assert len(moved) <= 4
    raw, _ = draw_splits(paths, [-1] * len(paths), [""] * len(paths), [""] * len(paths))
    unmended = [p for p, split, bare in zip(paths, few, raw, strict=False) if split == bare]
    mended_later = [p for p, split, bare in zip(paths, many, raw, strict=True) if split != bare]
    assert set(moved) & set(unmended) <= set(mended_later)
    assert bool(few_notes) or not moved or bool(mended_later)


@given(tables(mixed_groups=False, some_given=False))
def test_classes_of_three_units_are_in_every_split(table: tuple[list, list, list, list]) -> None:
    paths, labels, groups, splits = table
    drawn, notes = draw_splits(paths, labels, groups, splits)
    units: dict[int, set[str]] = defaultdict(set)
    found: dict[int, set[str]] = defaultdict(set)
    for path, label, group, split in zip(paths, labels, groups, drawn, strict=True):
        if label >= 0:
            units[label].add(f"g{group}" if group else f"p{path}")
            found[label].add(split)
    priority = ("train", "test", "validation")
    for label, members in units.items():
        assert found[label] == set(priority[: len(members)])
        assert any(f"class {label} is missing" in note for note in notes) == (len(members) < 3)


@given(tables())
def test_notes_name_what_is_missing(table: tuple[list, list, list, list]) -> None:
    paths, labels, groups, splits = table
    drawn, notes = draw_splits(paths, labels, groups, splits, classes=["a", "b", "c", "d"])
    if "" not in splits:
        assert notes == ()
        return
    present = {(label, split) for label, split in zip(labels, drawn, strict=True)}
    for label in set(labels) - {-1}:
        missing = [split for split in SPLITS if (label, split) not in present]
        named = [note for note in notes if note.startswith(f"class {'abcd'[label]!r} is missing from ")]
        assert len(named) == bool(missing)
        assert all(split in named[0] for split in missing)


def small_class(count: int) -> tuple[list[str], tuple[str, ...], tuple[str, ...]]:
    paths = [f"hat/{i}.jpg" for i in range(count)]
    return paths, *draw_splits(paths, [0] * count, [""] * count, [""] * count, classes=["hat"])


def test_small_classes_by_hand() -> None:
    assert small_class(1)[1] == ("train",)
    assert "class 'hat' is missing from validation and test: it has too few images or groups" in small_class(1)[2][-1]
    assert sorted(small_class(2)[1]) == ["test", "train"]
    assert sorted(small_class(3)[1]) == ["test", "train", "validation"]


def test_the_smallest_hash_of_the_largest_split_moves() -> None:
    candidates = [f"hat/{i}.jpg" for i in range(400)]
    train = sorted((p for p in candidates if by_hand(p) < 0.7), key=by_hand)[:9]
    validation = [p for p in candidates if 0.7 <= by_hand(p) < 0.85][:3]
    paths = sorted(train + validation)
    drawn, notes = draw_splits(paths, [0] * 12, [""] * 12, [""] * 12, classes=["hat"])
    assert [p for p, split in zip(paths, drawn, strict=True) if split == "test"] == train[:1]
    assert notes == (f"class 'hat' was missing from test: image {train[0]!r} was moved there from train.",)


def test_a_group_moves_as_a_whole_and_spares_other_classes() -> None:
    # Every unit goes to train by its hash.
    low = sorted((f"g{i}" for i in range(100)), key=lambda name: by_hand(name, "group"))[:4]
    paths = [f"{i}.jpg" for i in range(8)]
    groups = [group for group in low for _ in range(2)]
    labels = [0, 1, 0, 1, 0, 0, 0, 0]  # the first two groups hold both classes
    drawn, notes = draw_splits(paths, labels, groups, [""] * 8)
    assert {(label, split) for label, split in zip(labels, drawn, strict=True) if split == "train"} >= {(1, "train")}
    assert {split for label, split in zip(labels, drawn, strict=True) if label == 0} == set(SPLITS)
    assert "class 1 is missing from validation" in notes[-1]


def test_a_group_with_a_split_keeps_it() -> None:
    groups = ["g", "g", "g", ""]
    drawn, _ = draw_splits(["a", "b", "c", "d"], [-1] * 4, groups, ["", "validation", "", ""])
    assert drawn[:3] == ("validation",) * 3


def test_a_group_in_two_given_splits() -> None:
    with pytest.raises(ManifestError, match="group 'g' is in train and in test: keep each group in one split"):
        draw_splits(["a", "b", "c"], [-1] * 3, ["g", "g", ""], ["train", "test", ""])


def test_given_splits_that_lack_one_are_left_alone() -> None:
    splits = ["train", "validation", "train"]
    assert draw_splits(["a", "b", "c"], [0, 0, 1], [""] * 3, splits) == (tuple(splits), ())


def test_only_splits_with_a_share_are_drawn() -> None:
    paths = [f"{i}" for i in range(500)]
    for fractions in (TWO, {"train": 0.8, "test": 0.2, "validation": 0.0}, {"validation": 1.0}):
        drawn, notes = draw_splits(paths, [0] * 500, [""] * 500, [""] * 500, fractions=fractions)
        assert set(drawn) == {split for split, share in fractions.items() if share}
        assert notes == ()
    drawn, notes = draw_splits(["a", "b"], [0, 0], ["", ""], ["", ""], fractions=TWO)
    assert sorted(drawn) == ["test", "train"]


def test_another_seed_is_another_draw() -> None:
    paths = [f"{i}" for i in range(100)]
    first, second = (draw_splits(paths, [-1] * 100, [""] * 100, [""] * 100, seed=s)[0] for s in (0, 1))
    assert first != second


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 0.5, "dev": 0.5}, "unknown split 'dev' in the fractions: choose from train, validation, test"),
        ({"train": 0.7, "test": 0.2}, "are not valid shares: give non-negative numbers that add up to 1"),
        ({"train": 1.5, "test": -0.5}, "are not valid shares"),
        ({"train": math.nan}, "are not valid shares"),
        ({}, "are not valid shares"),
    ],
)
def test_fractions_that_are_none(fractions: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw_splits(["a"], [0], [""], [""], fractions=fractions)


def test_columns_of_other_lengths() -> None:
    with pytest.raises(UsageError, match="1 labels for 2 paths: give one for each path"):
        draw_splits(["a", "b"], [0], ["", ""], ["", ""])


def test_nothing_to_draw() -> None:
    assert draw_splits([], [], [], []) == ((), ())
