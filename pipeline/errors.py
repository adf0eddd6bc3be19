"""The exceptions of this package; each carries the exit code that the commands answer with.

Every message is one line: what was given, what was expected, what to do.

>>> raise ImageError("truncated", "the file ends in the middle of a row")
Traceback (most recent call last):
    ...
pipeline.errors.ImageError: truncated: the file ends in the middle of a row
"""

import contextlib
import importlib.metadata
import platform


class PipelineError(Exception):
    """Base of everything that this package raises on purpose."""

    exit_code = 1


class UsageError(PipelineError, ValueError):
    """An argument or an option cannot be used as given."""

    exit_code = 2


class RecipeMismatchError(UsageError):
    """A feature file was made with another recipe than the one asked for."""


class ManifestError(PipelineError):
    """The list of images cannot be read or contradicts itself."""


class ImageError(PipelineError):
    """One image cannot be turned into pixels.

    Parameters
    ----------
    reason : str
        Short and stable, fit for counting: ``"truncated"``, ``"not-an-image"``, ...
    detail : str
        What exactly was wrong, for a person.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


class WeightsError(PipelineError):
    """Weights are absent, changed, or do not fit the backbone."""


class EngineError(PipelineError):
    """The machine or its libraries cannot run a recipe."""


class StoreError(PipelineError):
    """A feature file cannot be read or written."""


class IntegrityError(PipelineError):
    """Stored data are not what was written: damaged, incomplete or foreign."""

    exit_code = 4


class LockedError(PipelineError):
    """Another process is writing the same output."""

    exit_code = 5


class TrainingError(PipelineError):
    """The vectors and labels cannot be trained on as asked."""


class BundleError(PipelineError):
    """A bundle cannot be saved or loaded."""


def installed_versions(*names: str) -> dict[str, str]:
    """Return the versions of Python and of some distributions, those that are not installed left out.

    >>> list(installed_versions("numpy", "no-such-thing"))
    ['python', 'numpy']
    """
    versions = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
