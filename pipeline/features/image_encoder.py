"""`ImageEncoder`: a stream of images to a stream of vectors.

Images are decoded ahead in child processes (`pipeline.images.isolation`) while the networks work on a batch, and
each image is decoded once for all networks. Memory holds a few batches, however long the stream is.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.features.engines import Encoder
from pipeline.features.recipe import Recipe
from pipeline.images.decode import read_bytes
from pipeline.images.isolation import Decoders
from pipeline.images.views import PixelSpec, load_flat, load_views, split_flat
from pipeline.parallel import ahead

_AHEAD_BYTES = 64 << 20  # decoded pixels that may wait for the networks

Pixels = list[NDArray[np.uint8]]  # of one image: (views, size, size, 3) for each distinct spec of the recipes
Item = TypeVar("Item")
Other = TypeVar("Other")


class ImageEncoder:
    """Turns images into vectors, with decoding processes, threads and networks of its own.

    Use it as a context manager. One object may serve many streams, also from several threads; only one batch is
    in the networks at a time.

    Parameters
    ----------
    recipes : sequence of Recipe
        One per network; networks that expect the same pixels share them.
    make_encoders : callable () -> sequence of Encoder
        Makes the networks, in the order of `recipes`; called once, when the first image needs them, or by `load`.
    threads : int
        Images that are decoded at a time.
    isolated : bool
        Decode paths and bytes in child processes, which a hostile image cannot escape; otherwise in this process,
        which starts faster. Arrays and PIL images are always decoded in this process.

    Examples
    --------
    >>> from pipeline.features.engines import make_encoder
    >>> recipe = Recipe("mobilenet_0.25", "random:0", size=32)
    >>> with ImageEncoder([recipe], lambda: [make_encoder(recipe)], threads=2) as images:
    ...     for image, vectors in images.stream([np.zeros((40, 60, 3), np.uint8), b"not an image"]):
    ...         print(str(vectors)[:12] if isinstance(vectors, ImageError) else vectors.shape)
    (1, 256)
    not-an-image
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        make_encoders: Callable[[], Sequence[Encoder]],
        threads: int,
        *,
        isolated: bool = True,
    ) -> None:
        wanted = [recipe.pixels for recipe in recipes]
        self._specs = list(dict.fromkeys(wanted))
        self._spec_of = [self._specs.index(spec) for spec in wanted]  # of each network
        self._request = [spec.to_json() for spec in self._specs]  # to the decoding processes
        self._make_encoders = make_encoders
        self._threads = threads
        self._isolated = isolated
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._decoding = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="encode")
        for pool in (self._decoding, self._encoding):
            self._stack.callback(pool.shutdown, cancel_futures=True)
        # Closed first, so that no thread waits for a decode that hangs.
        self._decoders: Any = self._stack.enter_context(Decoders(load_flat)) if self._isolated else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @cached_property
    def encoders(self) -> Sequence[Encoder]:
        """The networks, in the order of the recipes."""
        return self._make_encoders()

    def load(self) -> None:
        """Start a decoding process and load the networks now instead of with the first image.

        Raises
        ------
        WeightsError
            If the weights are absent or have changed.
        """
        if self._isolated:
            self._decoders.start()  # it starts while the networks are loaded
        self.encoders  # noqa: B018 - makes them

    def decode(self, source: Any) -> Pixels:
        """Read and decode one image: a path, bytes, a PIL image or a uint8 array (h, w, 3).

        Raises
        ------
        ImageError
            If it cannot be read or decoded.
        """
        if not (self._isolated and isinstance(source, (str, os.PathLike, bytes))):
            return load_views(source, self._specs)
        content = source if isinstance(source, bytes) else read_bytes(source)
        return split_flat(self._decoders(content, self._request), self._specs)

    def try_to_decode(self, source: Any) -> Pixels | ImageError:
        """Return what `decode` returns, or the error that it raises."""
        try:
            return self.decode(source)
        except ImageError as error:
            return error

    def decoded(self, items: Iterable[Item], decode: Callable[[Item], Other]) -> Iterator[tuple[Item, Other]]:
        """Yield ``(item, decode(item))`` in order; threads work ahead, within bounds on memory.

        `decode` may call `ImageEncoder.decode` and return something else where the networks need not see an image.
        """
        return ahead(self._decoding, items, decode, decode_window(self._specs, self._threads))

    def encoded(
        self, decoded: Iterable[tuple[Item, Pixels | Other]]
    ) -> Iterator[list[tuple[Item, NDArray[np.float32] | Other]]]:
        """Yield the items in order, batch by batch, with vectors (views, dim) in place of pixels.

        Vectors of several networks are side by side; results of `decoded` other than pixels are passed on.
        """
        # The next batch is gathered, and the last one used by the caller, while the networks work on this one.
        for batch, vectors in ahead(self._encoding, self._batches(decoded), self._encode, 2):
            rows = iter(vectors)
            yield [(item, next(rows) if isinstance(result, list) else result) for item, result in batch]

    def batches(self, images: Iterable[Item]) -> Iterator[list[tuple[Item, NDArray[np.float32] | ImageError]]]:
        """Yield images in order, batch by batch, each with its vectors (views, dim) or why it has none."""
        return self.encoded(self.decoded(images, self.try_to_decode))

    def stream(self, images: Iterable[Item]) -> Iterator[tuple[Item, NDArray[np.float32] | ImageError]]:
        """Yield each image in order with its vectors (views, dim) or why it has none."""
        for batch in self.batches(images):
            yield from batch

    def vectors(self, images: Iterable[Any]) -> NDArray[np.float32]:
        """Return the vectors of some images, shape (n, views, dim).

        Raises
        ------
        ImageError
            If an image cannot be decoded.
        """
        rows = []
        for _, result in self.stream(images):
            if isinstance(result, ImageError):
                raise result
            rows.append(result)
        dim = sum(encoder.dim for encoder in self.encoders)
        return np.stack(rows) if rows else np.empty((0, self._specs[0].views.count, dim), np.float32)

    def _batches(self, decoded: Iterable[tuple[Item, Pixels | Other]]) -> Iterator[list[tuple[Item, Pixels | Other]]]:
        batch: list[tuple[Item, Pixels | Other]] = []
        for each in decoded:
            batch.append(each)
            if len(batch) == self._batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    @cached_property
    def _batch_size(self) -> int:
        """Images per batch."""
        views = max(spec.views.count for spec in self._specs)
        return max(1, max(encoder.batch_size for encoder in self.encoders) // views)

    def _encode(self, batch: Sequence[tuple[Any, Any]]) -> Iterable[NDArray[np.float32]]:
        """Return the vectors of the images of a batch that have pixels, shape (n, views, dim)."""
        images = [pixels for _, pixels in batch if isinstance(pixels, list)]
        if not images:
            return ()
        stacks = [np.concatenate(pixels) for pixels in zip(*images, strict=True)]
        vectors = [
            encoder.encode(stacks[number]).reshape(len(images), -1, encoder.dim)
            for number, encoder in zip(self._spec_of, self.encoders, strict=True)
        ]
        return vectors[0] if len(vectors) == 1 else np.concatenate(vectors, axis=2)


def decode_window(specs: Sequence[PixelSpec], threads: int) -> int:
    """Return how many decoded images may wait for the networks."""
    return max(2 * threads, min(64, _AHEAD_BYTES // sum(math.prod(spec.shape) for spec in specs)))
