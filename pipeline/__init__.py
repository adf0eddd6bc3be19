"""Two-stage feature extraction for transfer learning on images.

Stage 1 (`extract`) sends every image through a pre-trained convnet once and caches the vectors.
Stage 2 (`train_head`) trains a classifier on them in seconds. `Bundle` and `predict` apply both.
Names are imported when they are first used, so that ``import pipeline`` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.bundles.bundle import Bundle
    from pipeline.errors import ImageError, IntegrityError, PipelineError
    from pipeline.features.backbones import BACKBONES, Backbone
    from pipeline.features.extraction import Summary, extract
    from pipeline.features.options import Speed
    from pipeline.features.recipe import Recipe
    from pipeline.features.store import FeatureStore, verify
    from pipeline.features.transformer import BottleneckFeatures
    from pipeline.finetuning.tuning import Tuning, fine_tune
    from pipeline.heads.classifiers import HEADS
    from pipeline.heads.keras_head import KerasHead
    from pipeline.images.manifest import Manifest
    from pipeline.prediction import Prediction, predict
    from pipeline.training.comparison import compare
    from pipeline.training.multi_label import train_multi_label
    from pipeline.training.report import Report
    from pipeline.training.single_label import train_head
    from pipeline.trust.options import Trust

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
    "Speed": "features.engines",
    "Summary": "features.extraction",
    "Trust": "trust.options",
    "Tuning": "finetuning.tuning",
    "compare": "training.comparison",
    "extract": "features.extraction",
    "fine_tune": "finetuning.tuning",
    "predict": "prediction",
    "train_head": "training.single_label",
    "train_multi_label": "training.multi_label",
    "verify": "features.store",
}

__all__ = [
    "BACKBONES",
    "HEADS",
    "Backbone",
    "BottleneckFeatures",
    "Bundle",
    "FeatureStore",
    "ImageError",
    "IntegrityError",
    "KerasHead",
    "Manifest",
    "PipelineError",
    "Prediction",
    "Recipe",
    "Report",
    "Speed",
    "Summary",
    "Trust",
    "Tuning",
    "compare",
    "extract",
    "fine_tune",
    "predict",
    "train_head",
    "train_multi_label",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pipeline.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
