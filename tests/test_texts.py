"""Columns of texts: as lists and dictionaries of the same, in less memory."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images import texts
from pipeline.images.texts import Positions, Texts

TEXTS = st.lists(st.binary(max_size=9).map(texts.decode) | st.text(max_size=5), max_size=30)


@given(given=TEXTS, data=st.data())
def test_a_column_is_as_a_list(given, data):
    column = Texts.of(given)
    assert list(column) == given
    assert column == given == column
    assert column == tuple(given)
    assert column == Texts.of(given) == pickle.loads(pickle.dumps(column))
    assert column != [*given, "x"]
    assert (column == Texts.of(reversed(given))) == (given == given[::-1])
    assert (len(column), bool(column)) == (len(given), bool(given))
    assert column.lengths().tolist() == [len(texts.encode(each)) for each in given]
    start, stop, step = (data.draw(st.none() | st.integers(-9, 9)) for _ in range(3))
    assert column[start : stop : step or None] == given[start : stop : step or None]
    rows = data.draw(st.lists(st.integers(0, len(given) - 1))) if given else []
    assert column.take(np.array(rows, np.int64)) == [given[row] for row in rows]
    for row in {-1, 0, len(given) - 1} if given else ():
        assert column[row] == given[row]
    with pytest.raises(IndexError):
        column[len(given)]


@pytest.mark.parametrize("hashes", [None, 3, 1])
@given(given=TEXTS, wanted=TEXTS)
def test_positions_are_as_a_dictionary(hashes, given, wanted):
    """Also where different texts have the same hash."""
    with pytest.MonkeyPatch.context() as patch:
        if hashes:
            patch.setattr(texts, "_hashes", lambda column: np.array([len(each) % hashes for each in column], np.int64))
        positions = Positions(Texts.of(given))
        first = {text: row for row, text in reversed(list(enumerate(given)))}
        again = next(((first[text], row) for row, text in enumerate(given) if first[text] < row), None)
        assert positions.repeated() == again
        found = positions.find(Texts.of([*wanted, *given])).tolist()
        assert found == [first.get(text, -1) for text in (*wanted, *given)]
        assert [positions.get(text) for text in wanted] == [first.get(text) for text in wanted]
        assert len(positions) == len(given)
        assert list(positions) == given


def test_a_column_says_what_it_is():
    assert repr(Texts.of(["a", "b"])) == "Texts.of(['a', 'b'])"
    assert repr(Texts.of("abcd")) == "Texts.of(['a', 'b', 'c', Ellipsis])"
    assert Texts.of(["a"]) != 1


def test_more_texts_than_a_block(monkeypatch):
    monkeypatch.setattr(texts, "_BLOCK", 3)
    given = [str(number) for number in range(10)]
    assert Texts.of(given) == given
