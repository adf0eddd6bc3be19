"""The only module that imports Keras, always in the same environment."""

import contextlib
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import EngineError


def load_keras() -> ModuleType:
    """Import Keras with the TensorFlow backend, without its notices, and return the module.

    Raises
    ------
    EngineError
        If Keras uses another backend than TensorFlow or channels first: vectors and heads are defined for
        TensorFlow and channels last.

    Examples
    --------
    >>> load_keras().config.backend()
    'tensorflow'
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # start-up notices of TensorFlow's C++ side
    try:
        with quiet_import():
            import keras
    except ImportError as error:
        raise EngineError(f"Keras cannot be imported ({error}); run: pip install tensorflow keras") from error
    if keras.config.backend() != "tensorflow":
        raise EngineError(
            f"Keras runs on {keras.config.backend()!r}, expected 'tensorflow'; unset KERAS_BACKEND"
            " or set it to tensorflow"
        )
    if keras.config.image_data_format() != "channels_last":
        raise EngineError(
            "Keras is set to image_data_format 'channels_first', expected 'channels_last'; change it in keras.json"
        )
    return keras


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Suppress TensorFlow's notices while it is imported; print them if the import fails.

    Its C++ code writes them to descriptor 2 before the log level takes effect.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as notices:
        stderr = os.dup(2)
        os.dup2(notices.fileno(), 2)
        try:
            yield
        except BaseException:
            notices.seek(0)
            os.write(stderr, notices.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def weights_file(model: Any) -> bytes:
    """Return the file that ``model.save_weights`` would write, as bytes.

    It is taken from a ``.keras`` archive, for which Keras builds the HDF5 file in memory: HDF5 itself can crash on a
    full disk.

    Raises
    ------
    OSError
        If the folder for temporary files is full.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # Keras 3.15 reads its variables in a way that NumPy 2 warns about.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        model.save(Path(folder) / "model.keras")
        with zipfile.ZipFile(Path(folder) / "model.keras") as archive:
            return archive.read("model.weights.h5")
