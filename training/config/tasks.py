"""The configurations of evaluation, fine-tuning and depth probes."""

from __future__ import annotations

from dataclasses import dataclass

from training.config.base import Config, ConfigError, setting

DEVICE = "cpu, cuda or mps; empty: the fastest available"


@dataclass(frozen=True)
class EvaluateConfig(Config):
    """Weighted k-NN and linear evaluation of frozen features, as in DINO."""

    model: str = setting("embedded", "a known name, a Hub id, a folder or a run", group="network", knob=True)
    layers: tuple[int, ...] = setting(
        (-1,), "blocks whose tokens are concatenated; -1 is the last; DINO used -4 -3 -2 -1 for ViT-S", group="network"
    )
    tokens: str = setting("cls", "tokens that form the feature", group="network", choices=("cls", "cls+mean"))
    device: str = setting("", DEVICE, group="network")

    data: tuple[str, ...] = setting((), "labelled folders, zips or lists; empty: the built-in demo", group="data")
    test: str = setting("", "test images of the same classes; empty: a part of the data", group="data", knob=True)
    test_share: float = setting(
        0.2, "share of each class for the test, if there are no test images", group="data", low=0.01, high=0.9
    )
    size: int = setting(
        0,
        "size of the centre crop in pixels; 0: 224, or the training size of a small run",
        group="data",
        low=0,
        high=1024,
    )
    crop: float = setting(
        0.875, "size of the centre crop as a share of the short side: 224 of 256 in DINO", group="data", low=0.1, high=1
    )
    batch: int = setting(64, "images encoded at once", group="data", low=1, high=4096)

    knn: tuple[int, ...] = setting((10, 20), "numbers of neighbours", group="evaluation", low=1)
    temperature: float = setting(0.07, "temperature of the neighbours' votes", group="evaluation", low=0.001, high=10)
    linear: bool = setting(True, "also train a linear classifier on the features", group="evaluation", knob=True)
    epochs: int = setting(100, "epochs of the linear classifier", group="evaluation", low=1, high=10000)
    seed: int = setting(0, "seed of all random numbers", group="evaluation", low=0, high=2**31 - 1)


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """An image classifier from a backbone and folders of labelled images."""

    data: tuple[str, ...] = setting((), "labelled folders, zips or lists; empty: the built-in demo", group="data")
    test: str = setting("", "test images of the same classes, evaluated once, at the end", group="data")
    validation: float = setting(
        0.15, "share of each class held out for early stopping", group="data", low=0.01, high=0.5
    )
    size: int = setting(
        0,
        "size of the input in pixels; 0: 224, or the training size of a small run",
        group="data",
        low=0,
        high=1024,
        knob=True,
    )
    memory_gb: float = setting(2.0, "memory for decoded images", group="data", low=0)
    workers: int = setting(
        -1,
        "worker processes that decode images that do not fit in memory; -1: the number of CPU cores minus one",
        group="data",
        low=-1,
        high=64,
    )
    max_broken: float = setting(0.03, "largest share of unreadable images", group="data", low=0, high=1)

    model: str = setting("embedded", "a known name, a Hub id, a folder or a run", group="network", knob=True)
    device: str = setting("", DEVICE, group="network")
    method: str = setting(
        "linear",
        "linear: only the head, in a minute; lora: low-rank matrices beside the frozen weights; full: all weights",
        group="network",
        choices=("linear", "lora", "full"),
        knob=True,
    )
    linear_first: bool = setting(
        True,
        "lora and full start from a trained linear head, which protects the features at first (LP-FT)",
        group="network",
    )
    rank: int = setting(8, "rank of LoRA's matrices", group="network", low=1, high=256)
    alpha: float = setting(16.0, "LoRA's matrices are scaled by alpha / rank", group="network", low=0.1)
    lora_on: str = setting(
        "attention",
        "attention: queries and values, as published; all: every linear layer of the blocks",
        group="network",
        choices=("attention", "all"),
    )
    lora_dropout: float = setting(0.0, "dropout of LoRA's input", group="network", low=0, high=0.9)
    drop_path: float = setting(
        0.0,
        "stochastic depth with full: drop rate of the last block, rising linearly from 0",
        group="network",
        high=0.9,
        low=0,
    )

    scale: tuple[float, ...] = setting(
        (0.4, 1.0), "area of a random crop as a share of the image", group="augmentation", low=0.01, high=1
    )
    flip: float = setting(0.5, "probability of a horizontal flip", group="augmentation", low=0, high=1)
    mixup: float = setting(0.0, "alpha of mixup's Beta distribution; 0: no mixup", group="augmentation", low=0, high=10)
    label_smoothing: float = setting(0.0, "label smoothing of the cross-entropy", group="augmentation", low=0, high=0.9)

    class_weights: str = setting(
        "none", "balanced: rare classes have a larger weight in the loss", group="loss", choices=("none", "balanced")
    )
    epochs: int = setting(0, "passes over the data; 0: 100 for linear, 20 else", group="optimiser", low=0, high=10**6,
                          knob=True)  # fmt: skip
    batch: int = setting(32, "images in a step", group="optimiser", low=1, high=65536, knob=True)
    lr: float = setting(
        0.0, "learning rate; 0: 1e-3 for linear, 5e-4 for lora, 5e-5 for full", group="optimiser", low=0, knob=True
    )
    layer_decay: float = setting(
        0.75,
        "layer-wise learning rate decay with full: factor for each lower block",
        group="optimiser",
        low=0.1,
        high=1,
    )
    weight_decay: float = setting(0.05, "weight decay of AdamW, on matrices only", group="optimiser", low=0, high=10)
    warmup: float = setting(0.1, "learning rate warm-up as a share of the steps", group="optimiser", low=0, high=0.9)
    clip: float = setting(1.0, "gradient clipping: maximum norm; 0: off", group="optimiser", low=0)
    patience: int = setting(
        8, "early stopping: epochs without improvement of the validation metric", group="optimiser", low=1
    )
    precision: str = setting(
        "auto",
        "auto: bfloat16 where the device computes it faster",
        group="optimiser",
        choices=("auto", "float32", "bfloat16"),
    )
    seed: int = setting(0, "seed of all random numbers of the run", group="run", low=0, high=2**31 - 1)

    def check(self) -> None:
        if len(self.scale) != 2 or self.scale[0] > self.scale[1]:
            raise ConfigError(
                f"scale must be the smallest value, then the largest, not {' '.join(map(str, self.scale))}."
            )

    @property
    def epoch_count(self) -> int:
        """`epochs`, or the default of the method."""
        return self.epochs or (100 if self.method == "linear" else 20)

    @property
    def learning_rate(self) -> float:
        """`lr`, or the default of the method."""
        return self.lr or {"linear": 1e-3, "lora": 5e-4, "full": 5e-5}[self.method]


@dataclass(frozen=True)
class ProbeConfig(Config):
    """A depth probe: a small head on frozen features."""

    data: str = setting("", "folder with rgb/ID.jpg and depth/ID.png (16 bits, millimetres) or ID.npy", group="data")
    test: str = setting("", "test folder of the same form, evaluated once, at the end", group="data")
    held_out: int = setting(
        0, "number of images of the data to hold out as test: of every eighth group of consecutive names", group="data",
        low=0,
    )  # fmt: skip
    validation: float = setting(
        0.125, "share of the groups of consecutive names held out for early stopping; 0: no validation",
        group="data", low=0, high=0.5,
    )  # fmt: skip
    teacher: str = setting(
        "", "predicts the depth of pictures without it: a published head, its folder, a depth probe's file or run",
        group="data",
    )  # fmt: skip
    border: int = setting(
        0, "pixels to cut from each side of pictures and depth; 8 for the white border of NYU Depth", group="data",
        low=0, high=512,
    )  # fmt: skip
    crop: str = setting(
        "eigen",
        "eigen: evaluate the Eigen crop, without the border that sensors leave empty; none: evaluate all pixels",
        group="data",
        choices=("eigen", "none"),
    )
    limit: int = setting(0, "largest number of images; 0: all", group="data", low=0)
    memory_gb: float = setting(
        4.0, "memory for features; features that do not fit are read from the run's folder", group="data", low=0
    )

    model: str = setting("embedded", "a known name, a Hub id, a folder or a run", group="network", knob=True)
    device: str = setting("", DEVICE, group="network")
    layers: tuple[int, ...] = setting(
        (0,),
        "blocks whose tokens are concatenated, from 1; -1 is the last; 0: at 1/2, 3/4 and 4/4 of the depth",
        group="network",
        knob=True,
    )
    resolution: int = setting(336, "short side in model pixels", group="network", low=32, high=1792, knob=True)

    flip: bool = setting(True, "also encode each picture flipped", group="views")
    crops: int = setting(0, "number of random crops of each picture to encode", group="views", low=0, high=64)
    zoom: float = setting(1.5, "largest enlargement of a crop; its depth is divided by it", group="views", low=1)
    colour: float = setting(
        0.2, "largest change of a crop's brightness, contrast and saturation", group="views", low=0, high=0.9
    )

    head: str = setting(
        "conv",
        "linear: DINOv2's 256 bins; mlp: two layers; conv: convolutions before the bins",
        group="head",
        choices=("linear", "mlp", "conv"),
        knob=True,
    )
    cls: bool = setting(True, "concatenate the CLS token to each patch token", group="head")
    members: int = setting(
        3,
        "of conv: size of the ensemble; its members are trained independently, and their predictions averaged",
        group="head",
        low=1,
        high=16,
    )
    bins: int = setting(
        0, "depth bins of linear and conv; 0: 256 for linear, as in DINOv2, 64 for conv", group="head", low=0,
        high=1024,
    )  # fmt: skip
    upsample: int = setting(
        0, "upsampling of the predicted depth over the patch grid; 0: 4 for linear, as in DINOv2, 2 else", group="head",
        choices=(0, 1, 2, 4),
    )  # fmt: skip
    depth: tuple[float, ...] = setting((0.001, 10.0), "smallest and largest depth in metres", group="head", low=0.0001)

    metric: float = setting(
        0.0, "weight of the RMSE in metres, beside the scale-invariant loss", group="loss", low=0, high=100
    )
    gradient: float = setting(0.5, "weight of the gradient loss, as in DINOv2", group="loss", low=0, high=100)
    dropout: float = setting(0.5, "of conv: dropout of the channels", group="loss", low=0,
                             high=0.9)  # fmt: skip

    epochs: int = setting(8, "passes over the data, with one view of each picture", group="optimiser", low=1,
                          high=10**6, knob=True)  # fmt: skip
    batch: int = setting(8, "images in a step", group="optimiser", low=1, high=65536)
    lr: float = setting(1e-3, "learning rate of AdamW; linear warm-up for a tenth of the steps, then cosine decay",
                        group="optimiser", low=1e-8)  # fmt: skip
    weight_decay: float = setting(0.01, "weight decay of AdamW, on matrices only", group="optimiser", low=0)
    average: float = setting(0.99, "decay of the moving average of the weights; 0: no average",
                             group="optimiser", low=0, high=0.99999)  # fmt: skip
    patience: int = setting(
        10, "early stopping: epochs without improvement of the validation metric", group="optimiser", low=1
    )
    seed: int = setting(0, "seed of all random numbers", group="run", low=0, high=2**31 - 1)

    def check(self) -> None:
        if not self.layers:
            raise ConfigError("layers is empty: name at least one layer.")
        if 0 in self.layers and len(self.layers) > 1:
            raise ConfigError("layers count from 1; 0 stands for three default layers and must be alone.")
        if len(self.depth) != 2 or self.depth[0] >= self.depth[1]:
            raise ConfigError(
                f"depth must be the smallest value, then the largest, not {' '.join(map(str, self.depth))}."
            )
        if self.bins == 1:
            raise ConfigError("bins is 1: at least 2 are needed.")
        if self.test and self.held_out:
            raise ConfigError("test and held_out exclude each other: both name the test images.")

    def architecture(self, channels: int) -> dict:
        """The arguments of `dinoviz.depth.heads.make`; channels: of all layers together."""
        linear = self.head == "linear"
        return {
            "head": self.head,
            "cls": self.cls,
            "members": self.members if self.head == "conv" else 1,
            "channels": channels,
            "depth": list(self.depth),
            "bins": self.bins or (256 if linear else 64),
            "upsample": self.upsample or (4 if linear else 2),
        }

    @property
    def head_dropout(self) -> float:
        """The dropout in effect: only conv has it, the other heads have too few weights to overfit."""
        return self.dropout if self.head == "conv" else 0.0

    def blocks(self, count: int) -> list[int]:
        """The layers as indices from 0 in a network of `count` layers. Raises ConfigError for a layer beyond them."""
        if self.layers == (0,):
            return sorted({max(1, round(count * quarter / 4)) - 1 for quarter in (2, 3, 4)})
        for layer in self.layers:
            if abs(layer) > count:
                raise ConfigError(f"The model has layers 1 to {count} (or -1 to {-count} from its end), not {layer}.")
        return sorted({layer - 1 if layer > 0 else layer + count for layer in self.layers})
