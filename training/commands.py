"""What each command of `python -m training` does with its options; the parser is in `__main__`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from training.engine.progress import Bar, Stages, shown

# What takes long to make, in a run's folder: steps, the features of a probe's images, the depth that a teacher wrote.
TAKES_LONG = ("checkpoints/*", "features/*.bin", "teacher/depth/*")
HASH_DIGITS = 12  # of weights, which tell them from all others that one has


def run_pretrain(options: argparse.Namespace) -> int | None:
    from training.config.pretrain import PretrainConfig, pretrain_preset
    from training.pretrain import pretrain

    preset = pretrain_preset(options.preset, getattr(options, "epochs", None)) if options.preset else {}
    return _start(options, PretrainConfig, "pretrain", shown(pretrain, Bar()), preset)


def run_finetune(options: argparse.Namespace) -> int | None:
    from training.config.tasks import FinetuneConfig
    from training.finetune import finetune

    return _start(options, FinetuneConfig, "finetune", lambda *args: _say(shown(finetune, Stages())(*args)))


def run_probe(options: argparse.Namespace) -> int | None:
    from training.config.tasks import ProbeConfig
    from training.probe import probe

    return _start(options, ProbeConfig, "probe", lambda *args: _say(shown(probe, Stages())(*args)))


def _placed(config, folder: Path) -> tuple:
    """A probe's settings with its data in a folder, and what puts it there once there is a run; see `unpack`."""
    from training.config.base import ConfigError
    from training.depth.unpack import place, unpack

    sources = [Path(config.data)] if config.data else []
    if not sources and not config.teacher:
        raise ConfigError("The demo's pictures have no depth: name a --teacher that tells it.")
    path = place(sources, folder)
    if [path] == sources or not (config.teacher or sources[0].suffix.lower() == ".zip"):
        return config, None
    return dataclasses.replace(config, data=str(path)), lambda: unpack(sources, path, taught=bool(config.teacher))


def _start(
    options: argparse.Namespace, kind: type, name: str, work: Callable, preset: dict | None = None
) -> int | None:
    """Make the run and do its work in it; with several processes, the main one makes it."""
    from training.config.base import ConfigError
    from training.config.cli import save, settings_of
    from training.runs.paths import absolute
    from training.runs.run import Run, check_name, root

    config = settings_of(options, kind, preset)
    config.check_new()
    if options.save_config:
        save(config, options.save_config)
        print(f"training: the settings are in {options.save_config}")
        return None
    demo = getattr(options, "demo", False)
    if bool(config.data) == demo:
        raise ConfigError("Name the images to train on, or --demo for the built-in ones; not both." if demo else
                          "Name the images to train on: a folder, a zip file or a list.")  # fmt: skip
    _quiet()
    run_name = check_name(options.name or _name_of_now(getattr(options, "preset", None) or name))
    config = absolute(config)
    for each in [config.data] if isinstance(config.data, str) else config.data:
        if each and not Path(each).exists():  # told before the name is taken by a run that cannot be
            raise ConfigError(f"{each}: there is no such file or folder.")
    fill = None
    if name == "probe":
        config, fill = _placed(config, (root() / run_name / "data").absolute())
    if _alone():
        run = _create(run_name, name, config, fill)
        with _gone_unless_begun(run):
            work(config, run)
        _goodbye(run)
        return None
    from accelerate.utils import broadcast_object_list

    from training.engine.distributed import close, state

    if state().is_main_process:
        run = _create(run_name, name, config, fill)
    run = Run(root() / broadcast_object_list([run_name])[0])  # made of the time, it may be another in each process
    with _gone_unless_begun(run) if state().is_main_process else nullcontext():
        work(config, run)
    if state().is_main_process:
        _goodbye(run)
    close()
    return None


def _name_of_now(kind: str) -> str:
    from training.runs.run import root

    names = itertools.count(2)
    now = name = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    while (root() / name).exists():
        name = f"{now}-{next(names)}"
    return name


def _create(name: str, kind: str, config, fill: Callable[[], None] | None = None):
    """fill: puts the data into the run's folder; if it cannot, or they are refused, there is no run."""
    from training.new_runs import check
    from training.runs.run import Run

    if fill is None:
        check(kind, config)
    run = Run.create(name, kind, config.to_dict())
    try:
        if fill is not None:
            fill()
            check(kind, config)
    except BaseException:
        shutil.rmtree(run.folder, ignore_errors=True)
        raise
    print(f"training: the run is {run.folder}; `python -m training stop {run.name}` ends it where it can go on")
    return run


@contextmanager
def _gone_unless_begun(run) -> Iterator[None]:
    """Remove the folder of a new run that fails before there is anything in it to go on from."""
    try:
        yield
    except Exception:
        made = itertools.chain.from_iterable(run.folder.glob(each) for each in TAKES_LONG)
        if not any(made) and not any(record.get("step", 0) > 0 for record in run.metrics()):
            shutil.rmtree(run.folder, ignore_errors=True)
        raise


def _alone() -> bool:
    """Whether this process trains by itself; `accelerate launch` tells its processes how many they are."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def run_resume(options: argparse.Namespace) -> None:
    from training.runs.run import Run, RunError

    _quiet()
    run = Run.open(options.name)
    if run.kind == "pretrain":
        from training.pretrain import resume

        shown(resume, Bar())(run)
    elif run.kind == "finetune":
        from training.finetune import resume

        _say(shown(resume, Stages())(run))
    elif run.kind == "probe":
        from training.probe import resume

        _say(shown(resume, Stages())(run))
    else:
        raise RunError(f"{run.name} is a run of kind {run.kind!r}, which cannot be resumed; start it again.")
    if _alone() or os.environ.get("RANK") == "0":
        _goodbye(run)
    if not _alone():
        from training.engine.distributed import close

        close()


def run_stop(options: argparse.Namespace) -> None:
    from training.runs.run import AT_WORK, Run, RunError

    run = Run.open(options.name)
    state = run.status()["state"]
    if state not in ("queued", *AT_WORK):
        raise RunError(f"{run.name} is not at work ({state}): there is nothing to stop.")
    run.request_stop()
    print(f"training: {run.name} will stop at its next step")


def run_export(options: argparse.Namespace) -> None:
    from training.export import copy_export, export_checkpoint
    from training.runs.run import Run, RunError

    _quiet()
    run = Run.open(options.name)
    what = {"finetune": "classifier", "probe": "depth probe"}.get(run.kind)
    if what:
        if options.student:
            raise RunError(f"{run.name} is a run of kind {run.kind!r}, which has no student: leave --student out.")
        folder = options.out or run.export_folder
        copy_export(run, folder)
        print(f"training: the {what} of {run.name} is in {folder}")
        return
    folder, step = export_checkpoint(run, options.out or run.export_folder, "student" if options.student else "teacher")
    print(f"training: step {step} of {run.name} is in {folder}; dinoviz.load opens it")


def run_list(options: argparse.Namespace) -> None:
    from training.runs.run import list_runs, root

    runs = list_runs()
    if not runs:
        print(f"training: there are no runs in {root()} yet")
        return
    print(f"{'name':32} {'kind':9} {'state':9} {'step':>15}  last figures")
    for run in runs:
        status = run.status()
        figures: dict = {}
        for record in run.metrics():
            figures |= record
        shown = ", ".join(
            f"{key.removeprefix('validation_')} {figures[key]:.3g}"
            for key in ("loss", "knn", "validation_top1", "validation_rmse")
            if isinstance(figures.get(key), int | float)
        )
        step = f"{status.get('step', '-')} of {status.get('steps', '-')}"
        name = run.name.encode(errors="backslashreplace").decode()  # a folder may be called what is no UTF-8
        print(f"{name:32} {run.kind:9} {status['state']:9} {step:>15}  {shown}")
        if status.get("message") and status["state"] in ("failed", "running"):
            print(textwrap.indent(textwrap.fill(status["message"], 100), "    "))


def run_evaluate(options: argparse.Namespace) -> int | None:
    from training.config.base import ConfigError
    from training.config.cli import save, settings_of
    from training.config.tasks import EvaluateConfig
    from training.evaluate import evaluate

    config = settings_of(options, EvaluateConfig)
    if options.save_config:
        save(config, options.save_config)
        print(f"training: the settings are in {options.save_config}")
        return None
    if bool(config.data) == options.demo:
        raise ConfigError("Name the labelled images, or --demo for the built-in ones.")
    _quiet()
    figures = shown(evaluate, Stages())(config)
    print(f"{figures['model']}: {figures['source']}")
    print(f"layers {figures['layers']}, {figures['train']} images to know, {figures['test']} to tell")
    for k, scores in figures["knn"].items():
        print(f"{k}-NN top-1 {scores['top1']:.1%}")
    if "linear" in figures:
        print(f"linear top-1 {figures['linear']['top1']:.1%}")
    print(figures["protocol"])
    if options.out:
        from dinoviz.atomic_files import whole, writing

        with writing(options.out), whole(options.out) as part:
            part.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    return None


def _say(result: dict | None) -> None:
    if result:
        print(json.dumps(_brief(result), indent=2))


def _brief(result: dict) -> dict:
    """What of a result fits on a screen: no lists, no figures of each class, and the first digits of a hash."""
    found = {}
    for key, value in result.items():
        if isinstance(value, dict) and key != "per_class":
            found[key] = _brief(value)
        elif isinstance(value, int | float | str):
            found[key] = value[:HASH_DIGITS] if key == "weights_id" else value
    return found


def _goodbye(run) -> None:
    status = run.status()
    print(f"training: {run.name} is {status['state']} at step {status.get('step', 0)} of {status.get('steps', 0)}")
    if status["state"] == "finished" and status.get("message"):
        print(f"training: {status['message']}")


def _quiet() -> None:
    from dinoviz.hub import quiet_transformers

    quiet_transformers()
