"""What fine-tuning trains: a linear head on frozen features that are encoded once, LoRA, or all weights.

`LinearHead` and `Network` have the same methods, which `training.classifier.fitting` calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from training.config.tasks import FinetuneConfig
from training.data.dataset import Decoded, Pictures, batches, decoding_workers
from training.data.transforms import centre_squares, random_crops
from training.engine.precision import autocast
from training.engine.vit import blocks, parameter_groups

STORE = 1.25  # side of the stored squares, in input sides: a crop of two thirds of the picture is then not enlarged


class CentreCrops:
    """The centre crops of pictures, to be read several times; kept in memory if they take at most `memory` bytes."""

    def __init__(self, pictures: Pictures, size: int, batch: int, memory: float):
        self.size, self.batch = size, batch
        self.broken: list[tuple[str, str]] = []
        self._cached: list[torch.Tensor] | None = [] if len(pictures) * 3 * size * size <= memory else None
        readable: list[int] = []
        for indices, images in centre_squares(pictures, size, batch, self.broken):
            readable += indices
            if self._cached is not None:
                self._cached.append(images)
        self.pictures = pictures.subset(readable)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """uint8 (B, 3, size, size), in order."""
        if self._cached is not None:
            yield from self._cached
        else:
            yield from (images for _, images in centre_squares(self.pictures, self.size, self.batch, []))

    @property
    def labels(self) -> torch.Tensor:
        return torch.from_numpy(self.pictures.labels)


class LinearHead:
    """A linear layer on standardised, frozen features of centre crops; the export folds the standardisation in."""

    def __init__(
        self,
        network: nn.Module,
        prepare: Callable,
        train: CentreCrops,
        validation: CentreCrops,
        config: FinetuneConfig,
    ):
        self.network, self.classes = network, network.config.num_labels
        self.labels, self.validation_labels = train.labels, validation.labels
        features, held_out = (_features(network, prepare, part) for part in (train, validation))
        self._mean = features.mean(0)
        # Clamped so that near-constant channels are not amplified.
        self._std = features.std(0).clamp(min=1e-3 * float(features.std()))
        self.features, self._validation = self._standardised(features), self._standardised(held_out)
        self.module = nn.Linear(features.shape[1], self.classes).to(network.device)
        nn.init.zeros_(self.module.weight)
        nn.init.zeros_(self.module.bias)
        self.groups = [
            {"params": [self.module.weight], "lr_scale": 1.0, "decays": True},
            {"params": [self.module.bias], "lr_scale": 1.0, "decays": False},
        ]

    def _standardised(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self._mean) / self._std

    def inputs(self, order: Sequence[Sequence[int]], generator: torch.Generator) -> Iterator[torch.Tensor]:
        """Features (B, D) for each list of indices."""
        yield from (self.features[torch.as_tensor(part, device=self.features.device)] for part in order)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (B, C)."""
        return self.module(features)

    @torch.no_grad()
    def validation_logits(self) -> torch.Tensor:
        """Logits (N, C) of the validation images."""
        return self.module(self._validation).cpu()

    @torch.no_grad()
    def classifier(self) -> nn.Module:
        """transformers' model with the trained head; computed in float64, so that folding loses nothing."""
        # On the CPU, since Apple's GPUs have no float64.
        weight, bias, mean, std = (
            v.cpu().double() for v in (self.module.weight, self.module.bias, self._mean, self._std)
        )
        weight = weight / std
        bias = bias - weight @ mean
        self.network.classifier.weight.copy_(weight)
        self.network.classifier.bias.copy_(bias)
        return self.network


class Network:
    """The network on random crops: all of its weights are trained, or LoRA's matrices and the head."""

    def __init__(
        self, network: nn.Module, prepare: Callable, train: Decoded, validation: CentreCrops, config: FinetuneConfig
    ):
        self.config, self._prepare, self._train, self._validation = config, prepare, train, validation
        self.labels, self.validation_labels = torch.from_numpy(train.labels), validation.labels
        self.classes, base = network.config.num_labels, network.base_model
        self.module = _with_lora(network, config) if config.method == "lora" else network
        decay = config.layer_decay if config.method == "full" else 1.0
        self.groups = parameter_groups(self.module, base, decay)
        self._device = network.device
        self._autocast = autocast(self._device, config.precision)

    def inputs(self, order: Sequence[Sequence[int]], generator: torch.Generator) -> Iterator[torch.Tensor]:
        """Normalised random crops (B, 3, size, size) for each list of indices."""
        for images, aspects in batches(self._train, order, workers=decoding_workers(self.config.workers)):
            images = images.to(self._device, non_blocking=True)
            crops = random_crops(images, aspects, self._validation.size, generator, self.config.scale, self.config.flip)
            yield self._prepare(crops)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, C)."""
        with self._autocast():
            return self.module(pixels).logits.float()

    @torch.no_grad()
    def validation_logits(self) -> torch.Tensor:
        """Logits (N, C) of the validation images."""
        self.module.eval()
        logits = [self(self._prepare(images.to(self._device).float() / 255)).cpu() for images in self._validation]
        self.module.train()
        return torch.cat(logits)

    def classifier(self) -> nn.Module:
        """transformers' model with the trained weights; LoRA's matrices are merged into the weights beside them."""
        merged = self.module.merge_and_unload() if self.config.method == "lora" else self.module
        return merged.eval()


def logits_of(network: nn.Module, prepare: Callable, images: CentreCrops) -> torch.Tensor:
    """Logits (N, C) of a network in float32, as it is exported."""
    with torch.inference_mode(), autocast(network.device, "float32")():
        parts = [network(prepare(batch.to(network.device).float() / 255)).logits.cpu() for batch in images]
    return torch.cat(parts)


def _features(network: nn.Module, prepare: Callable, images: CentreCrops) -> torch.Tensor:
    """The inputs of the network's head, whatever the family makes them of: (N, D) on its device."""
    head, network.classifier = network.classifier, nn.Identity()
    try:
        with torch.no_grad(), autocast(network.device, "float32")():
            parts = [network(prepare(batch.to(network.device).float() / 255)).logits for batch in images]
        return torch.cat(parts)
    finally:
        network.classifier = head


def _with_lora(network: nn.Module, config: FinetuneConfig) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    inside = {id(module) for module in blocks(network.base_model).modules()}
    # Queries and values are where Hu et al. 2022 put it (section 4.2); their names differ with transformers' version.
    wanted = ("query", "q_proj", "value", "v_proj") if config.lora_on == "attention" else ("",)
    targets = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside and name.endswith(wanted)
    ]
    lora = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.lora_dropout, target_modules=targets, bias="none"
    )
    wrapped = get_peft_model(network, lora)
    network.classifier.requires_grad_(True)
    return wrapped
