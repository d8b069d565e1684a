"""The commands of `python -m training`; the parser is in `__main__`."""

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

# Files of a run that take long to compute: checkpoints, a probe's features, the depth that a teacher predicted.
EXPENSIVE = ("checkpoints/*", "features/*.bin", "teacher/depth/*")
HASH_DIGITS = 12  # of the weights' hash that are printed


def run_pretrain(options: argparse.Namespace) -> int | None:
    from training.config.pretrain import PretrainConfig, pretrain_preset
    from training.pretrain import pretrain

    preset = pretrain_preset(options.preset, getattr(options, "epochs", None)) if options.preset else {}
    return _start(options, PretrainConfig, "pretrain", shown(pretrain, Bar()), preset)


def run_finetune(options: argparse.Namespace) -> int | None:
    from training.config.tasks import FinetuneConfig
    from training.finetune import finetune

    return _start(options, FinetuneConfig, "finetune", lambda *args: _print_result(shown(finetune, Stages())(*args)))


def run_probe(options: argparse.Namespace) -> int | None:
    from training.config.tasks import ProbeConfig
    from training.probe import probe

    return _start(options, ProbeConfig, "probe", lambda *args: _print_result(shown(probe, Stages())(*args)))


def _start(
    options: argparse.Namespace, kind: type, name: str, work: Callable, preset: dict | None = None
) -> int | None:
    """Create the run and train it; with several processes, the main one creates it."""
    from training.config.cli import settings_of
    from training.runs.paths import absolute
    from training.runs.run import check_name, root

    config = settings_of(options, kind, preset)
    config.check_new()
    if _saved_config(options, config):
        return None
    _check_data(config, options.demo)
    _quiet()
    run_name = check_name(options.name or _default_name(getattr(options, "preset", None) or name))
    config, fill = absolute(config), None
    if name == "probe":
        config, fill = _placed(config, (root() / run_name / "data").absolute())
    if _single_process():
        run = _create(run_name, name, config, fill)
        with _removed_if_empty(run):
            work(config, run)
        _print_status(run)
    else:
        _start_distributed(run_name, name, config, fill, work)
    return None


def _start_distributed(run_name: str, name: str, config, fill: Callable[[], None] | None, work: Callable) -> None:
    from accelerate.utils import broadcast_object_list

    from training.engine.distributed import close, state
    from training.runs.run import Run, root

    main = state().is_main_process
    if main:
        run = _create(run_name, name, config, fill)
    # The default name is the time, which may differ between the processes.
    run = Run(root() / broadcast_object_list([run_name])[0])
    with _removed_if_empty(run) if main else nullcontext():
        work(config, run)
    if main:
        _print_status(run)
    close()


def _saved_config(options: argparse.Namespace, config) -> bool:
    """Whether --save-config was given; the settings are then written to its file."""
    from training.config.cli import save

    if not options.save_config:
        return False
    save(config, options.save_config)
    print(f"training: the settings are in {options.save_config}")
    return True


def _check_data(config, demo: bool) -> None:
    """Raise ConfigError unless there is either existing data or --demo; before a run takes its name."""
    from training.config.base import ConfigError

    if bool(config.data) == demo:
        raise ConfigError(
            "Name the images to train on, or use --demo for the built-in ones; not both."
            if demo
            else "Name the images to train on: a folder, a zip file or a list."
        )
    for each in [config.data] if isinstance(config.data, str) else config.data:
        if each and not Path(each).exists():
            raise ConfigError(f"{each}: no such file or folder.")


def _placed(config, folder: Path) -> tuple:
    """A probe's configuration with its data in a folder, and the function that writes it there, or None.

    The function is called once the run exists; see `training.depth.unpack`.
    """
    from training.config.base import ConfigError
    from training.depth.unpack import place, unpack

    sources = [Path(config.data)] if config.data else []
    if not sources and not config.teacher:
        raise ConfigError("The demo's pictures have no depth: name a --teacher that predicts it.")
    path = place(sources, folder)
    if [path] == sources or not (config.teacher or sources[0].suffix.lower() == ".zip"):
        return config, None
    return dataclasses.replace(config, data=str(path)), lambda: unpack(sources, path, with_depth=not config.teacher)


def _default_name(kind: str) -> str:
    """The kind and the time, with a number if there is such a run already."""
    from training.runs.run import root

    numbers = itertools.count(2)
    now = name = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    while (root() / name).exists():
        name = f"{now}-{next(numbers)}"
    return name


def _create(name: str, kind: str, config, fill: Callable[[], None] | None = None):
    """Create a run; `fill` writes data into its folder. There is no run if `fill` fails or the data is refused."""
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
    print(
        f"training: the run is {run.folder}; stop it with `python -m training stop {run.name}`, `resume` continues it"
    )
    return run


@contextmanager
def _removed_if_empty(run) -> Iterator[None]:
    """Remove the folder of a new run that fails before it has anything to resume from."""
    try:
        yield
    except Exception:
        files = itertools.chain.from_iterable(run.folder.glob(each) for each in EXPENSIVE)
        if not any(files) and not any(record.get("step", 0) > 0 for record in run.metrics()):
            shutil.rmtree(run.folder, ignore_errors=True)
        raise


def _single_process() -> bool:
    """Whether this process trains alone; `accelerate launch` sets WORLD_SIZE."""
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

        _print_result(shown(resume, Stages())(run))
    elif run.kind == "probe":
        from training.probe import resume

        _print_result(shown(resume, Stages())(run))
    else:
        raise RunError(f"{run.name} is a run of kind {run.kind!r}, which cannot be resumed: start a new run.")
    if _single_process() or os.environ.get("RANK") == "0":
        _print_status(run)
    if not _single_process():
        from training.engine.distributed import close

        close()


def run_stop(options: argparse.Namespace) -> None:
    from training.runs.run import AT_WORK, Run, RunError

    run = Run.open(options.name)
    state = run.status()["state"]
    if state not in ("queued", *AT_WORK):
        raise RunError(f"{run.name} is {state}, not running: there is nothing to stop.")
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
            raise RunError(f"{run.name} is a run of kind {run.kind!r} and has no student: omit --student.")
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
    print(f"{'name':32} {'kind':9} {'state':9} {'step':>15}  last metrics")
    for run in runs:
        status = run.status()
        metrics: dict = {}
        for record in run.metrics():
            metrics |= record
        last = ", ".join(
            f"{key.removeprefix('validation_')} {metrics[key]:.3g}"
            for key in ("loss", "knn", "validation_top1", "validation_rmse")
            if isinstance(metrics.get(key), int | float)
        )
        step = f"{status.get('step', '-')} of {status.get('steps', '-')}"
        name = run.name.encode(errors="backslashreplace").decode()  # a folder's name may be invalid UTF-8
        print(f"{name:32} {run.kind:9} {status['state']:9} {step:>15}  {last}")
        if status.get("message") and status["state"] in ("failed", "running"):
            print(textwrap.indent(textwrap.fill(status["message"], 100), "    "))


def run_evaluate(options: argparse.Namespace) -> int | None:
    from training.config.base import ConfigError
    from training.config.cli import settings_of
    from training.config.tasks import EvaluateConfig
    from training.evaluate import evaluate

    config = settings_of(options, EvaluateConfig)
    if _saved_config(options, config):
        return None
    if bool(config.data) == options.demo:
        raise ConfigError("Name the labelled images, or use --demo for the built-in ones.")
    _quiet()
    result = shown(evaluate, Stages())(config)
    print(f"{result['model']}: {result['source']}")
    print(f"layers {result['layers']}, {result['train']} train images, {result['test']} test images")
    for k, scores in result["knn"].items():
        print(f"{k}-NN top-1 {scores['top1']:.1%}")
    if "linear" in result:
        print(f"linear top-1 {result['linear']['top1']:.1%}")
    print(result["protocol"])
    if options.out:
        from dinoviz.atomic_files import whole, writing

        with writing(options.out), whole(options.out) as part:
            part.write_text(json.dumps(result, indent=2), encoding="utf-8")
    return None


def _print_result(result: dict | None) -> None:
    if result:
        print(json.dumps(_brief(result), indent=2))


def _brief(result: dict) -> dict:
    """The part of a result that fits on a screen: no lists, no metrics of single classes, short hashes."""
    found = {}
    for key, value in result.items():
        if isinstance(value, dict) and key != "per_class":
            found[key] = _brief(value)
        elif isinstance(value, int | float | str):
            found[key] = value[:HASH_DIGITS] if key == "weights_id" else value
    return found


def _print_status(run) -> None:
    status = run.status()
    print(f"training: {run.name} is {status['state']} at step {status.get('step', 0)} of {status.get('steps', 0)}")
    if status["state"] == "finished" and status.get("message"):
        print(f"training: {status['message']}")


def _quiet() -> None:
    from dinoviz.hub import quiet_transformers

    quiet_transformers()
