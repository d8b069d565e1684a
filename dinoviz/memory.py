"""Estimates, from the model's sizes, of the memory of a forward pass and of its features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dinoviz.features import Layers, layer_indices

if TYPE_CHECKING:
    from dinoviz.backbone import Backbone


# Temporary memory of a pass, in residual streams: the activations of a block (4 D channels twice in the MLP alone) and
# what the allocator cannot reuse at once. Fitted to the measurements in `encode_bytes`.
PASS_STREAMS = 25


def features_bytes(backbone: Backbone, patches: int, layers: Layers) -> int:
    """`Features.nbytes` to within a few thousandths, before encoding: tokens, queries and keys of each layer."""
    return 3 * len(layer_indices(layers, backbone.layers)) * _stream_bytes(backbone, patches)


def encode_bytes(backbone: Backbone, patches: int, layers: Layers) -> int:
    """Approximate peak main memory of `encode` for one image, including the features that it returns.

    Measured with a ViT-S on a CPU, all layers: 157 MB at 518 px, 509 MB at 1036 px, 1679 MB at 1792 px; less on a GPU.
    """
    pixels = 40 * patches * backbone.patch_size**2  # resized as bytes, then as floats, and one copy of those
    return 2**25 + pixels + features_bytes(backbone, patches, layers) + PASS_STREAMS * _stream_bytes(backbone, patches)


def _stream_bytes(backbone: Backbone, patches: int) -> int:
    """Bytes of the residual stream (N, D) in float32."""
    return 4 * (1 + backbone.registers + patches) * backbone.dim
