"""Groups of options: frozen dataclasses made from the command line or from keywords, and passed on whole.

>>> @options
... class Speed:
...     workers: int = option(default=1, help="Decoding processes.")
>>> @accepts_fields
... def run(*, speed: Speed = Speed()) -> int:
...     return speed.workers
>>> run(speed=Speed(workers=2)), run(workers=3)
(2, 3)
>>> run(worker=3)
Traceback (most recent call last):
    ...
pipeline.errors.UsageError: run has no option 'worker'; did you mean workers?
>>> run(workers="3")
Traceback (most recent call last):
    ...
pipeline.errors.UsageError: workers is '3' (str), expected int
"""

import dataclasses
import functools
import inspect
import numbers
import os
import types
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

from pipeline.errors import UsageError
from pipeline.wording import closest

Group = TypeVar("Group")
Result = TypeVar("Result")
_WIDER = {float: numbers.Real, int: numbers.Integral}  # NumPy's numbers are as good as Python's


def option(*, default: Any, help: str, **click: Any) -> Any:  # noqa: A002 - click's own name for it
    """Declare a field of a group of options, with everything that its command-line option needs.

    Parameters
    ----------
    default : object
    help : str
        The line that ``--help`` prints.
    **click
        Other arguments of `click.option`, such as ``metavar``, and ``flag``: the option's name if it is not that of
        the field; ``min``: the least whole number; ``parse``: turns text into a value or raises UsageError;
        ``in_python=True``: not an option of the command line.
    """
    return dataclasses.field(default=default, metadata={"help": help, **click})


@dataclass_transform(frozen_default=True, field_specifiers=(option,))
def options(cls: type[Group]) -> type[Group]:
    """Make a class a group of options: a frozen dataclass that refuses unknown names and wrong types.

    Raises
    ------
    UsageError
        By the constructor, in one line.
    """
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    plain = made.__init__

    @functools.wraps(plain)
    def __init__(self: Any, *args: Any, **named: Any) -> None:  # noqa: N807 - it replaces the dataclass' own
        names = [field.name for field in dataclasses.fields(made)]
        _check_names(cls.__name__, named, names)
        plain(self, *args, **named)
        hints = types_of(made)
        for name in names:
            if not _fits(value := getattr(self, name), hints[name]):
                raise UsageError(f"{name} is {value!r} ({type(value).__name__}), expected {_words(hints[name])}")

    made.__init__ = __init__
    return made


def accepts_fields(function: Callable[..., Result]) -> Callable[..., Result]:
    """Let callers give the fields of a function's groups of options one by one, as keywords of their own.

    A group is a parameter whose default is a dataclass. A field that is given replaces that of the group; one that two
    groups have can only be given within its group.

    Raises
    ------
    UsageError
        By the function, for a keyword that is neither a parameter nor a field, or a value of the wrong type.
    """
    own = inspect.signature(function).parameters
    groups = {name: each.default for name, each in own.items() if dataclasses.is_dataclass(each.default)}
    fields = [(field.name, name) for name, group in groups.items() for field in dataclasses.fields(group)]
    count = Counter(field for field, _ in fields)
    homes = {field: name for field, name in fields if count[field] == 1}

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Result:
        _check_names(function.__qualname__, named, [*own, *homes])
        for name, group in groups.items():
            if name in named and not isinstance(named[name], type(group)):
                raise UsageError(f"{name} is {named[name]!r}, expected {type(group).__name__}(...)")
            given = {key: named.pop(key) for key in list(named) if key not in own and homes[key] == name}
            if given:
                named[name] = dataclasses.replace(named.get(name, group), **given)
        return function(*args, **named)

    return call


def command_line_fields(group: Any) -> "list[dataclasses.Field[Any]]":
    """Return the fields of a group, or of its class, that are options of the command line."""
    return [field for field in dataclasses.fields(group) if not field.metadata.get("in_python")]


def flag_of(field: "dataclasses.Field[Any]") -> str:
    """Return the name of a field's option on the command line."""
    return field.metadata.get("flag") or f"--{field.name.replace('_', '-')}"


def _check_names(owner: str, given: Mapping[str, Any], known: list[str]) -> None:
    for name in given:
        if name not in known:
            raise UsageError(f"{owner} has no option {name!r}; {closest(name, known)}")


@functools.cache
def types_of(group: type) -> dict[str, Any]:
    """Return the annotated types of a group's fields, by name."""
    return get_type_hints(group)


def _fits(value: object, hint: Any) -> bool:
    """Return whether a value is of an annotated type; `bool` is not taken for a number."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, (tuple, list)) and all(_fits(each, parts[0]) for each in value)
    kind = origin or hint
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, _WIDER.get(kind, kind))


def _words(hint: Any) -> str:
    """Return an annotated type in words.

    >>> _words(int | None), _words(tuple[str, ...]), _words(str | os.PathLike[str])
    ('int or None', 'a sequence of str', 'str or path')
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, parts)))
    if origin is tuple:
        return f"a sequence of {_words(parts[0])}"
    kind = origin or hint
    if kind in (os.PathLike, Path):
        return "path"
    return "None" if kind is type(None) else str(getattr(kind, "__name__", kind))
