"""DINO's training loop as one would write it after the published script (Caron et al. 2021), for speed and parity.

Plain in the same places: each crop made by PIL in the loader, one after the other; the loss a loop over pairs of crops;
clipping and the teacher's average a loop over parameters; numbers read off the device at each step. It shares no code
with `training`, only the architecture. The settings are those of a PretrainConfig, read by name.
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from transformers import Dinov2Config, Dinov2Model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATIO = (3 / 4, 4 / 3)


class Crop:
    """One kind of crop of a picture: RandomResizedCrop, flip, ColorJitter, grey, blur, solarise; then a tensor.

    Written as torchvision does these on PIL pictures. blur and solarise are probabilities.
    """

    def __init__(self, config, size: int, scale: tuple[float, float], blur: float, solarise: float = 0.0):
        self.config, self.size, self.scale, self.blur, self.solarise = config, size, scale, blur, solarise

    def __call__(self, image: Image.Image) -> torch.Tensor:
        config = self.config
        left, top, width, height = self._box(image)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        if random.random() < config.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if random.random() < config.jitter:
            image = self._jitter(image)
        if random.random() < config.grey:
            image = Image.merge("RGB", [image.convert("L")] * 3)
        if random.random() < self.blur:
            # The same blur for the eye at each size, as in `training`: sigma counts at 224 pixels.
            radius = random.uniform(*config.blur_sigma) * self.size / 224
            image = image.filter(ImageFilter.GaussianBlur(radius))
        if random.random() < self.solarise:
            image = ImageOps.solarize(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return pixels.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])

    def _box(self, image: Image.Image) -> tuple[int, int, int, int]:
        area = image.width * image.height
        for _ in range(10):
            target = area * random.uniform(*self.scale)
            ratio = math.exp(random.uniform(*map(math.log, RATIO)))
            width, height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < width <= image.width and 0 < height <= image.height:
                return random.randint(0, image.width - width), random.randint(0, image.height - height), width, height
        width = min(image.width, round(image.height * RATIO[1]))
        height = min(image.height, round(image.width / RATIO[0]))
        return (image.width - width) // 2, (image.height - height) // 2, width, height

    def _jitter(self, image: Image.Image) -> Image.Image:
        strength = self.config.jitter_strength
        steps = [
            lambda x: ImageEnhance.Brightness(x).enhance(random.uniform(1 - strength[0], 1 + strength[0])),
            lambda x: ImageEnhance.Contrast(x).enhance(random.uniform(1 - strength[1], 1 + strength[1])),
            lambda x: ImageEnhance.Color(x).enhance(random.uniform(1 - strength[2], 1 + strength[2])),
            lambda x: _turn_hue(x, random.uniform(-strength[3], strength[3])),
        ]
        random.shuffle(steps)
        for step in steps:
            image = step(image)
        return image


def _turn_hue(image: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = Image.fromarray(np.array(hue, dtype=np.uint8) + np.uint8(int(turn * 255) % 256))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


class Crops(torch.utils.data.Dataset):
    """All crops of a picture, which is opened each time: the two global ones, then the local ones."""

    def __init__(self, files: list[Path], config):
        self.files = files
        self.crops = [
            Crop(config, config.global_size, config.global_scale, config.blur[0]),
            Crop(config, config.global_size, config.global_scale, config.blur[1], config.solarise),
            *[Crop(config, config.local_size, config.local_scale, config.blur[2])] * config.local_crops,
        ]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        with Image.open(self.files[i]) as file:
            image = file.convert("RGB")
        return [crop(image) for crop in self.crops]


class Head(nn.Module):
    """Three layers, L2 normalisation, weight-normalised prototypes of length 1."""

    def __init__(self, dim: int, prototypes: int, hidden: int, bottleneck: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp[::2]:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.last = weight_norm(nn.Linear(bottleneck, prototypes, bias=False))
        self.last.parametrizations.weight.original0.data.fill_(1)
        self.last.parametrizations.weight.original0.requires_grad = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.normalize(self.mlp(x), dim=-1))


class MultiCrop(nn.Module):
    """One pass of the backbone for each size of crop, then one of the head."""

    def __init__(self, config):
        super().__init__()
        self.backbone = Dinov2Model(
            Dinov2Config(
                hidden_size=config.dim,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                mlp_ratio=config.mlp_ratio,
                patch_size=config.patch,
                image_size=config.global_size,
                layerscale_value=config.layer_scale,
            )
        )
        self.head = Head(config.dim, config.prototypes, config.head_hidden, config.head_bottleneck)

    def forward(self, crops: list[torch.Tensor]) -> torch.Tensor:
        sizes = torch.tensor([crop.shape[-1] for crop in crops])
        ends = torch.cumsum(torch.unique_consecutive(sizes, return_counts=True)[1], 0)
        start, found = 0, []
        for end in ends:
            found.append(self.backbone(torch.cat(crops[start:end])).last_hidden_state[:, 0])
            start = end
        return self.head(torch.cat(found))


class Loss(nn.Module):
    """Cross-entropy over pairs of crops; the centre is a buffer that follows the teacher."""

    def __init__(self, config):
        super().__init__()
        self.config, self.crops = config, 2 + config.local_crops
        self.register_buffer("centre", torch.zeros(1, config.prototypes))

    def forward(self, student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
        said = (student / self.config.student_temperature).chunk(self.crops)
        taught = F.softmax((teacher - self.centre) / temperature, dim=-1).detach().chunk(2)
        total, terms = 0, 0
        for g, target in enumerate(taught):
            for c, logits in enumerate(said):
                if c != g:
                    total += torch.sum(-target * F.log_softmax(logits, dim=-1), dim=-1).mean()
                    terms += 1
        self.move_centre(teacher)
        return total / terms

    @torch.no_grad()
    def move_centre(self, teacher: torch.Tensor) -> None:
        momentum = self.config.centre_momentum
        self.centre = self.centre * momentum + torch.sum(teacher, dim=0, keepdim=True) / len(teacher) * (1 - momentum)


def cosine(start: float, end: float, steps: int, warmup: int = 0) -> np.ndarray:
    """A value for each step."""
    rise = np.linspace(0, start, warmup)
    falling = end + 0.5 * (start - end) * (1 + np.cos(np.pi * np.arange(steps - warmup) / (steps - warmup)))
    return np.concatenate((rise, falling))


class Loop:
    """Student, teacher, optimiser and schedules; `step` is one turn of the published loop."""

    def __init__(self, config, steps: int, epoch: int):
        self.config = config
        self.student, self.teacher = MultiCrop(config), MultiCrop(config)
        self.teacher.load_state_dict(self.student.state_dict())
        for parameter in self.teacher.parameters():
            parameter.requires_grad = False
        self.loss = Loss(config)
        decayed, plain = [], []
        for name, parameter in self.student.named_parameters():
            if parameter.requires_grad:
                (plain if name.endswith(".bias") or parameter.dim() == 1 else decayed).append(parameter)
        self.optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}])
        warmup = round(config.warmup_epochs * epoch)
        self.rates = cosine(config.lr * config.batch / 256, config.lr_end, steps, warmup)
        self.decays = cosine(config.weight_decay, config.weight_decay_end, steps)
        self.momenta = cosine(config.teacher_momentum, 1.0, steps)
        rise = round(config.teacher_temperature_epochs * epoch)
        low, high = config.teacher_temperature_start, config.teacher_temperature
        self.temperatures = low + (high - low) * np.minimum(1, np.arange(steps) / max(1, rise))
        self.frozen = config.freeze_last_layer * epoch

    def step(self, crops: list[torch.Tensor], step: int, lap=lambda name: None) -> float:
        """One step on the crops of a batch; `lap` is told what has just been done. Returns the loss."""
        for i, group in enumerate(self.optimizer.param_groups):
            group["lr"] = self.rates[step]
            if i == 0:
                group["weight_decay"] = self.decays[step]
        taught = self.teacher(crops[:2])
        lap("teacher")
        said = self.student(crops)
        lap("student")
        loss = self.loss(said, taught, self.temperatures[step])
        if not math.isfinite(loss.item()):
            sys.exit(f"Loss is {loss.item()}, stopping training")
        lap("loss")
        self.optimizer.zero_grad()
        loss.backward()
        lap("backward")
        self.clip()
        if step < self.frozen:
            for name, parameter in self.student.named_parameters():
                if "last" in name:
                    parameter.grad = None
        self.optimizer.step()
        with torch.no_grad():
            momentum = self.momenta[step]
            for mine, its in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                its.data.mul_(momentum).add_((1 - momentum) * mine.detach().data)
        lap("update")
        return loss.item()

    def clip(self) -> list[float]:
        """Each parameter's gradient to the largest norm."""
        norms = []
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                norm = parameter.grad.data.norm(2)
                norms.append(norm.item())
                coefficient = self.config.clip / (norm + 1e-6)
                if coefficient < 1:
                    parameter.grad.data.mul_(coefficient)
        return norms
