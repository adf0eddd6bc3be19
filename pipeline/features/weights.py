"""Weights files of a backbone: their paths and checksums, without Keras.

Three kinds: ``"imagenet"`` (a file in Keras' own cache, downloaded by Keras if missing),
``"random:SEED"`` (no file), and a local file.
"""

import contextlib
import hashlib
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

from pipeline.errors import UsageError, WeightsError
from pipeline.features.backbones import Backbone
from pipeline.features.keras_runtime import load_keras

IMAGENET = "imagenet"
FILE = "file"
TUNED = "tuned"  # a local file written by `pipeline.finetuning.tuning`
WEIGHT_SUFFIXES = (".weights.h5", ".h5", ".hdf5")


def parse_weights(weights: str | os.PathLike[str]) -> tuple[str, Path | None]:
    """Split the option ``--weights`` into its kind and, for a local file, its path.

    Returns
    -------
    kind : str
        ``"imagenet"``, ``"random:SEED"``, ``"file"``, or ``"tuned"`` for a file that fine-tuning made.
    path : Path or None
        Absolute, for local files only.

    Raises
    ------
    UsageError
        If it is none of these words and not an existing file.

    Examples
    --------
    >>> parse_weights("random")
    ('random:0', None)
    """
    text = os.fspath(weights)
    if text == IMAGENET:
        return IMAGENET, None
    if match := re.fullmatch(r"random(?::(\d+))?", text):
        return f"random:{int(match[1] or 0)}", None
    path = Path(text)
    if not path.is_file():
        raise UsageError(
            f"weights {text!r} are not 'imagenet', 'random', 'random:SEED' or an existing file; check the path"
        )
    if not text.endswith(WEIGHT_SUFFIXES):
        raise UsageError(
            f"weights file {text!r} does not end in .weights.h5 or .h5; a whole .keras model is named"
            " with --backbone instead"
        )
    from pipeline.features.hdf5 import has_tag

    return TUNED if has_tag(path, TUNED) else FILE, path.absolute()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Raises
    ------
    WeightsError
        If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"cannot read the weights {path}: {error.strerror}; check the path") from error


def check_digest(path: Path, expected: str) -> None:
    """Raise WeightsError unless a weights file exists and has the expected SHA-256."""
    if not path.is_file():
        raise WeightsError(f"the weights {path} are missing; restore the file with SHA-256 {expected[:12]}…")
    digest = file_sha256(path)
    if digest != expected:
        raise WeightsError(
            f"{path} has SHA-256 {digest[:12]}…, expected {expected[:12]}…: the weights have changed since the vectors"
            " were made; restore the old file or extract again with --overwrite"
        )


def imagenet_file(backbone: Backbone, size: int) -> Path:
    """Return the path of a backbone's published ImageNet weights; Keras downloads them if they are missing.

    They are searched in the cache of Keras: ``$KERAS_HOME/models`` or ``~/.keras/models``.

    Raises
    ------
    WeightsError
        If they are missing and cannot be downloaded; the message names the file and its folder. Also if the
        file differs from the one that Keras publishes (an interrupted download).
    """
    name = backbone.weights_name(size)
    path = _in_keras_cache(name)
    if path is None:
        _let_keras_download(backbone, size)
        path = _in_keras_cache(name)
    if path is None:
        raise WeightsError(f"Keras downloaded no {name} into {_cache_folders()[0]}; name the file with --weights")
    return path


def is_published(path: Path, backbone: Backbone) -> bool:
    """Return whether a file has the checksum that Keras publishes for this backbone."""
    expected = backbone.weights_hash
    if expected is None:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5" if len(expected) == 32 else "sha256").hexdigest() == expected


def _cache_folders() -> list[Path]:
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").expanduser()
    # Keras uses the temporary folder if it cannot write to its home.
    return [home / "models", Path(tempfile.gettempdir()) / ".keras" / "models"]


def _in_keras_cache(name: str) -> Path | None:
    return next((folder / name for folder in _cache_folders() if (folder / name).is_file()), None)


def _let_keras_download(backbone: Backbone, size: int) -> None:
    keras = load_keras()
    constructor = getattr(keras.applications, backbone.constructor)
    width = {} if backbone.alpha is None else {"alpha": backbone.alpha}
    try:
        # Keras prints its download progress on standard output, and warns about sizes without weights of their own.
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"):
            constructor(weights=IMAGENET, include_top=False, input_shape=(size, size, 3), **width)
    except Exception as error:
        name = backbone.weights_name(size)
        raise WeightsError(
            f"the ImageNet weights of {backbone.name} are not on this machine and cannot be downloaded"
            f" ({' '.join(str(error).split())}); put the file {name} into {_cache_folders()[0]},"
            " or name a local file with --weights FILE, or use --weights random"
        ) from error
    finally:
        keras.utils.clear_session()
