"""The configuration of pretraining and its presets.

The same dataclass defines the command line, the form of the app and a run's config.json. Presets are dictionaries of
the values that differ from the defaults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from training.config.base import Config, ConfigError, setting

AUTO = -1.0  # epochs of a schedule: fit it to the run
# Schedules that end before the run: their epochs in DINO's runs of 100 to 800 epochs, and their share of a shorter run,
# which is the share of 100 epochs; for the prototypes, which are frozen for one epoch, the share of 10.
SCHEDULES = {
    "warmup_epochs": (10.0, 0.1),
    "teacher_temperature_epochs": (30.0, 0.3),
    "freeze_last_layer": (1.0, 0.1),
}
MOST_OF_RUN = 0.5  # the largest share of a run that such a schedule may take


@dataclass(frozen=True)
class PretrainConfig(Config):
    """DINO and DINOv2 self-distillation."""

    data: tuple[str, ...] = setting((), "folders, zip files, lists or images; empty: the built-in demo", group="data")
    validation: str = setting(
        "", "labelled held-out folder or zip file, for k-NN accuracy during the run", group="data"
    )
    validation_share: float = setting(
        0.0, "without such a folder: share of each class to hold out for k-NN", group="data", low=0, high=0.5
    )
    memory_gb: float = setting(
        2.0, "memory for decoded images; images that do not fit are decoded as needed", group="data", low=0
    )
    store_size: int = setting(
        0,
        "size of the stored images in pixels; 0: twice the global crops, or the images' own size if smaller",
        group="data",
        low=0,
        high=1024,
    )
    workers: int = setting(
        -1,
        "worker processes that decode images that do not fit in memory; -1: the number of CPU cores minus one",
        group="data",
        low=-1,
        high=64,
    )
    max_broken: float = setting(0.03, "largest share of unreadable images", group="data", low=0, high=1)

    start: str = setting("", "model or run to start from; empty: random weights", group="network")
    dim: int = setting(192, "embedding dimension of the transformer", group="network", low=16, high=4096)
    depth: int = setting(12, "blocks of the transformer", group="network", low=1, high=64)
    heads: int = setting(3, "attention heads; dim must be a multiple of them", group="network", low=1, high=64)
    mlp_ratio: int = setting(4, "hidden width of the MLPs, as a multiple of dim", group="network", low=1, high=8)
    patch: int = setting(
        8,
        "patch size in pixels: smaller patches give finer features and cost more",
        group="network",
        choices=(2, 4, 8, 14, 16),
        knob=True,
    )
    registers: int = setting(
        0, "register tokens, which avoid artefacts in the patch tokens", group="network", low=0, high=16
    )
    layer_scale: float = setting(
        1.0, "initial value of the layer scales; 1e-5 stabilises deep networks", group="network", low=0, high=1
    )
    drop_path: float = setting(
        0.0,
        "stochastic depth of the student: drop rate of the last block, rising linearly from 0",
        group="network",
        low=0,
        high=0.9,
    )
    freeze_layers: int = setting(
        0, "number of lowest blocks to freeze, with the embedding, when starting from a model", group="network", low=0
    )
    layer_decay: float = setting(
        1.0, "layer-wise learning rate decay: factor for each lower block", group="network", low=0.1, high=1
    )

    prototypes: int = setting(
        4096, "output dimension of the head; more for more varied data", group="head", low=2, high=262144
    )
    head_hidden: int = setting(2048, "hidden width of the head", group="head", low=16, high=8192)
    head_bottleneck: int = setting(256, "width of the bottleneck before the prototypes", group="head", low=8, high=2048)
    freeze_last_layer: float = setting(
        AUTO, "epochs with frozen prototypes; -1: a tenth of the run, at most 1", group="head", low=AUTO
    )

    dino_weight: float = setting(1.0, "weight of the DINO loss on CLS tokens", group="loss", low=0)
    ibot_weight: float = setting(
        0.0,
        "weight of the iBOT loss on masked patches; on small data it lowered k-NN accuracy",
        group="loss",
        low=0,
        knob=True,
    )
    koleo_weight: float = setting(
        0.0, "weight of the KoLeo loss, which spreads the CLS tokens; DINOv2 uses 0.1", group="loss", low=0, knob=True
    )
    student_temperature: float = setting(0.1, "temperature of the student's softmax", group="loss", low=0.01, high=10)
    teacher_temperature: float = setting(
        0.07,
        "temperature of the teacher's softmax after its warm-up; lower is sharper",
        group="loss",
        low=0.005,
        high=10,
    )
    teacher_temperature_start: float = setting(
        0.04, "temperature of the teacher's softmax at the start", group="loss", low=0.005, high=10
    )
    teacher_temperature_epochs: float = setting(
        AUTO,
        "epochs of the teacher temperature's warm-up; -1: three tenths of the run, at most 30",
        group="loss",
        low=AUTO,
    )
    centring: str = setting(
        "ema",
        "centring of the teacher's output, which prevents collapse",
        group="loss",
        choices=("ema", "sinkhorn", "none"),
    )
    centre_momentum: float = setting(0.9, "momentum of the centre's moving average", group="loss", low=0, high=1)
    mask_probability: float = setting(
        0.5, "share of global crops that are masked for iBOT", group="loss", low=0, high=1
    )
    mask_ratio: tuple[float, ...] = setting(
        (0.1, 0.5), "smallest and largest share of masked patches in a crop", group="loss", low=0, high=1
    )
    ibot_head: bool = setting(False, "separate head for iBOT", group="loss")

    global_size: int = setting(
        96, "size of the two global crops in pixels", group="crops", low=16, high=1024, knob=True
    )
    local_size: int = setting(48, "size of the local crops in pixels", group="crops", low=8, high=1024)
    local_crops: int = setting(
        6, "number of local crops, which only the student gets", group="crops", low=0, high=32, knob=True
    )
    global_scale: tuple[float, ...] = setting(
        (0.4, 1.0), "area of a global crop as a share of the image", group="crops", low=0.01, high=1
    )
    local_scale: tuple[float, ...] = setting(
        (0.05, 0.4), "area of a local crop as a share of the image", group="crops", low=0.01, high=1
    )
    flip: float = setting(0.5, "probability of a horizontal flip", group="crops", low=0, high=1)
    jitter: float = setting(0.8, "probability of colour jitter", group="crops", low=0, high=1)
    jitter_strength: tuple[float, ...] = setting(
        (0.4, 0.4, 0.2, 0.1),
        "strength of the jitter: brightness, contrast, saturation, hue",
        group="crops",
        low=0,
        high=1,
    )
    grey: float = setting(0.2, "probability of converting a crop to grey", group="crops", low=0, high=1)
    blur: tuple[float, ...] = setting(
        (1.0, 0.1, 0.5), "probability of blur: first global, second global, local crops", group="crops", low=0, high=1
    )
    blur_sigma: tuple[float, ...] = setting(
        (0.1, 2.0), "smallest and largest sigma of the blur, in pixels of a crop of 224", group="crops", low=0, high=10
    )
    solarise: float = setting(0.2, "probability of solarising the second global crop", group="crops", low=0, high=1)

    epochs: float = setting(
        100.0, "passes over the data; may be less than 1", group="optimiser", low=0.001, high=1e6, knob=True
    )
    batch: int = setting(64, "images in a step over all devices", group="optimiser", low=1, high=65536, knob=True)
    accumulate: int = setting(
        1,
        "gradient accumulation: parts of a step, to save memory; sinkhorn and KoLeo use one part at a time",
        group="optimiser",
        low=1,
        high=1024,
    )
    lr: float = setting(
        5e-4, "learning rate at a batch of 256; it scales linearly with the batch", group="optimiser", low=0, knob=True
    )
    lr_end: float = setting(1e-6, "learning rate at the end", group="optimiser", low=0)
    warmup_epochs: float = setting(
        AUTO,
        "epochs of learning rate warm-up; -1: a tenth of the run, at most 10",
        group="optimiser",
        low=AUTO,
    )
    weight_decay: float = setting(0.04, "weight decay at the start", group="optimiser", low=0, high=10)
    weight_decay_end: float = setting(0.4, "weight decay at the end", group="optimiser", low=0, high=10)
    beta2: float = setting(0.999, "decay of AdamW's second moment", group="optimiser", low=0, high=0.99999)
    clip: float = setting(3.0, "gradient clipping: maximum norm; 0: off", group="optimiser", low=0)
    teacher_momentum: float = setting(
        0.996, "momentum of the EMA teacher at the start; it rises to 1", group="optimiser", low=0, high=1
    )
    precision: str = setting(
        "auto",
        "auto: bfloat16 where the device computes it faster",
        group="optimiser",
        choices=("auto", "float32", "bfloat16"),
    )
    compile: bool = setting(False, "use torch.compile: a slower start, then faster on CUDA", group="optimiser")

    seed: int = setting(0, "seed of all random numbers of the run", group="run", low=0, high=2**31 - 1)
    knn_every: float = setting(10.0, "epochs between k-NN evaluations; 0: only at the end", group="run", low=0)
    snapshot_every: float = setting(
        10.0, "epochs between snapshots of attention and PCA; 0: only first and last", group="run", low=0
    )
    snapshot_weights: bool = setting(
        True, "keep the teacher's weights with each snapshot, in half precision, to open it later", group="run"
    )
    probe_images: tuple[str, ...] = setting((), "images for snapshots; empty: four of the data", group="run")
    checkpoint_minutes: float = setting(5.0, "minutes between checkpoints", group="run", low=0)
    log_every: int = setting(10, "steps between records of metrics", group="run", low=1)

    def check(self) -> None:
        if self.dim % self.heads:
            raise ConfigError(f"dim ({self.dim}) must be a multiple of heads ({self.heads}).")
        for name in ("global_size", "local_size"):
            if getattr(self, name) % self.patch and not self.start:
                raise ConfigError(f"{name} ({getattr(self, name)}) must be a multiple of patch ({self.patch}).")
        for name, length in (
            ("mask_ratio", 2),
            ("global_scale", 2),
            ("local_scale", 2),
            ("blur_sigma", 2),
            ("jitter_strength", 4),
            ("blur", 3),
        ):
            if len(getattr(self, name)) != length:
                raise ConfigError(f"{name} takes {length} numbers, not {len(getattr(self, name))}.")
        for name in ("mask_ratio", "global_scale", "local_scale", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                raise ConfigError(f"{name} must be the smallest value, then the largest, not {low:g} {high:g}.")
        if self.dino_weight == self.ibot_weight == 0:
            raise ConfigError("dino_weight and ibot_weight are both 0: one of them must be positive.")
        if self.batch % self.accumulate:
            raise ConfigError(f"batch ({self.batch}) must be a multiple of accumulate ({self.accumulate}).")

    def check_new(self) -> None:
        constant = self.teacher_temperature == self.teacher_temperature_start
        for name in SCHEDULES:
            if constant and name == "teacher_temperature_epochs":
                continue
            if getattr(self, name) > MOST_OF_RUN * self.epochs:
                raise ConfigError(
                    f"{name} ({getattr(self, name):g}) does not fit into a run of {self.epochs:g} epochs: at most "
                    f"{MOST_OF_RUN * self.epochs:g}, half of them, or {AUTO:g} to fit it to the run."
                )

    def resolved(self) -> PretrainConfig:
        """A copy with the epochs of the schedules that are -1."""
        chosen = {
            name: min(published, share * self.epochs)
            for name, (published, share) in SCHEDULES.items()
            if getattr(self, name) < 0
        }
        return replace(self, **chosen)


@dataclass(frozen=True)
class Preset:
    """Named settings: a description, and the values that differ from the defaults."""

    about: str
    values: dict


# For few steps on few images: targets that are balanced in each batch and sharp from the start, a teacher with low
# momentum, a high learning rate, smaller crops, and weak colour jitter, because colours are informative.
_QUICK = {
    "centring": "sinkhorn", "teacher_temperature": 0.04, "teacher_momentum": 0.99, "weight_decay_end": 0.1,
    "global_scale": (0.25, 1.0), "local_scale": (0.05, 0.25),
    "jitter_strength": (0.2, 0.2, 0.1, 0.03), "grey": 0.1, "solarise": 0.0, "batch": 32,
}  # fmt: skip

PRESETS: dict[str, Preset] = {
    "micro": Preset("a minute on a CPU, on the demo", {
        **_QUICK, "dim": 96, "depth": 4, "heads": 3, "global_size": 48, "local_size": 24, "local_crops": 4,
        "prototypes": 1024, "head_hidden": 512, "head_bottleneck": 128,
        "lr": 8e-3, "epochs": 20.0, "knn_every": 5.0, "snapshot_every": 2.0,
        "checkpoint_minutes": 0.1,
    }),
    "quarter-hour": Preset("a quarter of an hour on two cores, for one or two thousand small images", {
        **_QUICK, "dim": 128, "depth": 6, "heads": 2, "global_size": 48, "local_size": 24,
        "prototypes": 1024, "head_hidden": 512, "head_bottleneck": 128,
        "lr": 8e-3, "epochs": 100.0, "warmup_epochs": 3.0,
    }),
    "adapt": Preset("start from a model (--start) with its lower half frozen, on a thousand images or more", {
        **_QUICK, "global_size": 98, "local_size": 42, "local_crops": 4, "patch": 14, "freeze_layers": 6,
        "layer_decay": 0.9, "prototypes": 2048, "head_hidden": 1024, "koleo_weight": 0.1,
        "lr": 1.5e-3, "epochs": 10.0, "freeze_last_layer": 0.5, "knn_every": 2.0,
        "snapshot_every": 2.0,
    }),
    "tiny": Preset("ViT-Tiny, DINO's settings at small sizes", {"dim": 192, "depth": 12, "heads": 3}),
    "small": Preset("ViT-Small as DINO published it, for GPUs", {
        "dim": 384, "depth": 12, "heads": 6, "patch": 16, "global_size": 224, "local_size": 96, "local_crops": 8,
        "prototypes": 65536, "drop_path": 0.1, "batch": 256,
    }),
}  # fmt: skip


def pretrain_preset(name: str, epochs: float | None = None) -> dict:
    """The settings of a preset. Raises ConfigError, with the presets there are, for an unknown name.

    epochs: of the run, if they differ from the preset's; schedules of the preset that are too long for them are left
    out, which fits them to the run.
    """
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}. The presets are {', '.join(PRESETS)}.")
    values = PRESETS[name].values
    most = math.inf if epochs is None else MOST_OF_RUN * epochs
    return {key: value for key, value in values.items() if key not in SCHEDULES or value <= most}
