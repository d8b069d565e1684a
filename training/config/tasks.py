"""What can be set for fine-tuning, for the depth probe and for an evaluation; made like `config`."""

from __future__ import annotations

from dataclasses import dataclass

from training.config.base import Config, ConfigError, setting

DEVICE = "cpu, cuda or mps; empty: the best there is"


@dataclass(frozen=True)
class EvaluateConfig(Config):
    """Weighted k-NN and linear evaluation of frozen features, as DINO published them."""

    model: str = setting("embedded", "a known name, a Hub id, a folder or a run", group="network", knob=True)
    layers: tuple[int, ...] = setting(
        (-1,), "blocks whose tokens are joined; -1 is the last; DINO joined -4 -3 -2 -1 for ViT-S", group="network"
    )
    tokens: str = setting("cls", "which tokens make the feature", group="network", choices=("cls", "cls+mean"))
    device: str = setting("", DEVICE, group="network")

    data: tuple[str, ...] = setting((), "labelled folders, zips or lists; empty: the built-in demo", group="data")
    test: str = setting("", "held-out images of the same classes; empty: a part of the data", group="data", knob=True)
    test_share: float = setting(0.2, "that part, drawn from each class", group="data", low=0.01, high=0.9)
    size: int = setting(
        0, "pixels of the centre crop; 0: 224, or what a small run was trained at", group="data", low=0, high=1024
    )
    crop: float = setting(
        0.875, "share of the short side that the crop keeps: 224 of 256 as published", group="data", low=0.1, high=1
    )
    batch: int = setting(64, "images encoded at once", group="data", low=1, high=4096)

    knn: tuple[int, ...] = setting((10, 20), "numbers of neighbours", group="protocol", low=1)
    temperature: float = setting(0.07, "of the neighbours' votes", group="protocol", low=0.001, high=10)
    linear: bool = setting(True, "also train a linear classifier on the features", group="protocol", knob=True)
    epochs: int = setting(100, "of the linear classifier", group="protocol", low=1, high=10000)
    seed: int = setting(0, "decides every random number", group="protocol", low=0, high=2**31 - 1)


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """A classifier of one's own classes, from a backbone and folders of labelled images."""

    data: tuple[str, ...] = setting((), "labelled folders, zips or lists; empty: the built-in demo", group="data")
    test: str = setting("", "held-out images of the same classes, only ever looked at once, at the end", group="data")
    validation: float = setting(
        0.15, "share of each class kept back to decide when to stop", group="data", low=0.01, high=0.5
    )
    size: int = setting(
        0, "pixels of the input; 0: 224, or what a small run was trained at", group="data", low=0, high=1024, knob=True
    )
    memory_gb: float = setting(2.0, "keep the decoded images if they fit in this", group="data", low=0)
    workers: int = setting(0, "processes that decode when they do not fit", group="data", low=0, high=64)
    max_broken: float = setting(
        0.03, "the share of unreadable images above which the run stops", group="data", low=0, high=1
    )

    model: str = setting("embedded", "a known name, a Hub id, a folder or a run", group="network", knob=True)
    device: str = setting("", DEVICE, group="network")
    method: str = setting(
        "linear",
        "linear: only the head, in a minute; lora: small matrices beside the frozen weights; full: all weights",
        group="network",
        choices=("linear", "lora", "full"),
        knob=True,
    )
    linear_first: bool = setting(
        True,
        "lora and full start from the linear head, so that its first errors do not spoil features",
        group="network",
    )
    rank: int = setting(8, "of LoRA's matrices", group="network", low=1, high=256)
    alpha: float = setting(16.0, "LoRA's matrices are scaled by alpha / rank", group="network", low=0.1)
    lora_on: str = setting(
        "attention",
        "attention: queries and values, as published; all: every linear layer of the blocks",
        group="network",
        choices=("attention", "all"),
    )
    lora_dropout: float = setting(0.0, "of LoRA's input", group="network", low=0, high=0.9)
    drop_path: float = setting(
        0.0, "share of blocks that are skipped at random, with full", group="network", high=0.9, low=0
    )

    scale: tuple[float, ...] = setting(
        (0.4, 1.0), "share of the image's area that a random crop covers", group="augmentation", low=0.01, high=1
    )
    flip: float = setting(0.5, "probability of a mirror image", group="augmentation", low=0, high=1)
    mixup: float = setting(0.0, "alpha of mixup's Beta; 0: off", group="augmentation", low=0, high=10)
    label_smoothing: float = setting(0.0, "belief spread over all classes", group="augmentation", low=0, high=0.9)

    class_weights: str = setting(
        "none", "balanced: rare classes weigh more in the loss", group="loss", choices=("none", "balanced")
    )
    epochs: int = setting(0, "passes over the data; 0: 100 for linear, 20 else", group="optimiser", low=0, high=10**6,
                          knob=True)  # fmt: skip
    batch: int = setting(32, "images in a step", group="optimiser", low=1, high=65536, knob=True)
    lr: float = setting(
        0.0, "learning rate; 0: 1e-3 for linear, 5e-4 for lora, 5e-5 for full", group="optimiser", low=0, knob=True
    )
    layer_decay: float = setting(
        0.75, "learning rate of each lower block, times this, with full", group="optimiser", low=0.1, high=1
    )
    weight_decay: float = setting(0.05, "of AdamW, on matrices only", group="optimiser", low=0, high=10)
    warmup: float = setting(
        0.1, "share of the steps in which the learning rate rises", group="optimiser", low=0, high=0.9
    )
    clip: float = setting(1.0, "largest norm of the gradient; 0: no clipping", group="optimiser", low=0)
    patience: int = setting(8, "epochs without a better validation after which to stop", group="optimiser", low=1)
    precision: str = setting(
        "auto",
        "auto: bfloat16 where the device is good at it",
        group="optimiser",
        choices=("auto", "float32", "bfloat16"),
    )
    seed: int = setting(0, "decides every random number of the run", group="run", low=0, high=2**31 - 1)

    def check(self) -> None:
        if len(self.scale) != 2 or self.scale[0] > self.scale[1]:
            raise ConfigError(f"scale takes the least first, then the most, not {' '.join(map(str, self.scale))}.")

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
    """A depth probe: a small head on frozen features, as DINOv2 evaluated it, or a better one."""

    data: str = setting("", "folder with rgb/ID.jpg and depth/ID.png (16 bits, millimetres) or ID.npy", group="data")
    test: str = setting("", "held-out folder like it, only ever looked at once, at the end", group="data")
    held_out: int = setting(
        0, "images of the data that are held out instead: of every eighth group of consecutive names", group="data",
        low=0,
    )  # fmt: skip
    validation: float = setting(
        0.125, "share of the groups of consecutive names kept back to decide when to stop; 0: all train on",
        group="data", low=0, high=0.5,
    )  # fmt: skip
    teacher: str = setting(
        "", "gives the pictures in data their depth: a published head, its folder, a depth probe's file or run",
        group="data",
    )  # fmt: skip
    border: int = setting(
        0, "pixels cut from each side of pictures and depth; 8 for the white border of NYU Depth", group="data", low=0,
        high=512,
    )  # fmt: skip
    crop: str = setting(
        "eigen",
        "eigen: the border that sensors leave empty is not evaluated, as on NYU Depth; none: all is",
        group="data",
        choices=("eigen", "none"),
    )
    limit: int = setting(0, "use no more images than this; 0: all", group="data", low=0)
    memory_gb: float = setting(
        4.0, "what the features may take; more are read from the run's folder as they are needed", group="data", low=0
    )

    model: str = setting("embedded", "a known name, a Hub id, a folder or a run", group="network", knob=True)
    device: str = setting("", DEVICE, group="network")
    layers: tuple[int, ...] = setting(
        (0,),
        "blocks whose tokens are joined, from 1; -1 is the last; 0: at 2, 3 and 4 quarters of the depth, 6 9 12 of 12",
        group="network",
        knob=True,
    )
    resolution: int = setting(336, "short side in model pixels", group="network", low=32, high=1792, knob=True)

    flip: bool = setting(True, "encode each picture mirrored too", group="views")
    crops: int = setting(0, "random crops of each picture that are encoded too", group="views", low=0, high=64)
    zoom: float = setting(1.5, "how much crops are enlarged at most; their depth shrinks by it", group="views", low=1)
    colour: float = setting(
        0.2, "how much brightness, contrast and saturation of crops change at most", group="views", low=0, high=0.9
    )

    head: str = setting(
        "conv",
        "linear: DINOv2's 256 bins; mlp: the textbook's two layers; conv: convolutions before the bins",
        group="head",
        choices=("linear", "mlp", "conv"),
        knob=True,
    )
    cls: bool = setting(True, "join the CLS token to each patch", group="head")
    members: int = setting(
        3, "of conv: heads that learn alone and are averaged, each costs as much", group="head", low=1, high=16
    )
    bins: int = setting(
        0, "depths that linear and conv choose among; 0: 256 for linear, as DINOv2's, 64 for conv", group="head", low=0,
        high=1024,
    )  # fmt: skip
    upsample: int = setting(
        0, "how much finer than the patches depth is told; 0: 4 for linear, as DINOv2's, 2 else", group="head",
        choices=(0, 1, 2, 4),
    )  # fmt: skip
    depth: tuple[float, ...] = setting((0.001, 10.0), "nearest and farthest, in metres", group="head", low=0.0001)

    metric: float = setting(
        0.0, "weight of the error in metres, beside that of logarithms", group="loss", low=0, high=100
    )
    gradient: float = setting(0.5, "weight of the error of slopes, as of DINOv2's", group="loss", low=0, high=100)
    dropout: float = setting(0.5, "of conv: share of the channels that are hidden in a step", group="loss", low=0,
                             high=0.9)  # fmt: skip

    epochs: int = setting(8, "passes over the data, each picture in one of its views", group="optimiser", low=1,
                          high=10**6, knob=True)  # fmt: skip
    batch: int = setting(8, "images in a step", group="optimiser", low=1, high=65536)
    lr: float = setting(1e-3, "learning rate of AdamW; it rises for a tenth, and falls by a cosine",
                        group="optimiser", low=1e-8)  # fmt: skip
    weight_decay: float = setting(0.01, "of AdamW, on matrices only", group="optimiser", low=0)
    average: float = setting(0.99, "of the weights over steps, the share that stays; 0: no average",
                             group="optimiser", low=0, high=0.99999)  # fmt: skip
    patience: int = setting(10, "epochs without a better validation after which to stop", group="optimiser", low=1)
    seed: int = setting(0, "decides every random number", group="run", low=0, high=2**31 - 1)

    def check(self) -> None:
        if not self.layers:
            raise ConfigError("layers is empty: name one layer at least.")
        if 0 in self.layers and len(self.layers) > 1:
            raise ConfigError("layers count from 1; 0 stands for three of them, by itself.")
        if len(self.depth) != 2 or self.depth[0] >= self.depth[1]:
            raise ConfigError(
                f"depth takes the nearest first, then the farthest, not {' '.join(map(str, self.depth))}."
            )
        if self.bins == 1:
            raise ConfigError("bins are depths to choose among: two at least.")
        if self.test and self.held_out:
            raise ConfigError("test and held_out exclude each other: one set of images is looked at, once.")

    def architecture(self, channels: int) -> dict:
        """The head, as `dinoviz.depth.heads.make` wants it told; channels: of all layers together."""
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
        """The indices from 0 of the layers in a network of so many. Raises ConfigError for one that it has not."""
        if self.layers == (0,):
            return sorted({max(1, round(count * quarter / 4)) - 1 for quarter in (2, 3, 4)})
        for layer in self.layers:
            if abs(layer) > count:
                raise ConfigError(f"The model has layers 1 to {count} (or -1 to {-count} from its end), not {layer}.")
        return sorted({layer - 1 if layer > 0 else layer + count for layer in self.layers})
