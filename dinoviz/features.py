"""Features: the output of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dinoviz.errors import DinovizError
from dinoviz.grid import PatchGrid

Layers = Sequence[int] | Literal["all"]


@dataclass(frozen=True, eq=False)
class LayerTokens:
    """Output of one transformer block. N = 1 + R + h * w tokens: CLS, registers, patches.

    patches: (h, w, D), the block's output after the model's final norm (DINOv2's `get_intermediate_layers`).
    norms: (h, w), Euclidean length of the block's output *before* the final norm, which shows artefacts.
    query, key: (heads, N, D / heads), as they enter the attention (after the rotary embedding, if there is one).
    cls: (D,), the CLS token after the final norm.
    """

    patches: np.ndarray
    norms: np.ndarray
    query: np.ndarray
    key: np.ndarray
    cls: np.ndarray


@dataclass(frozen=True, eq=False)
class Features:
    """The features of one image from one forward pass of one model. All arrays are float32 in main memory.

    cls: (D,), patches: (h, w, D), registers: (R, D): the last block's tokens after the final norm.
    grid: where each patch lies in the uploaded picture.
    layers: number of blocks of the model; captured: outputs of the requested blocks, by index from 0.
    scaling: the factor on q k^T before the softmax.
    weights: name of the model; weights_id: hash of the weights' content.
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

        Raises DinovizError if the layer does not exist or was not requested from `encode`.
        """
        return self.patches if layer in (-1, self.layers - 1) else self.tokens(layer).patches

    def layer_cls(self, layer: int) -> np.ndarray:
        """The CLS token (D,) of a captured layer after the final norm. Raises as `layer` does."""
        return self.cls if layer in (-1, self.layers - 1) else self.tokens(layer).cls

    def tokens(self, layer: int) -> LayerTokens:
        """All outputs of a captured layer. Raises as `layer` does."""
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
            if tokens.patches is not self.patches:  # the last layer shares them
                arrays += [tokens.patches, tokens.cls]
        return sum(array.nbytes for array in arrays)


def part_layer(layers: int) -> int:
    """The layer, from 0, whose patches best distinguish the parts of an object: at two thirds of the depth.

    The last layers encode more of the object's category (Amir et al. 2021 match parts best with layer 9 of 12). Of
    layers 8 to 12 of a ViT-S, 8 and 10 tracked objects through videos best.

    Args:
        layers: number of layers of the network.
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
    """Sorted indices from 0 of the wanted layers; "all" is every layer."""
    if isinstance(wanted, str):
        if wanted != "all":
            raise DinovizError(f"Layers are numbers or 'all', not {wanted!r}.")
        return tuple(range(layers))
    return tuple(sorted({layer_index(layer, layers) for layer in wanted}))
