"""Features: what one forward pass yields; and FeatureCache, which makes sure that it is only one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from dinoviz.cache import OnceCache
from dinoviz.errors import DinovizError
from dinoviz.images import PatchGrid

if TYPE_CHECKING:
    from dinoviz.backbone import Backbone

DIGEST_PIXELS = 1 << 20
# What a pass holds beside what it keeps, in residual streams: a block's own (4 D channels twice in the MLP alone), and
# what the allocator cannot use again at once. Fitted to the measurements in `encode_bytes`.
PASS_STREAMS = 25

Layers = Sequence[int] | Literal["all"]


@dataclass(frozen=True, eq=False)
class LayerTokens:
    """What one transformer block left behind. N = 1 + R + h * w tokens: CLS, registers, patches.

    patches: (h, w, D), the block's output after the model's final norm (DINOv2's `get_intermediate_layers`).
    norms: (h, w), Euclidean length of the block's output *before* the final norm, where artefacts show.
    query, key: (heads, N, D / heads), as they entered the attention (after the rotary embedding, where there is one).
    cls: (D,), the CLS token after the final norm.
    """

    patches: np.ndarray
    norms: np.ndarray
    query: np.ndarray
    key: np.ndarray
    cls: np.ndarray


@dataclass(frozen=True, eq=False)
class Features:
    """One image as one model saw it in one forward pass. All arrays are float32 in main memory.

    cls: (D,), patches: (h, w, D), registers: (R, D): the last block's tokens after the final norm.
    grid: where each patch lies in the uploaded picture.
    layers: how many blocks the model has; captured: what was kept of the blocks that were asked for, by index from 0.
    scaling: the factor on q k^T before the softmax.
    weights: the model's name as the user knows it; weights_id: a hash of the weights' content.
    """

    cls: np.ndarray
    patches: np.ndarray
    registers: np.ndarray
    grid: PatchGrid
    layers: int
    captured: dict[int, LayerTokens]
    scaling: float
    weights: str
    weights_id: str

    def layer(self, layer: int) -> np.ndarray:
        """Patches (h, w, D) of a captured layer after the final norm; `layer` as in a Python list: -1 is the last.

        Raises DinovizError if the layer does not exist or was not asked for in `encode`.
        """
        return self.patches if layer in (-1, self.layers - 1) else self.tokens(layer).patches

    def layer_cls(self, layer: int) -> np.ndarray:
        """The CLS token (D,) of a captured layer after the final norm. Raises as `layer` does."""
        return self.cls if layer in (-1, self.layers - 1) else self.tokens(layer).cls

    def tokens(self, layer: int) -> LayerTokens:
        """Everything that was kept of a captured layer. Raises as `layer` does."""
        index = layer_index(layer, self.layers)
        if index not in self.captured:
            raise DinovizError(
                f"Layer {layer} was not captured, only {sorted(self.captured)}: encode with layers=({layer},) or 'all'."
            )
        return self.captured[index]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = [self.cls, self.patches, self.registers]
        for tokens in self.captured.values():
            arrays += [tokens.norms, tokens.query, tokens.key]
            if tokens.patches is not self.patches:  # those of the last layer are the same arrays
                arrays += [tokens.patches, tokens.cls]
        return sum(array.nbytes for array in arrays)


def part_layer(layers: int) -> int:
    """The layer, from 0, whose patches know best which part of a thing they are: at two thirds of a network of so many.

    The last layers know more of what kind of thing it is (Amir et al. 2021 match parts best with layer 9 of 12). Of the
    layers 8 to 12 of a ViT-S, 8 and 10 followed things through videos best.
    """
    return max(1, round(layers * 2 / 3)) - 1


def layer_index(layer: int, layers: int) -> int:
    """The index from 0 of a layer given as in a Python list. Raises DinovizError if there is no such layer."""
    if layer != int(layer):
        raise DinovizError(f"A layer is a whole number, not {layer}.")
    if not -layers <= layer < layers:
        raise DinovizError(f"The model has {layers} layers, 0 to {layers - 1} or {-layers} to -1, not {layer}.")
    return int(layer) % layers


def layer_indices(wanted: Layers, layers: int) -> tuple[int, ...]:
    """Sorted indices from 0 of the layers asked for; "all" is every one."""
    if isinstance(wanted, str):
        if wanted != "all":
            raise DinovizError(f"Layers are numbers or 'all', not {wanted!r}.")
        return tuple(range(layers))
    return tuple(sorted({layer_index(layer, layers) for layer in wanted}))


def image_digest(image: Image.Image) -> str:
    """A hash of an RGB image's pixels and size."""
    digest = hashlib.sha256(f"{image.mode}{image.size}".encode())
    rows = max(1, DIGEST_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):  # in bands: all at once would be two more copies of the picture
        digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.hexdigest()


def features_bytes(backbone: Backbone, patches: int, layers: Layers) -> int:
    """`Features.nbytes` to within a few thousandths, before there are any: tokens, queries and keys of each layer."""
    return 3 * len(layer_indices(layers, backbone.layers)) * _stream_bytes(backbone, patches)


def encode_bytes(backbone: Backbone, patches: int, layers: Layers) -> int:
    """About the main memory that `encode` takes at its peak, of one image, with the features that it returns.

    Measured with a ViT-S on a CPU, all layers: 157 MB at 518 px, 509 MB at 1036 px, 1679 MB at 1792 px. On a GPU less.
    """
    pixels = 40 * patches * backbone.patch_size**2  # resized as bytes, then as floats, and one copy of those
    return 2**25 + pixels + features_bytes(backbone, patches, layers) + PASS_STREAMS * _stream_bytes(backbone, patches)


def _stream_bytes(backbone: Backbone, patches: int) -> int:
    """Of the residual stream (N, D) in float32."""
    return 4 * (1 + backbone.registers + patches) * backbone.dim


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
