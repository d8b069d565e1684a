"""Backbone: one forward pass of a vision transformer -> Features.

Attention maps do not need the attention matrix. The model runs with PyTorch's fused attention, registered with
transformers under our own name so that it can capture queries and keys of the requested layers; rows of
softmax(q k^T * scaling) are computed from them on demand.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from PIL import Image
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dinoviz.errors import DinovizError
from dinoviz.features import Features, Layers, LayerTokens, layer_index, layer_indices
from dinoviz.grid import PatchGrid
from dinoviz.images import ImageSource, open_image

ATTENTION = "dinoviz_sdpa"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class _Capture:
    """What the forward pass in this context captures, and its progress callback."""

    layers: tuple[int, ...]
    on_block: Callable[[int, int], None] | None
    rows: bool = True  # whether to capture queries and keys
    query: dict[int, torch.Tensor] = field(default_factory=dict)
    key: dict[int, torch.Tensor] = field(default_factory=dict)
    scaling: float | None = None
    output: dict[int, torch.Tensor] = field(default_factory=dict)


_capture: ContextVar[_Capture | None] = ContextVar("capture", default=None)


def _attention_forward(module, query, key, value, attention_mask, **kwargs):
    capture = _capture.get()
    layer = getattr(module, "_dinoviz_layer", None)
    if capture is not None and capture.rows and layer in capture.layers:
        capture.query[layer], capture.key[layer] = query, key
        capture.scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(ATTENTION, _attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class Backbone:
    """A frozen vision transformer of transformers' Dinov2, Dinov2WithRegisters, ViT or DINOv3 family.

    Made by `dinoviz.load`. `encode` may be called from several threads; forward passes run one after the other.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        name: str,
        source: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ):
        """Make a backbone of a transformer.

        Args:
            model: the transformer, without a head.
            name: of the weights, as shown to users.
            source: where the weights come from, for captions.
            device: where to compute.
            dtype: of the computation (by autocast); the weights and the residual stream stay float32.
            mean: of the RGB values in [0, 1] in training.
            std: standard deviation of the same.

        Raises:
            DinovizError: if the patches are not square.
        """
        self.model = model.eval().requires_grad_(False).to(device)
        self.model.set_attn_implementation(ATTENTION)
        self.name, self.source = name, source
        self.device, self.dtype = torch.device(device), dtype
        config = model.config
        sizes = config.patch_size if isinstance(config.patch_size, list | tuple) else [config.patch_size]
        if len(set(sizes)) > 1:
            raise DinovizError(f"{name} has patches of {sizes[0]} x {sizes[1]} pixels; dinoviz needs square ones.")
        self.patch_size: int = sizes[0]
        self.dim: int = config.hidden_size
        self.heads: int = config.num_attention_heads
        self.layers: int = config.num_hidden_layers
        self.registers: int = getattr(config, "num_register_tokens", 0) or 0
        self.family: str = config.model_type
        self.weights_id = _weights_id(model)
        self.mean, self.std = tuple(mean), tuple(std)
        self._mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)
        self._final_norm = next(getattr(model, n) for n in ("layernorm", "norm") if hasattr(model, n))
        self._lock = threading.Lock()
        blocks = next(
            m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == config.num_hidden_layers
        )
        for index, block in enumerate(blocks):
            for module in block.modules():
                module._dinoviz_layer = index
            block.register_forward_hook(partial(_after_block, index, self.layers))

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"Backbone({self.name!r}, {self.family}, patch {self.patch_size}, {self.dim} channels, {self.heads} heads, "
            f"{self.layers} layers, {self.registers} registers, {self.device}, {dtype})"
        )

    @property
    def key(self) -> tuple[str, str, str]:
        """What the features of an image depend on: weights, device, precision."""
        return self.weights_id, str(self.device), str(self.dtype)

    def encode(
        self,
        image: ImageSource,
        resolution: int = 518,
        layers: Layers = (-1,),
        *,
        on_block: Callable[[int, int], None] | None = None,
    ) -> Features:
        """Run the network once on one image.

        Args:
            image: anything that `open_image` accepts.
            resolution: short side in model pixels, see `PatchGrid.fit`.
            layers: blocks to capture, numbered as in a Python list, or "all".
            on_block: called with (blocks done, blocks) during the pass; an exception from it aborts the pass.

        Raises:
            ImageError: if the image cannot be read.
            DinovizError: for a resolution or layer out of range.
        """
        return self.encode_batch([image], resolution, layers, on_block=on_block)[0]

    def encode_batch(
        self,
        images: Sequence[ImageSource],
        resolution: int = 518,
        layers: Layers = (-1,),
        *,
        on_block: Callable[[int, int], None] | None = None,
    ) -> list[Features]:
        """As `encode`, in one pass for several images, whose model sizes must be the same."""
        pictures = [open_image(image) for image in images]
        grids = [PatchGrid.fit(picture.size, resolution, self.patch_size) for picture in pictures]
        if len({grid.model_size for grid in grids}) > 1:
            sizes = ", ".join(sorted({"{} x {}".format(*grid.model_size) for grid in grids}))
            raise DinovizError(f"The images of a batch must have the same model size, not {sizes}.")
        if not pictures:
            return []
        pixels = torch.stack([_to_tensor(p, g.model_size) for p, g in zip(pictures, grids, strict=True)])
        del pictures  # decoded copies, not needed while the network runs
        capture = _Capture(layer_indices(layers, self.layers), on_block)
        with self._lock, torch.inference_mode():
            output = self._forward(pixels, capture)
            return [self._features(i, grid, output, capture) for i, grid in enumerate(grids)]

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalise pixels (B, 3, H, W) in [0, 1] with the mean and std of the training; on the backbone's device."""
        return (pixels - self._mean) / self._std

    def tokens(self, pixels: torch.Tensor, layer: int | Sequence[int] = -1) -> torch.Tensor | list[torch.Tensor]:
        """Tokens of a batch, without attention and grids: for k-NN, probes and training data.

        Args:
            pixels: (B, 3, H, W) in [0, 1], sides multiples of patch_size.
            layer: block, numbered as in a Python list, or several of them.

        Returns:
            (B, N, D) float32 on the backbone's device, after the final norm: CLS, registers, patches row by row; for
            several layers a list of such tensors, from one pass.

        Raises:
            DinovizError: for a layer that does not exist, and sides that are no multiples of patch_size.
        """
        if any(side % self.patch_size for side in pixels.shape[-2:]):
            size = " x ".join(str(side) for side in reversed(pixels.shape[-2:]))
            raise DinovizError(f"{size} pixels are not multiples of the patch size {self.patch_size}.")
        wanted = [layer_index(each, self.layers) for each in (layer if isinstance(layer, Sequence) else (layer,))]
        capture = _Capture(tuple(wanted), None, rows=False)
        with self._lock, torch.inference_mode():
            output = self._forward(pixels.clone(), capture)
            last = self.layers - 1
            tokens = [output.float() if i == last else self._final_norm(capture.output[i].float()) for i in wanted]
        return tokens if isinstance(layer, Sequence) else tokens[0]

    def _forward(self, pixels: torch.Tensor, capture: _Capture) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] -> tokens (B, N, D) after the final norm."""
        pixels = pixels.to(self.device).sub_(self._mean).div_(self._std)  # in place: at 1792 px a copy is 38 MB
        # Only ViT needs the option; the others always interpolate their position embeddings or use rotary ones.
        kwargs = {"interpolate_pos_encoding": True} if self.family == "vit" else {}
        token = _capture.set(capture)
        try:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                return self.model(pixels, **kwargs).last_hidden_state
        finally:
            _capture.reset(token)

    def _features(self, i: int, grid: PatchGrid, output: torch.Tensor, capture: _Capture) -> Features:
        h, w = grid.shape
        first = 1 + self.registers  # the patches come after CLS and the registers
        cls, patches = _to_numpy(output[i, 0]), _to_numpy(output[i, first:]).reshape(h, w, -1)
        captured = {}
        # Free each captured tensor once it is copied: a second copy of all layers takes 860 MB at 1792 px (ViT-S).
        take = dict.pop if i == len(output) - 1 else dict.__getitem__
        for layer in capture.layers:
            tokens = take(capture.output, layer)[i].float()
            raw, last = tokens[first:], layer == self.layers - 1
            captured[layer] = LayerTokens(
                patches=patches if last else _to_numpy(self._final_norm(raw)).reshape(h, w, -1),
                norms=_to_numpy(raw.norm(dim=-1)).reshape(h, w),
                query=_to_numpy(take(capture.query, layer)[i]),
                key=_to_numpy(take(capture.key, layer)[i]),
                cls=cls if last else _to_numpy(self._final_norm(tokens[0])),
            )
        return Features(
            cls=cls,
            patches=patches,
            registers=_to_numpy(output[i, 1:first]),
            grid=grid,
            layers=self.layers,
            captured=captured,
            scaling=capture.scaling or (self.dim // self.heads) ** -0.5,
            weights=self.name,
            weights_id=self.weights_id,
        )


def _after_block(layer: int, layers: int, block: torch.nn.Module, inputs, output) -> None:
    capture = _capture.get()
    if capture is None:
        return
    if layer in capture.layers:
        capture.output[layer] = output[0] if isinstance(output, tuple) else output
    if capture.on_block is not None:
        capture.on_block(layer + 1, layers)


def _to_tensor(picture: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    # Pillow's bicubic filter widens with the reduction, which is what DINOv2's evaluation transforms use.
    array = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    array /= 255
    return torch.from_numpy(array).permute(2, 0, 1)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    # A copy: keeping one array, the CLS token for example, must not keep the whole batch in memory.
    return tensor.float().cpu().numpy().copy()


def _weights_id(model: torch.nn.Module) -> str:
    """A hash of the content of all weights, independent of the names that transformers gives them."""
    digests = []
    for tensor in model.state_dict().values():
        digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()
