"""Caches that make each thing once: bounded, least recently used, safe under threads; FeatureCache for features."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

from PIL import Image

from dinoviz.errors import Stopped
from dinoviz.features import Features, Layers, layer_indices

if TYPE_CHECKING:
    from dinoviz.backbone import Backbone

Value = TypeVar("Value")


class OnceCache(Generic[Value]):
    """Values by key within a bound; two equal requests at once make the value once, the second waits for the first.

    bound: the largest sum of sizes. size: of a value, in the unit of the bound (bytes, or 1 each).
    newest_stays: even if it alone exceeds the bound, since somebody is looking at it; otherwise it is handed out only.
    """

    def __init__(self, bound: int, size: Callable[[Value], int] = lambda value: 1, *, newest_stays: bool = True):
        self.bound = bound
        self.newest_stays = newest_stays
        self.total = 0
        self._size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._under_way: dict[Hashable, Future] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def peek(self, key: Hashable) -> Value | None:
        """The value if it is there; never makes it."""
        with self._lock:
            return self._values.get(key)

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value, made by `make()` if it is not there. What that raises reaches everyone who waits, and is not kept.

        Only Stopped, which one person asked for, is not passed on: the next in line makes the value.
        """
        while True:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    return self._values[key]
                others = self._under_way.get(key)
                if others is None:
                    mine = self._under_way[key] = Future()
            if others is None:
                return self._make(key, mine, make)
            try:
                return others.result()
            except Stopped:
                continue

    def make_room(self, size: int) -> None:
        """Forget the least recently used until a value of this size fits: before it is made, so that both never are."""
        with self._lock:
            self._shrink(self.bound - size, 0)

    def _shrink(self, bound: int, least: int) -> None:
        while self.total > bound and len(self._values) > least:
            self.total -= self._size(self._values.popitem(last=False)[1])

    def _make(self, key: Hashable, mine: Future, make: Callable[[], Value]) -> Value:
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._under_way[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._under_way[key]
            self._values[key] = value
            self.total += self._size(value)
            self._shrink(self.bound, int(self.newest_stays))
        mine.set_result(value)
        return value


DIGEST_PIXELS = 1 << 20


def image_digest(image: Image.Image) -> str:
    """A hash of an RGB image's pixels and size."""
    digest = hashlib.sha256(f"{image.mode}{image.size}".encode())
    rows = max(1, DIGEST_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):  # in bands: all at once would be two more copies of the picture
        digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.hexdigest()


class FeatureCache:
    """The features of the images looked at last, within a number of bytes; safe under threads.

    The key is the weights' content, the image's content, the resolution and the layers. Two equal requests at once
    encode once: the second waits for the first.
    """

    def __init__(self, max_bytes: int):
        self._cache: OnceCache[Features] = OnceCache(max_bytes, size=lambda features: features.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of all features that are kept."""
        return self._cache.total

    def __len__(self) -> int:
        return len(self._cache)

    def encode(
        self,
        backbone: Backbone,
        image: Image.Image,
        resolution: int,
        layers: Layers = (-1,),
        *,
        digest: str | None = None,
        on_block: Callable[[int, int], None] | None = None,
    ) -> Features:
        """`backbone.encode`, unless it was done before. Raises what that raises.

        digest: `image_digest(image)`, where the caller knows it already.
        """
        digest = digest or image_digest(image)
        return self.get(
            backbone, digest, resolution, layers, lambda: backbone.encode(image, resolution, layers, on_block=on_block)
        )

    def get(
        self, backbone: Backbone, digest: str, resolution: int, layers: Layers, encode: Callable[[], Features]
    ) -> Features:
        """The features, made by `encode()` if they are not there. Raises what that raises."""
        return self._cache.get(self._key(backbone, digest, resolution, layers), encode)

    def make_room(self, nbytes: int) -> None:
        """Forget the features looked at longest ago until so many bytes fit."""
        self._cache.make_room(nbytes)

    def peek(self, backbone: Backbone, digest: str, resolution: int, layers: Layers = (-1,)) -> Features | None:
        """The features if they are there, else None; never encodes."""
        return self._cache.peek(self._key(backbone, digest, resolution, layers))

    @staticmethod
    def _key(backbone: Backbone, digest: str, resolution: int, layers: Layers) -> tuple:
        return backbone.key, digest, resolution, layer_indices(layers, backbone.layers)
