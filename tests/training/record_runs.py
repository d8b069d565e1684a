"""Records the short runs, healthy and failing, that the alarms are tested on: some minutes on one core.

python -m tests.training.record_runs [NAME ...]

Each is a real run on the built-in pictures; recorded/NAME.json holds its settings and its records, to 5 digits.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from training.config.pretrain import PretrainConfig
from training.pretrain import pretrain
from training.runs.run import Run

FOLDER = Path(__file__).parent / "recorded"
SHORT = {
    "dim": 48, "depth": 2, "heads": 3, "patch": 8, "head_hidden": 128, "head_bottleneck": 64, "prototypes": 256,
    "global_size": 32, "local_size": 16, "local_crops": 2, "batch": 32, "epochs": 10.0, "lr": 2e-3,
    "teacher_momentum": 0.99, "precision": "float32", "knn_every": 0.0, "snapshot_every": 0.0,
    "snapshot_weights": False, "checkpoint_minutes": 60.0, "log_every": 5,
}  # fmt: skip
SINKHORN = {"centring": "sinkhorn", "teacher_temperature": 0.04}
MORE = {"ibot_weight": 1.0, "koleo_weight": 0.1}
RUNS = {
    "dino": {},
    "dino-ibot-koleo": MORE,
    "dino-ibot-koleo-own-head": {**MORE, "ibot_head": True},
    "sinkhorn": SINKHORN,
    "sinkhorn-ibot-koleo": {**SINKHORN, **MORE},
    "ibot-alone": {"ibot_weight": 1.0, "dino_weight": 0.0},
    "four-prototypes": {"prototypes": 4},
    "eight-prototypes-sinkhorn": {"prototypes": 8, **SINKHORN},
    "narrow-bottleneck": {"head_bottleneck": 8},
    "not-sharp": {"centring": "none", "teacher_temperature": 0.2, "teacher_temperature_start": 0.2},
    "not-centred": {"centring": "none", "teacher_temperature": 0.04},
    "high-lr": {"lr": 1.0},
    "high-lr-ibot-koleo": {"lr": 1.0, **MORE},
    "high-lr-sinkhorn": {"lr": 1.0, **SINKHORN},
}
FIGURES = ("loss", "loss_dino", "loss_ibot", "loss_koleo", "gradient_norm", "teacher_entropy", "teacher_kl",
        "teacher_information", "embedding_spread")  # fmt: skip


def record(name: str) -> None:
    """Train a run and write its records."""
    values = {**SHORT, **RUNS[name]}
    with tempfile.TemporaryDirectory() as root:
        config = PretrainConfig(**values)
        run = Run.create(name, "pretrain", config.to_dict(), root=Path(root))
        pretrain(config, run)
        write(name, values, run.status()["steps"], run.metrics())


def write(name: str, values: dict, steps: int, metrics: list[dict]) -> None:
    """A file with a record a line."""
    records = [
        {"step": each["step"]} | {key: float(f"{each[key]:.5g}") for key in FIGURES if key in each}
        for each in metrics
        if "loss" in each
    ]
    lines = ",\n".join(map(json.dumps, records))
    text = f'{{"config": {json.dumps(values)},\n"steps": {steps},\n"records": [\n{lines}\n]}}\n'
    (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for each in sys.argv[1:] or RUNS:
        record(each)
        print(each, flush=True)
