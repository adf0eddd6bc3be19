"""The exceptions of this package, each with the exit code that a command ends with.

A message is one line: what was given, what was expected, what to do.

>>> raise ImageError("truncated", "the file ends in the middle of a row")
Traceback (most recent call last):
    ...
pipeline.errors.ImageError: truncated: the file ends in the middle of a row
"""

import contextlib
import platform


class PipelineError(Exception):
    """Base class of the exceptions that this package raises."""

    exit_code = 1


class UsageError(PipelineError, ValueError):
    """An argument or option has an invalid value."""

    exit_code = 2


class RecipeMismatchError(UsageError):
    """A feature file was made with a different recipe than the requested one."""


class ManifestError(PipelineError):
    """The list of images cannot be read or is inconsistent."""


class ImageError(PipelineError):
    """An image cannot be decoded to pixels.

    Parameters
    ----------
    reason : str
        Short and stable, so that images can be counted by it: ``"truncated"``, ``"not-an-image"``, ...
    detail : str
        What exactly is wrong, for people.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


class WeightsError(PipelineError):
    """Weights are missing, have changed, or do not fit the backbone."""


class EngineError(PipelineError):
    """The machine or its libraries cannot run a recipe."""


class StoreError(PipelineError):
    """A feature file cannot be read or written."""


class IntegrityError(PipelineError):
    """Stored data differ from what was written: damaged, incomplete or not from this package."""

    exit_code = 4


class LockedError(PipelineError):
    """Another process is writing the same output."""

    exit_code = 5


class TrainingError(PipelineError):
    """A head cannot be trained on these vectors and labels as requested."""


class BundleError(PipelineError):
    """A bundle cannot be saved or loaded."""


def installed_versions(*names: str) -> dict[str, str]:
    """Return the versions of Python and of those of the distributions that are installed.

    >>> list(installed_versions("numpy", "no-such-thing"))
    ['python', 'numpy']
    """
    import importlib.metadata  # takes longer than `--help` should

    versions = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
