"""Two-stage feature extraction for transfer learning on images.

Stage 1 (`extract`) sends every image through a pre-trained convnet once and caches the vectors.
Stage 2 (`train_head`) trains a classifier on them in seconds. `Bundle` and `predict` apply both.
A name is imported when it is first used, so that ``import pipeline`` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the names of `_HOMES` for type checkers, to which "as" makes a name public
    from pipeline.bundles.bundle import Bundle as Bundle
    from pipeline.errors import ImageError as ImageError
    from pipeline.errors import IntegrityError as IntegrityError
    from pipeline.errors import PipelineError as PipelineError
    from pipeline.features.backbones import BACKBONES as BACKBONES
    from pipeline.features.backbones import Backbone as Backbone
    from pipeline.features.extraction import Summary as Summary
    from pipeline.features.extraction import extract as extract
    from pipeline.features.options import Speed as Speed
    from pipeline.features.recipe import Recipe as Recipe
    from pipeline.features.store import FeatureStore as FeatureStore
    from pipeline.features.store import verify as verify
    from pipeline.features.transformer import BottleneckFeatures as BottleneckFeatures
    from pipeline.finetuning.options import Tuning as Tuning
    from pipeline.finetuning.tuning import fine_tune as fine_tune
    from pipeline.heads.classifiers import HEADS as HEADS
    from pipeline.heads.keras_head import KerasHead as KerasHead
    from pipeline.images.manifest import Manifest as Manifest
    from pipeline.prediction import Prediction as Prediction
    from pipeline.prediction import predict as predict
    from pipeline.training.comparison import compare as compare
    from pipeline.training.multi_label import train_multi_label as train_multi_label
    from pipeline.training.report import Report as Report
    from pipeline.training.single_label import train_head as train_head
    from pipeline.trust.options import Trust as Trust

_HOMES = {
    "BACKBONES": "features.backbones",
    "HEADS": "heads.classifiers",
    "Backbone": "features.backbones",
    "BottleneckFeatures": "features.transformer",
    "Bundle": "bundles.bundle",
    "FeatureStore": "features.store",
    "ImageError": "errors",
    "IntegrityError": "errors",
    "KerasHead": "heads.keras_head",
    "Manifest": "images.manifest",
    "PipelineError": "errors",
    "Prediction": "prediction",
    "Recipe": "features.recipe",
    "Report": "training.report",
    "Speed": "features.options",
    "Summary": "features.extraction",
    "Trust": "trust.options",
    "Tuning": "finetuning.options",
    "compare": "training.comparison",
    "extract": "features.extraction",
    "fine_tune": "finetuning.tuning",
    "predict": "prediction",
    "train_head": "training.single_label",
    "train_multi_label": "training.multi_label",
    "verify": "features.store",
}
if not TYPE_CHECKING:
    __all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pipeline.{_HOMES[name]}"), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
