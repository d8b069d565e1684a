"""Bounded, thread-safe LRU caches that compute each value once; FeatureCache for features."""

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
    """An LRU cache in which concurrent requests for one key compute the value once: the second waits for the first.

    bound: the largest sum of sizes. size: of a value, in the unit of the bound (bytes, or 1 each).
    newest_stays: keep the newest value even if it alone exceeds the bound, since it is in use.
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
        """The cached value, or None."""
        with self._lock:
            return self._values.get(key)

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The cached value, else the result of `make()`. Its exceptions reach all waiting callers and are not cached.

        Except Stopped, which concerns one caller only: the next waiting caller makes the value.
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
        """Evict least recently used values until one of this size fits, so that it is not held beside them."""
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
    for top in range(0, image.height, rows):  # in bands, since all at once would take two more copies of the picture
        digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.hexdigest()


class FeatureCache:
    """The features of the images used last, within a number of bytes; thread-safe.

    The key is the content of the weights and of the image, the resolution and the layers. Concurrent equal requests
    encode once: the second waits for the first.
    """

    def __init__(self, max_bytes: int):
        self._cache: OnceCache[Features] = OnceCache(max_bytes, size=lambda features: features.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of all cached features."""
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
        """The cached features, else those of `backbone.encode`, whose exceptions pass through.

        digest: `image_digest(image)`, if it is known already.
        """
        digest = digest or image_digest(image)
        return self.get(
            backbone, digest, resolution, layers, lambda: backbone.encode(image, resolution, layers, on_block=on_block)
        )

    def get(
        self, backbone: Backbone, digest: str, resolution: int, layers: Layers, encode: Callable[[], Features]
    ) -> Features:
        """The cached features, else those of `encode()`, whose exceptions pass through."""
        return self._cache.get(self._key(backbone, digest, resolution, layers), encode)

    def make_room(self, nbytes: int) -> None:
        """Evict the least recently used features until this many bytes fit."""
        self._cache.make_room(nbytes)

    def peek(self, backbone: Backbone, digest: str, resolution: int, layers: Layers = (-1,)) -> Features | None:
        """The cached features, or None; never encodes."""
        return self._cache.peek(self._key(backbone, digest, resolution, layers))

    @staticmethod
    def _key(backbone: Backbone, digest: str, resolution: int, layers: Layers) -> tuple:
        return backbone.key, digest, resolution, layer_indices(layers, backbone.layers)
