"""Text of messages: counts, suggestions, and names made safe and short enough for a terminal."""

import difflib
from collections.abc import Iterable

_LISTED = 20  # names listed in a message, at most


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1.

    >>> count_of(1, "image"), count_of(1200, "image")
    ('1 image', '1,200 images')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def closest(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown name: the known names most like it, else the known names.

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
    r"""Escape the characters that a terminal must not get as they are: controls, newlines, lone surrogates.

    Parameters
    ----------
    text : str

    Returns
    -------
    str
        Unchanged if every character is printable.

    Examples
    --------
    >>> print(printable("a\nb\x1b[31m"))
    a\nb\x1b[31m
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def display_width(text: str) -> int:
    """Return the number of terminal columns that printable text takes, by the tables of Unicode.

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
    import wcwidth

    return wcwidth.width(text, control_codes="ignore")


def shorten(text: str, width: int) -> str:
    """Cut text to a number of terminal columns; an ellipsis replaces the part that was cut.

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
    while text and display_width(text + "…") > width:
        text = text[:-1]
    return text + "…"
