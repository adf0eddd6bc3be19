"""The heat maps of the report page."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.bundles.bundle import Bundle
from pipeline.errors import ImageError, PipelineError
from pipeline.features.options import Speed
from pipeline.images.decode import open_rgb
from pipeline.insight.answers import Answers
from pipeline.insight.explain import CAM, Explainer, overlay
from pipeline.insight.pictures import data_url, photograph, thumbnail


@dataclass(frozen=True)
class HeatMaps:
    """Heat maps of answers.

    Parameters
    ----------
    count : int
        Number of images that were to get one.
    method : str
        Empty if there is none.
    urls : dict of int to str
        Index of the answer -> data URL of the image; without images that cannot be read.
    notes : list of str
        Why there are none.
    """

    count: int
    method: str = ""
    urls: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, bundle: Bundle, answers: Answers, indices: Sequence[int], side: int) -> "HeatMaps":
        """Explain the predicted classes of some images, each at most `side` pixels wide and high."""
        if not indices:
            return cls(0)
        urls: dict[int, str] = {}
        method = ""
        notes = []
        try:
            explainer = Explainer(bundle, Speed())
            method = "class activation map" if explainer.method == CAM else "occlusion"
            for index in indices:
                try:
                    picture = thumbnail(open_rgb(photograph(answers.store, int(answers.rows[index]))), 2 * side)
                except ImageError:
                    continue
                heat = explainer.map(picture, int(answers.predicted[index]))
                urls[index] = data_url(thumbnail(overlay(picture, heat, bundle.recipes[0].resize), side), 72)
        except PipelineError as error:
            notes.append(f"no heat maps: {error}")
        return cls(len(indices), method if urls else "", urls, notes)
