"""Options of stage 1: what determines a vector, how vectors are stored, and how fast they are made."""

import os

from pipeline.errors import UsageError
from pipeline.option_groups import option, options
from pipeline.parallel import cores
from pipeline.wording import closest

DTYPES = ("float32", "float16")


@options
class RecipeOptions:
    """What determines a vector, besides the backbone.

    Parameters
    ----------
    weights : str or path
        ``"imagenet"`` (downloaded by Keras if absent), ``"random"``, ``"random:SEED"`` or a local
        ``.weights.h5`` / ``.h5`` file.
    layers : tuple of str
        Names of layers; empty for the last feature map.
    pooling : {"avg", "max", "flatten"}
        How a feature map becomes a vector.
    size : int or None
        Side of the input in pixels; None for the backbone's own size (a ``.keras`` model of open size needs one).
    resize : {"squash", "crop", "pad"}
        How an image becomes a square.
    precision : {"float32", "bfloat16", "float16"}
        Arithmetic of the network; float16 needs a GPU.
    views : str
        Augmented versions of each image, see `pipeline.images.views.parse_views`.
    """

    weights: str | os.PathLike[str] = option(default="imagenet", help="imagenet, random, random:SEED or a .h5 file.")
    layers: tuple[str, ...] = option(
        default=(), flag="--layer", metavar="NAME", help="A layer whose output is used as features; repeatable."
    )
    pooling: str = option(default="avg", help="avg, max or flatten.")
    size: int | None = option(
        default=None, metavar="PX", help="Side of the input in pixels.  [default: the backbone's own]"
    )
    resize: str = option(default="squash", help="squash, crop or pad.")
    precision: str = option(
        default="float32", help="Arithmetic of the network: float32, bfloat16, or float16 on a GPU."
    )
    views: str = option(
        default="1", help="Augmented versions of each image: flip, or K or K:SEED for K random ones (1 is none)."
    )


@options
class Storage:
    """How vectors are stored.

    Parameters
    ----------
    dtype : {"float32", "float16"}
    overwrite : bool
        Replace a file that was made with another recipe.
    """

    dtype: str = option(default="float32", help="Stored type: float32 or float16.")
    overwrite: bool = option(default=False, help="Replace a file that was made with another recipe.")

    def check(self) -> None:
        """Raise UsageError for an unknown `dtype`."""
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype {self.dtype!r} is unknown; {closest(self.dtype, DTYPES)}")


@options
class Speed:
    """What changes how fast vectors are made, and nothing else.

    Parameters
    ----------
    engine : {"auto", "keras", "openvino"}
        ``"auto"`` is ``keras`` on a machine with an NVIDIA GPU, else ``openvino``.
    batch_size : int or None
        Images per forward pass; None for a size that suits the recipe.
    workers : int or None
        Decoding processes; None for one per processor core.
    """

    engine: str = option(default="auto", help="Library that runs the network: auto, keras or openvino.")
    batch_size: int | None = option(
        default=None, min=1, help="Images per forward pass.  [default: depends on the size]"
    )
    workers: int | None = option(default=None, min=1, help="Decoding processes.  [default: one per core]")

    def threads(self) -> int:
        """Return the number of decoding processes, and of threads that wait for them."""
        if self.workers is None:
            return cores()
        if self.workers < 1:
            raise UsageError(f"workers {self.workers} is too few; give 1 or more")
        return self.workers
