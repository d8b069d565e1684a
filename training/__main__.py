"""Train without the app: `python -m training pretrain photos --preset tiny --name mine`.

Every run is a folder below `runs` (or $DINOVIZ_RUNS); the app and `dinoviz.load` open it by that folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from dinoviz import errors
from training import commands

PRETRAIN_HELP = """\
Teach a vision transformer from images without labels, as DINO and DINOv2 do: a student sees small and large crops of
an image and learns to say of them what a teacher, its own moving average, says of the large ones.

  python -m training pretrain --demo --preset micro                a CPU minute, no data needed
  python -m training pretrain photos --preset quarter-hour         from scratch, on a laptop, on small images
  python -m training pretrain photos --preset tiny --name mine     from scratch, on a folder of images
  python -m training pretrain photos --preset adapt --start dinov2-small    go on from a model
  accelerate launch -m training pretrain photos --preset small     on all the devices there are

What to watch: the loss falls slowly and noisily, for the teacher moves too; k-NN accuracy is what counts. The
teacher's entropy should fall below log(prototypes) and stay above 0: at either end it says the same of all images.
"""
FINETUNE_HELP = """\
Make a classifier of your own classes: a folder for each class, images in it.

  python -m training finetune photos --method linear      a new head on frozen features: a minute, and hard to beat
  python -m training finetune photos --method lora        small matrices beside the frozen weights
  python -m training finetune photos --method full        all weights, the lower ones more slowly

--test is a folder that is looked at once, at the end; a part of the data decides when to stop.
"""
PROBE_HELP = """\
Train a depth probe: a small head that reads metres off the frozen patches. DATA is a folder or a zip file with
rgb/ID.jpg, and of each picture depth/ID.png (16 bits, millimetres) or depth/ID.npy (metres); 0 is unknown.

  python -m training probe rooms                                      the best head, the best layers
  python -m training probe rooms --head linear --layers 3,6,9,12      as DINOv2 was evaluated; layers count from 1
  python -m training probe nyu --border 8 --held-out 100              NYU Depth v2, with a test on 100 pictures
  python -m training probe photos --teacher facebook/dpt-dinov2-small-nyu     of pictures without depth
  python -m training probe photos --teacher runs/mine --model dinov2-base     what another probe says, too

Pictures with consecutive names are one room and never on two sides. Depth is told for cameras like those of DATA.
A teacher is a head that Meta published, facebook/dpt-dinov2-{small,base,large,giant}-{nyu,kitti}, or a depth probe; it
writes the depth of all pictures first, which may be a folder, a zip file, a list or, with --demo, the built-in ones.
"""
EVALUATE_HELP = """\
How much a model's features know of labelled images, by DINO's own measures: weighted k-NN and a linear classifier.

  python -m training evaluate photos/train --test photos/val --model dinov2-small
  python -m training evaluate photos/train --test photos/val --model runs/mine
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and say how it ended; see `errors.status`."""
    options = _parser().parse_args(arguments)
    return errors.status(
        "training",
        lambda: options.command(options),
        interrupted="stopped at once; `resume` goes on from the last checkpoint.",
    )


class _Parser(argparse.ArgumentParser):
    """One line for what cannot be understood; the list of all options would push it off the screen."""

    def error(self, message: str):
        self.exit(2, f"training: {message}; `{self.prog} --help` explains.\n")


def _parser() -> argparse.ArgumentParser:
    from training.config.cli import add_settings
    from training.config.pretrain import PRESETS, PretrainConfig
    from training.config.tasks import EvaluateConfig, FinetuneConfig, ProbeConfig

    parser = _Parser(prog="python -m training", description="Train a DINO, and what stands on one.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable, help: str, description: str = "") -> argparse.ArgumentParser:
        added = subparsers.add_parser(
            name,
            help=help,
            description=description or help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=run)
        return added

    pretrain = command("pretrain", commands.run_pretrain, "self-distillation on images without labels", PRETRAIN_HELP)
    presets = "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
    pretrain.add_argument("--preset", help=f"settings that go together ({presets})")
    pretrain.add_argument("--demo", action="store_true", help="train on the built-in pictures")
    add_settings(pretrain, PretrainConfig, positional=("data",))
    finetune = command("finetune", commands.run_finetune, "a classifier from labelled images", FINETUNE_HELP)
    finetune.add_argument("--demo", action="store_true", help="train on the built-in pictures")
    add_settings(finetune, FinetuneConfig, positional=("data",))
    probe = command("probe", commands.run_probe, "a depth probe on a frozen backbone", PROBE_HELP)
    probe.add_argument("--demo", action="store_true", help="train on the built-in pictures; needs a teacher")
    add_settings(probe, ProbeConfig, positional=("data",))
    for each in (pretrain, finetune, probe):
        each.add_argument("--name", help="the run's name; by default the time it starts")
    evaluate = command("evaluate", commands.run_evaluate, "k-NN and linear accuracy of a model or run", EVALUATE_HELP)
    evaluate.add_argument("--demo", action="store_true", help="evaluate on the built-in pictures")
    evaluate.add_argument("--out", type=Path, metavar="FILE", help="write all figures there as JSON")
    add_settings(evaluate, EvaluateConfig, positional=("data",))
    for name, run, help in (
        ("resume", commands.run_resume, "go on with a run that was stopped or killed"),
        ("stop", commands.run_stop, "ask a run to end at its next step"),
        ("export", commands.run_export, "write a run's network, in transformers' format, or its depth probe"),
    ):
        command(name, run, help).add_argument("name", help="of the run, or its folder")
    export = subparsers.choices["export"]
    export.add_argument("--out", type=Path, metavar="FOLDER", help="by default RUN/export")
    export.add_argument("--student", action="store_true", help="the student instead of the teacher")
    command("list", commands.run_list, "the runs there are")
    return parser


if __name__ == "__main__":
    sys.exit(main())
