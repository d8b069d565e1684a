"""The model card of a run, for the app, the download and the Hub."""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dinoviz.json_files import read_json
from dinoviz.models import run_name
from training.config.base import ConfigError
from training.config.cli import KINDS, command_line
from training.runs.files import checked, number, text, whole
from training.runs.run import Run, RunError

KIND_NAMES = {"pretrain": "self-distillation (DINO)", "finetune": "image classification", "probe": "depth probe"}
TASKS = {"finetune": "image-classification", "probe": "depth-estimation"}  # names of the Hub
# Metrics of the last record: label, meaning, factor and unit.
FIGURES = {
    "knn": ("k-NN accuracy", "weighted 20-NN on the teacher's CLS token, top-1 on held-out images", 100, " %"),
    "loss": ("loss", "mean since the record before", 1, ""),
    "teacher_entropy": ("teacher entropy", "in nats; collapsed at 0 and at log(prototypes)", 1, ""),
    "prototypes_used": ("prototypes in use", "share that were the strongest of a crop within an epoch", 100, " %"),
    "embedding_spread": ("spread of the CLS tokens", "0: all have the same direction", 1, ""),
    "validation_top1": ("validation accuracy", "top-1 on the part of the data that early stopping uses", 100, " %"),
    "validation_rmse": ("validation RMSE", "of the predicted depth", 1, " m"),
}
MOST_CLASSES = 60
MOST_RESULT = 32_000_000  # bytes of result.json; the confusion matrix of a thousand classes has four million
SHARE = number(0, 1)
SCORES = {"top1": SHARE, "top5": SHARE, "n": whole(0, 10**9)}
DEPTHS = {name: number() for name in ("rmse", "abs_rel", "log10", "silog", "delta1", "delta2", "delta3")}


def card(run: Run, repository: str = "") -> str:
    """Markdown with task, data, metrics, command line and how to open the model. Names of data, no paths.

    repository: of the Hugging Face Hub, to open instead of the run's folder.
    """
    config, status = run.config, run.status()
    names = _data_names(run)
    start = config.get("start") or config.get("model")
    lines = [
        f"# {_plain(run.name)}",
        f"{KIND_NAMES.get(run.kind, run.kind)}, trained with [dinoviz](https://github.com/dinoviz/dinoviz): "
        f"{status['state']} at step {status.get('step') or 0:,} of {status.get('steps') or 0:,}.",
        f"**Data** {', '.join(map(_plain, names)) or 'the built-in demo'}.  \n"
        f"**From** {_plain(_model(start)) if start else 'random weights'}.  \n"
        f"**Seed** {config.get('seed', 0)}.  \n**Time** {_minutes(run)}.",
        *_figures(run),
        *_result(run),
        "## Reproduce",
        f"```sh\n{_command(run, names)}\n```",
        "## Use",
        "For a downloaded copy, use the folder that it was extracted to.",
        f"```python\n{_python(run, repository)}\n```",
    ]
    return "\n\n".join(lines) + "\n"


def hub_card(run: Run, repository: str = "") -> str:
    """The card with the metadata that the Hugging Face Hub reads: library, task, tags and results."""
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        library_name="dinoviz" if run.kind == "probe" else "transformers",
        pipeline_tag=TASKS.get(run.kind, "image-feature-extraction"),
        tags=["dino", "dinoviz"],
        **_evaluation(run),
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{card(run, repository)}"


def _evaluation(run: Run) -> dict[str, Any]:
    """The run's name and its metrics on validation and test images, as the Hub's `model-index`; {} without metrics."""
    from huggingface_hub import EvalResult

    try:
        found = result(run)
    except RunError:
        return {}
    scores = {part: found.get(part) for part in ("validation", "test")}
    label, kind, name = "accuracy", "accuracy", "top1"
    if run.kind == "probe":
        scores, (label, kind, name) = found.get("metrics") or {}, ("RMSE in metres", "rmse", "rmse")
    dataset = ", ".join(_data_names(run)) or "dinoviz demo"
    results = [
        EvalResult(
            task_type=TASKS[run.kind],
            dataset_type="depth" if run.kind == "probe" else "imagefolder",
            dataset_name=dataset,
            dataset_split=part,
            metric_type=kind,
            metric_name=label,
            metric_value=round(each[name], 4),
        )
        for part, each in scores.items()
        if each
    ]
    return {"model_name": run.name, "eval_results": results} if results else {}


def _data_names(run: Run) -> list[str]:
    data = run.config.get("data") or []
    return [_name(each) for each in ([data] if isinstance(data, str) else data)]


def result(run: Run) -> dict[str, Any]:
    """The result.json of a fine-tuning or probe run; {} if there is none yet. Raises RunError if it is damaged."""
    path = run.folder / "result.json"
    if not path.exists():
        return {}
    found = read_json(path, RunError, max_bytes=MOST_RESULT, finite=False)
    for part in ("validation", "test"):
        if run.kind == "finetune" and found.get(part):
            _check_scores(found[part], part)
    if run.kind == "probe" and found.get("metrics"):
        _check_depths(found)
    return found


def _check_scores(scores: Any, part: str) -> None:
    """Raise RunError unless the scores have the form of `training.evaluation.metrics.scores`."""
    if not isinstance(scores, dict):
        raise RunError(f"result.json: {part} has no scores.")
    checked(scores, SCORES, "result.json", ("top1", "n"), RunError)
    classes, confusion = scores.get("per_class"), scores.get("confusion")
    if not isinstance(classes, dict) or not all(share is None or SHARE.holds(share) for share in classes.values()):
        raise RunError("result.json: per_class must have a number from 0 to 1 for each class.")
    count, counts = len(classes), whole(0, 10**9).holds
    rows = confusion if isinstance(confusion, list) else []
    if len(rows) != count or not all(isinstance(row, list) and len(row) == count for row in rows):
        raise RunError(f"result.json: confusion must have {count} x {count} numbers, one for each pair of classes.")
    if not all(counts(value) for row in rows for value in row):
        raise RunError("result.json: confusion must have whole numbers.")


def _check_depths(found: dict) -> None:
    """Raise RunError unless the metrics have the form that `training.probe` writes."""
    parts, data = found["metrics"], found.get("data")
    if not isinstance(parts, dict) or not isinstance(data, dict):
        raise RunError("result.json: metrics and data must be objects.")
    checked(data, {"rule": text(1000)}, "result.json", ("rule",), RunError)
    for scores in parts.values():
        for of in (scores, scores.get("median_scaled")) if isinstance(scores, dict) else (None,):
            if not isinstance(of, dict):
                raise RunError("result.json: metrics has no depth metrics.")
            checked(of, DEPTHS, "result.json", tuple(DEPTHS), RunError)
        checked(scores, {"images": whole(0, 10**9)}, "result.json", ("images",), RunError)


def _figures(run: Run) -> list[str]:
    last: dict[str, Any] = {}
    for record in run.metrics():
        last |= {key: value for key, value in record.items() if isinstance(value, int | float)}
    known = [(FIGURES[key], last[key]) for key in FIGURES if key in last]
    if not known:
        return []
    rows = [f"| {name} | {value * times:.3g}{unit} | {means} |" for (name, means, times, unit), value in known]
    return ["| metric | last value | meaning |\n|---|---|---|\n" + "\n".join(rows)]


def _result(run: Run) -> list[str]:
    try:
        found = result(run)
    except RunError as error:
        return [f"The metrics cannot be read: {_plain(str(error))}"]
    return _depths(found) if run.kind == "probe" else _scores(found) if run.kind == "finetune" else []


def _scores(found: dict) -> list[str]:
    lines = []
    for part in ("validation", "test"):
        scores = found.get(part)
        if not scores:
            continue
        top5 = f", top-5 {scores['top5']:.1%}" if scores.get("top5") is not None else ""
        lines.append(f"## {part.capitalize()}: top-1 {scores['top1']:.1%}{top5}, {scores['n']:,} images")
        totals = [sum(row) for row in scores["confusion"]]
        rows = [
            f"| {_plain(name)} | {'' if share is None else f'{share:.0%}'} | {total} | {_confused_with(scores, i)} |"
            for i, ((name, share), total) in enumerate(zip(scores["per_class"].items(), totals, strict=True))
        ]
        more = f"\n\nand {len(rows) - MOST_CLASSES} more classes" if len(rows) > MOST_CLASSES else ""
        table = "| class | accuracy | images | most often confused with |\n|---|---|---|---|\n"
        lines.append(table + "\n".join(rows[:MOST_CLASSES]) + more)
    return lines


def _depths(found: dict) -> list[str]:
    lines = []
    for part, scores in (found.get("metrics") or {}).items():
        rows = [
            f"| {what} | {of['rmse']:.3f} m | {of['abs_rel']:.3f} | {of['log10']:.3f} | {of['silog']:.1f} | "
            f"{of['delta1']:.1%} | {of['delta2']:.1%} | {of['delta3']:.1%} |"
            for what, of in (("as predicted", scores), ("median scaled", scores["median_scaled"]))
        ]
        head = "| | RMSE | AbsRel | log10 | SI-log | delta1 | delta2 | delta3 |\n|---|---|---|---|---|---|---|---|\n"
        lines += [f"## {part.capitalize()}: {scores['images']} images", head + "\n".join(rows)]
    if lines:
        lines.append(f"Rule of the split: {_plain(found['data']['rule'])}.")
    return lines


def _confused_with(scores: dict, i: int) -> str:
    names, row = list(scores["per_class"]), list(scores["confusion"][i])
    row[i] = 0
    return f"{_plain(names[row.index(max(row))])} ({max(row)})" if max(row, default=0) else ""


def _plain(text: str) -> str:
    """Text on one line with Markdown and HTML escaped: a class may be named like an image on another host."""
    return re.sub(r"([\\`*_\[\]|~$!#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _name(path: str) -> str:
    return " ".join(Path(path).name.split())


def _model(start: str) -> str:
    """The model that the run started from: a known name or Hub id, or the name of a folder."""
    return run_name(Path(start)) if Path(start).is_absolute() else start


def _minutes(run: Run) -> str:
    """The time of training, by the seconds or speed in the records: a run may have been stopped for days."""
    records = run.metrics()
    seconds = sum(_number(record, "seconds") for record in records)
    if not seconds:
        batch, before = run.config.get("batch", 0), 0.0
        for record in records:
            if (speed := _number(record, "speed")) and (step := _number(record, "step")):
                seconds += (step - before) * batch / speed
                before = step
    return f"about {seconds / 60:.1f} minutes of training" if seconds > 0 and math.isfinite(seconds) else "unknown"


def _number(record: dict, key: str) -> float:
    """A number of a record; 0 if it has none."""
    value = record.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _command(run: Run, names: list[str]) -> str:
    kind = run.kind
    try:
        config = KINDS[kind].from_dict(run.config)
    except (KeyError, ConfigError) as error:
        return f"# the settings cannot be read: {error}"
    values = asdict(config).items()
    hidden = {name: _name(value) for name, value in values if isinstance(value, str) and Path(value).is_absolute()}
    if getattr(config, "probe_images", ()):
        hidden["probe_images"] = tuple(map(_name, config.probe_images))
    return command_line(kind, replace(config, **hidden), data=names)


def _python(run: Run, repository: str) -> str:
    where = json.dumps(repository or f"runs/{run.name}/export")
    if run.kind == "finetune":
        return (
            "from transformers import AutoImageProcessor, AutoModelForImageClassification\n"
            f"processor = AutoImageProcessor.from_pretrained({where})\n"
            f"model = AutoModelForImageClassification.from_pretrained({where})"
        )
    if run.kind != "probe":
        return f"import dinoviz\nbackbone = dinoviz.load({where})"
    opening = "from dinoviz.depth import open_probe\nprobe = open_probe"
    if repository:
        fetch = f'hf_hub_download({where}, "probe.safetensors")'
        return f"from huggingface_hub import hf_hub_download\n{opening}({fetch})"
    return f'{opening}({where[:-1]}/probe.safetensors")'
