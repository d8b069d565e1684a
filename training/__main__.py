"""The command line of training: `python -m training pretrain photos --preset tiny --name mine`.

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
Pretrain a vision transformer on images without labels by self-distillation, as DINO and DINOv2 do: a student matches
the output of an EMA teacher across large and small crops of an image.

  python -m training pretrain --demo --preset micro                a CPU minute, no data needed
  python -m training pretrain photos --preset quarter-hour         from scratch, on a laptop, on small images
  python -m training pretrain photos --preset tiny --name mine     from scratch, on a folder of images
  python -m training pretrain photos --preset adapt --start dinov2-small    continue from a model
  accelerate launch -m training pretrain photos --preset small     on all devices

What to watch: the loss falls slowly and noisily, because the teacher moves too; k-NN accuracy measures progress. The
teacher's entropy should fall below log(prototypes) and stay above 0: at either end the output has collapsed.
"""
FINETUNE_HELP = """\
Train an image classifier on a folder with one subfolder of images for each class.

  python -m training finetune photos --method linear   a linear head on frozen features: a minute, and hard to beat
  python -m training finetune photos --method lora     low-rank matrices beside the frozen weights
  python -m training finetune photos --method full     all weights, lower blocks with lower learning rates

A part of the data is held out for early stopping (--validation). --test is evaluated once, at the end.
"""
PROBE_HELP = """\
Train a depth probe: a small head that predicts metric depth from frozen patch features. DATA is a folder or a zip file
with rgb/ID.jpg, and for each picture depth/ID.png (16 bits, millimetres) or depth/ID.npy (metres); 0 is unknown.

  python -m training probe rooms                                      the default head on the default layers
  python -m training probe rooms --head linear --layers 3,6,9,12      as DINOv2 was evaluated; layers count from 1
  python -m training probe nyu --border 8 --held-out 100              NYU Depth v2, with a test on 100 pictures
  python -m training probe photos --teacher facebook/dpt-dinov2-small-nyu     on pictures without depth
  python -m training probe photos --teacher runs/mine --model dinov2-base     with the depth that another probe predicts

Pictures with consecutive names are assumed to show one room and are kept on one side of the split. The predicted depth
holds for cameras like those of DATA. A teacher is a head that Meta published,
facebook/dpt-dinov2-{small,base,large,giant}-{nyu,kitti}, or a depth probe. It predicts the depth of all pictures first;
DATA may then be a folder, a zip file, a list or, with --demo, the built-in pictures.
"""
EVALUATE_HELP = """\
Evaluate the frozen features of a model on labelled images, with weighted k-NN and a linear classifier, as DINO does.

  python -m training evaluate photos/train --test photos/val --model dinov2-small
  python -m training evaluate photos/train --test photos/val --model runs/mine
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit status, see `errors.status`."""
    options = _parser().parse_args(arguments)
    return errors.status(
        "training",
        lambda: options.command(options),
        interrupted="stopped at once; `resume` continues from the last checkpoint.",
    )


class _Parser(argparse.ArgumentParser):
    """Prints an error in one line, without the list of all options."""

    def error(self, message: str):
        self.exit(2, f"training: {message}; see `{self.prog} --help`.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m training", description="Train and evaluate DINO models, classifiers, depth probes."
    )
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

    _add_trainings(command)
    for name, run, help in (
        ("resume", commands.run_resume, "resume a run that was stopped or killed"),
        ("stop", commands.run_stop, "stop a run at its next step"),
        ("export", commands.run_export, "write a run's network in transformers' format, or its depth probe"),
    ):
        command(name, run, help).add_argument("name", help="name of the run, or its folder")
    export = subparsers.choices["export"]
    export.add_argument("--out", type=Path, metavar="FOLDER", help="by default RUN/export")
    export.add_argument("--student", action="store_true", help="the student instead of the teacher")
    command("list", commands.run_list, "list all runs")
    return parser


def _add_trainings(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that have a configuration: pretrain, finetune, probe and evaluate."""
    from training.config.cli import add_settings
    from training.config.pretrain import PRESETS, PretrainConfig
    from training.config.tasks import EvaluateConfig, FinetuneConfig, ProbeConfig

    pretrain = command("pretrain", commands.run_pretrain, "self-distillation on images without labels", PRETRAIN_HELP)
    presets = "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
    pretrain.add_argument("--preset", help=f"named settings ({presets})")
    finetune = command("finetune", commands.run_finetune, "an image classifier from labelled images", FINETUNE_HELP)
    probe = command("probe", commands.run_probe, "a depth probe on a frozen backbone", PROBE_HELP)
    for parser, config, more in (
        (pretrain, PretrainConfig, ""),
        (finetune, FinetuneConfig, ""),
        (probe, ProbeConfig, "; needs a teacher"),
    ):
        parser.add_argument("--demo", action="store_true", help=f"train on the built-in pictures{more}")
        add_settings(parser, config, positional=("data",))
        parser.add_argument("--name", help="name of the run; by default its start time")
    evaluate = command("evaluate", commands.run_evaluate, "k-NN and linear accuracy of a model or run", EVALUATE_HELP)
    evaluate.add_argument("--demo", action="store_true", help="evaluate on the built-in pictures")
    evaluate.add_argument("--out", type=Path, metavar="FILE", help="write all metrics to a JSON file")
    add_settings(evaluate, EvaluateConfig, positional=("data",))


if __name__ == "__main__":
    sys.exit(main())
