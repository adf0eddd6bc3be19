"""Errors and warnings of scikit-learn while fitting, as errors and notes of this package."""

import contextlib
import warnings
from collections.abc import Iterator

import numpy as np

from pipeline.errors import PipelineError, TrainingError, UsageError


@contextlib.contextmanager
def sklearn_errors(head_name: str) -> Iterator[set[str]]:
    """Turn scikit-learn's errors while fitting into this package's errors, and its warnings into notes.

    Yields
    ------
    set of str
        The notes, complete once the block has ended.

    Raises
    ------
    UsageError
        If a parameter of the head has a wrong value.
    TrainingError
        If the head cannot be fitted.
    """
    from sklearn.utils._param_validation import InvalidParameterError

    from pipeline.heads.softmax_head import HARMLESS

    notes: set[str] = set()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for message in HARMLESS:
                warnings.filterwarnings("ignore", message=message)
            yield notes
        notes.update(f"{head_name}: {str(each.message).strip().splitlines()[0]}" for each in caught)
    except PipelineError:
        raise
    except InvalidParameterError as error:
        raise UsageError(f"head {head_name!r}: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, FloatingPointError, np.linalg.LinAlgError) as error:
        raise TrainingError(
            f"head {head_name!r} cannot be fitted on these vectors ({' '.join(str(error).split())[:200]}); change its"
            " parameters or choose another --head"
        ) from error
