"""What all commands share: errors and exit codes, progress, options."""

import contextlib
import functools
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from pipeline.errors import PipelineError, UsageError
from pipeline.wording import count_of

EXIT_TOO_MANY_BAD = 3
EXIT_INTERRUPTED = 130
_LINE_SECONDS = 10.0  # between progress lines where there is no terminal

_KEPT = "what was done is kept, run the same command again to go on"
_AFTER_INTERRUPT = {"extract": _KEPT, "finetune": _KEPT}
_PRINTED = "the rows printed so far are right, the rest is missing"
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


@click.group(context_settings=_CONTEXT)
@click.version_option(package_name="twostage-features", prog_name="twostage")
def main() -> None:
    """Cache the vectors of a pre-trained convnet once, train classifiers in seconds, predict in batches."""


def command(function: Callable[..., int | None]) -> click.Command:
    """Make a click command that answers errors with one line and the exit code of their kind."""

    @functools.wraps(function)
    def guarded(**options: Any) -> None:
        debug = options.pop("debug")
        printing = function.__name__ == "predict" and options["out"] == "-"
        hint = _PRINTED if printing else _AFTER_INTERRUPT.get(function.__name__, "nothing was written")
        sys.exit(_guarded(functools.partial(function, **options), debug, hint))

    made = main.command(context_settings=_CONTEXT)(guarded)
    made.params += [
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object with counts, rates and paths."),
        click.Option(["--quiet"], is_flag=True, help="No progress and no hints, only the result."),
        click.Option(["--debug"], is_flag=True, help="Show a traceback when something fails."),
    ]
    return made


def _guarded(run: Callable[[], int | None], debug: bool, hint: str) -> int:
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run() or 0
    except KeyboardInterrupt:
        say(f"interrupted; {hint}")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; so does the rest
        return 1
    except PipelineError as error:
        show(error, debug)
        return error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        show(PipelineError(f"{where}{error.strerror or error}"), debug)
        return 1
    except Exception as error:  # noqa: BLE001 - the last resort of a command: a line, not a traceback
        show(error, debug)
        if not debug:
            say("this is a fault of twostage; run again with --debug for the traceback")
        return 1


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def show(error: Exception, debug: bool) -> None:
    """Say an error on standard error in one line; with a traceback before it when debugging."""
    if debug:
        traceback.print_exception(error)
    name = "" if isinstance(error, PipelineError) else f"{type(error).__name__}: "
    say(f"error: {name}{' '.join(str(error).split())}")


def say(text: str) -> None:
    """Write a line on standard error."""
    # Names that are not UTF-8 must not turn a message into a crash.
    click.echo(text.encode("utf-8", "backslashreplace").decode(), err=True)


def say_notes(notes: Iterable[str], quiet: bool) -> None:
    """Write remarks on standard error, unless none are wanted."""
    for note in () if quiet else notes:
        say(f"note: {note}")


@contextlib.contextmanager
def progress_bar(unit: str, quiet: bool = False) -> Iterator[Callable[[int, int], None] | None]:
    """Give a callback (done, total): a bar on a terminal, a line now and then elsewhere."""
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
                bar.initial = first = max(done - 1, 0)  # what an earlier run did counts for no rate
            bar.n = done
            bar.refresh() if done == total else bar.update(0)
        elif time.monotonic() - last > _LINE_SECONDS:
            last = time.monotonic()
            of = f" of {total:,}" if total else ""
            say(f"{done:,}{of} {unit.strip()}, {last - started:.0f} s")

    try:
        yield update
    finally:
        bar.close()


def print_json(data: dict[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(data, indent=1))


def speed_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `Speed`."""
    for option in reversed(
        [
            click.option("--engine", default="auto", help="What runs the network: auto, keras or openvino."),
            click.option(
                "--batch-size", type=click.IntRange(1), help="Images per forward pass.  [default: suits the size]"
            ),
            click.option("--workers", type=click.IntRange(1), help="Decoding processes.  [default: one per core]"),
        ]
    ):
        function = option(function)
    return function


def read_seconds(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """Read a time such as 90, 60s or 5m."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found:
        raise click.BadParameter(f"{text!r} is no time; give seconds or minutes, such as 60s or 5m")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


max_bad_option = click.option(
    "--max-bad",
    type=click.FloatRange(0, 1),
    default=0.05,
    help="Share of unreadable images above which the exit code is 3.",
)


def too_many_bad(bad: int, images: int, max_bad: float) -> int:
    """Return the exit code: 3, and a line that says why, where more images are bad than is allowed."""
    if not images or bad / images <= max_bad:
        return 0
    say(f"error: {bad:,} of {count_of(images, 'image')} bad, more than --max-bad {max_bad:g} allows; the rest is done")
    return EXIT_TOO_MANY_BAD


def check_ending(out: str | None, ending: str) -> None:
    """Raise UsageError if a file to write has another ending."""
    if out is not None and not out.lower().endswith(ending):
        raise UsageError(f"cannot tell the format of {out!r}; end it in {ending}")


def params_text(params: dict[str, Any]) -> str:
    """Say which parameters a head has: ``" with C=0.1"``."""
    return " with " + ", ".join(f"{name}={value}" for name, value in params.items()) if params else ""
