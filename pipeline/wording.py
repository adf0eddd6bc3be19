"""Words of messages: counts, suggestions, and names that fit a terminal."""

import difflib
import unicodedata
from collections.abc import Iterable

_LISTED = 20  # names in a message; more are no help


def count_of(number: int, noun: str) -> str:
    """Count things in words.

    >>> count_of(1, "image"), count_of(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def closest(name: str, known: Iterable[str]) -> str:
    """Say in a few words which known names come closest to a wrong one.

    >>> closest("mobilnet", ["mobilenet", "vgg16"])
    'did you mean mobilenet?'
    """
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"known are {', '.join(names[:_LISTED])}{more}"


def printable(text: str) -> str:
    r"""Make control characters, newlines and lone surrogates of a name visible.

    Parameters
    ----------
    text : str

    Returns
    -------
    str
        The same text where a terminal shows it as it is.

    Examples
    --------
    >>> print(printable("a\nb\x1b[31m"))
    a\nb\x1b[31m
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def display_width(text: str) -> int:
    """Count the terminal columns of printable text: wide East Asian characters take two, accents none.

    Parameters
    ----------
    text : str

    Returns
    -------
    int

    Examples
    --------
    >>> display_width("hat"), display_width("帽子")
    (3, 4)
    """
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def shorten(text: str, width: int) -> str:
    """Cut text to a number of terminal columns, with an ellipsis where something was cut.

    Parameters
    ----------
    text : str
    width : int
        At least 1.

    Returns
    -------
    str

    Examples
    --------
    >>> shorten("longsleeve", 6)
    'longs…'
    """
    if display_width(text) <= width:
        return text
    while text and display_width(text) > width - 1:
        text = text[:-1]
    return text + "…"
