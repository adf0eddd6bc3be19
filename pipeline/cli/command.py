"""What all commands share: exit codes, error messages, progress bars, and options made from groups."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, get_args, get_origin

import click

from pipeline.errors import PipelineError, UsageError
from pipeline.option_groups import command_line_fields, flag_of, types_of
from pipeline.wording import count_of

Result = TypeVar("Result")

EXIT_TOO_MANY_BAD = 3
EXIT_INTERRUPTED = 130
_LINE_SECONDS = 10.0  # between progress lines when standard error is not a terminal

_RESUMABLE = ("extract", "finetune")
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


@click.group(context_settings=_CONTEXT)
@click.version_option(package_name="twostage-features", prog_name="twostage")
def main() -> None:
    """Cache the vectors of a pre-trained convnet once, train classifiers in seconds, predict in batches."""


def command(function: Callable[..., int | None]) -> click.Command:
    """Make a click command that reports an error in one line and exits with the exit code of its class."""

    @functools.wraps(function)
    def run(**options: Any) -> None:
        debug = options.pop("debug")
        if function.__name__ == "predict" and options["out"] == "-":
            on_interrupt = "the rows printed so far are correct, the rest are missing"
        elif function.__name__ in _RESUMABLE:
            on_interrupt = "finished work is kept, run the same command again to continue"
        else:
            on_interrupt = "nothing was written"
        sys.exit(_exit_code(functools.partial(function, **options), debug, on_interrupt))

    made = main.command(context_settings=_CONTEXT)(run)
    made.params += [
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object with counts, rates and paths."),
        click.Option(["--quiet"], is_flag=True, help="No progress and no hints, only the result."),
        click.Option(["--debug"], is_flag=True, help="Show a traceback when something fails."),
    ]
    return made


def _exit_code(run: Callable[[], int | None], debug: bool, on_interrupt: str) -> int:
    """Run a command and return its exit code; an exception becomes a line on standard error."""
    with contextlib.suppress(ValueError):  # raised outside the main thread
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run() or 0
    except KeyboardInterrupt:
        print_stderr(f"interrupted; {on_interrupt}")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone: discard what Python still flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except PipelineError as error:
        print_error(error, debug)
        return error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print_error(PipelineError(f"{where}{error.strerror or error}"), debug)
        return 1
    except Exception as error:  # noqa: BLE001 - users get one line, whatever went wrong
        print_error(error, debug)
        if not debug:
            print_stderr("this is a fault of twostage; run again with --debug for the traceback")
        return 1


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def print_error(error: Exception, debug: bool) -> None:
    """Write an error to standard error as one line; with `debug`, after its traceback."""
    if debug:
        traceback.print_exception(error)
    name = "" if isinstance(error, PipelineError) else f"{type(error).__name__}: "
    print_stderr(f"error: {name}{' '.join(str(error).split())}")


def print_stderr(text: str) -> None:
    """Write a line to standard error; file names that are not UTF-8 are escaped."""
    click.echo(text.encode("utf-8", "backslashreplace").decode(), err=True)


def print_notes(notes: Iterable[str], quiet: bool) -> None:
    """Write each note to standard error, unless `quiet`."""
    for note in () if quiet else notes:
        print_stderr(f"note: {note}")


@contextlib.contextmanager
def progress_bar(unit: str, quiet: bool = False) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a callback (done, total) that draws a bar on a terminal, and prints a line every 10 s elsewhere."""
    if quiet:
        yield None
        return
    from tqdm import tqdm

    bar = tqdm(unit=unit, disable=None, file=sys.stderr, dynamic_ncols=True, leave=False)
    started = last = time.monotonic()
    first: int | None = None

    def update(done: int, total: int) -> None:
        nonlocal first, last
        if not bar.disable:
            bar.total = total or None
            if first is None:
                bar.initial = first = max(done - 1, 0)  # work of an earlier run does not count for the rate
            bar.n = done
            bar.refresh() if done == total else bar.update(0)
        elif time.monotonic() - last > _LINE_SECONDS:
            last = time.monotonic()
            of = f" of {total:,}" if total else ""
            print_stderr(f"{done:,}{of} {unit.strip()}, {last - started:.0f} s")

    try:
        yield update
    finally:
        bar.close()


def print_json(data: dict[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(data, indent=1))


def group_options(**groups: type) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Add an option to a command for each field of some groups, see `pipeline.option_groups`.

    Parameters
    ----------
    **groups : type
        The command gets an instance of each group as the argument of this name.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        fields = {name: command_line_fields(group) for name, group in groups.items()}

        @functools.wraps(function)
        def with_groups(**values: Any) -> Result:
            made = {
                name: group(**{field.name: values.pop(field.name) for field in fields[name]})
                for name, group in groups.items()
            }
            return function(**values, **made)

        decorated: Callable[..., Result] = with_groups
        for name, group in reversed(groups.items()):
            types = types_of(group)
            for field in reversed(fields[name]):
                decorated = _option_of(field, types[field.name])(decorated)
        return decorated

    return decorate


def _option_of(field: dataclasses.Field[Any], kind: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the click option of a field from its type, and from what `pipeline.option_groups.option` was given."""
    settings = {name: value for name, value in field.metadata.items() if name not in ("flag", "min", "parse")}
    lowest, parse = field.metadata.get("min"), field.metadata.get("parse")
    if parse:
        settings["callback"] = functools.partial(_parsed, parse)
    elif kind is bool:
        settings["is_flag"] = True
    elif get_origin(kind) is tuple:
        settings["multiple"] = True
    elif lowest is not None:
        settings["type"] = click.IntRange(lowest)
    else:
        settings["type"] = next((each for each in (int, float) if each in (kind, *get_args(kind))), str)
    return click.option(flag_of(field), field.name, default=field.default, **settings)


def _parsed(parse: Callable[[str], Any], _: click.Context, __: click.Parameter, text: str | None) -> Any:
    try:
        return None if text is None else parse(text)
    except UsageError as error:
        raise click.BadParameter(str(error)) from error


max_bad_option = click.option(
    "--max-bad",
    type=click.FloatRange(0, 1),
    default=0.05,
    help="Share of unreadable images above which the exit code is 3.",
)


def too_many_bad(bad: int, images: int, max_bad: float) -> int:
    """Return exit code 3, after a line that says why, if more images are bad than allowed; else 0."""
    if not images or bad / images <= max_bad:
        return 0
    print_stderr(
        f"error: {bad:,} of {count_of(images, 'image')} could not be used, more than --max-bad {max_bad:g} allows;"
        " the others were processed"
    )
    return EXIT_TOO_MANY_BAD


def check_suffix(out: str | None, suffix: str) -> None:
    """Raise UsageError if the name of an output file ends otherwise."""
    if out is not None and not out.lower().endswith(suffix):
        raise UsageError(f"cannot tell the format of {out!r}; end it in {suffix}")
