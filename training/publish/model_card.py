"""A run in words: the card on the page, in the download, and on the Hub."""

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
TASKS = {"finetune": "image-classification", "probe": "depth-estimation"}  # as the Hub calls them
# Of a record of metrics, what a reader asks for at the end, and what it means.
FIGURES = {
    "knn": ("k-NN accuracy", "weighted 20-NN of the teacher's CLS token on held-out images, top-1", 100, " %"),
    "loss": ("loss", "of the last steps", 1, ""),
    "teacher_entropy": ("teacher entropy", "in nats: low is sharp; at 0 or at log(prototypes) it collapsed", 1, ""),
    "prototypes_used": ("prototypes in use", "that were the strongest of some crop within an epoch", 100, " %"),
    "embedding_spread": ("spread of the CLS tokens", "0: all point the same way", 1, ""),
    "validation_top1": ("validation accuracy", "on the part of the data that decided when to stop, top-1", 100, " %"),
    "validation_rmse": ("validation RMSE", "of the depth, in metres", 1, " m"),
}
MOST_CLASSES = 60
MOST_RESULT = 32_000_000  # bytes of result.json: a thousand classes make four million, of pairs that are confused
SHARE = number(0, 1)
SCORES = {"top1": SHARE, "top5": SHARE, "n": whole(0, 10**9)}
DEPTHS = {name: number() for name in ("rmse", "abs_rel", "log10", "silog", "delta1", "delta2", "delta3")}


def card(run: Run, repository: str = "") -> str:
    """Markdown: what was trained on what, how far, with which figures, and how to open it. Names of data, no paths.

    repository: of the Hugging Face Hub, where that is to be opened instead of the run's folder.
    """
    config, status = run.config, run.status()
    data = config.get("data") or []
    names = [_name(each) for each in ([data] if isinstance(data, str) else data)]
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
        "## The same again",
        f"```sh\n{_command(run, names)}\n```",
        "## To open it",
        "A copy that was downloaded opens by the folder that it was unpacked to.",
        f"```python\n{_python(run, repository)}\n```",
    ]
    return "\n\n".join(lines) + "\n"


def hub_card(run: Run, repository: str = "") -> str:
    """The card with the header that the Hugging Face Hub reads."""
    library = "dinoviz" if run.kind == "probe" else "transformers"
    task = TASKS.get(run.kind, "image-feature-extraction")
    header = f"---\nlibrary_name: {library}\npipeline_tag: {task}\ntags:\n- dino\n- dinoviz\n---\n\n"
    return header + card(run, repository)


def result(run: Run) -> dict[str, Any]:
    """What a fine-tuning or a probe wrote at its end; {} if there is nothing yet. Raises RunError if it is damaged."""
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
    """Raises RunError unless they are as `training.evaluation.metrics` makes them."""
    if not isinstance(scores, dict):
        raise RunError(f"result.json: {part} holds no scores.")
    checked(scores, SCORES, "result.json", ("top1", "n"), RunError)
    classes, confusion = scores.get("per_class"), scores.get("confusion")
    if not isinstance(classes, dict) or not all(share is None or SHARE.holds(share) for share in classes.values()):
        raise RunError("result.json: per_class is a share for each class.")
    count, counts = len(classes), whole(0, 10**9).holds
    rows = confusion if isinstance(confusion, list) else []
    if len(rows) != count or not all(isinstance(row, list) and len(row) == count for row in rows):
        raise RunError(f"result.json: confusion is a table of {count} x {count} numbers, one for each pair of classes.")
    if not all(counts(value) for row in rows for value in row):
        raise RunError("result.json: confusion holds what is no count.")


def _check_depths(found: dict) -> None:
    """Raises RunError unless the metrics are as `training.probe` writes them."""
    parts, data = found["metrics"], found.get("data")
    if not isinstance(parts, dict) or not isinstance(data, dict):
        raise RunError("result.json: metrics and data are objects.")
    checked(data, {"rule": text(1000)}, "result.json", ("rule",), RunError)
    for scores in parts.values():
        for of in (scores, scores.get("median_scaled")) if isinstance(scores, dict) else (None,):
            if not isinstance(of, dict):
                raise RunError("result.json: metrics holds no figures of depth.")
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
    return ["| figure | | of the last record |\n|---|---|---|\n" + "\n".join(rows)]


def _result(run: Run) -> list[str]:
    try:
        found = result(run)
    except RunError as error:
        return [f"Its figures cannot be read: {_plain(str(error))}"]
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
            f"| {_plain(name)} | {'' if share is None else f'{share:.0%}'} | {total} | {_mistaken(scores, i)} |"
            for i, ((name, share), total) in enumerate(zip(scores["per_class"].items(), totals, strict=True))
        ]
        more = f"\n\nand {len(rows) - MOST_CLASSES} more classes" if len(rows) > MOST_CLASSES else ""
        table = "| class | right | images | most often taken for |\n|---|---|---|---|\n"
        lines.append(table + "\n".join(rows[:MOST_CLASSES]) + more)
    return lines


def _depths(found: dict) -> list[str]:
    lines = []
    for part, scores in (found.get("metrics") or {}).items():
        rows = [
            f"| {what} | {of['rmse']:.3f} m | {of['abs_rel']:.3f} | {of['log10']:.3f} | {of['silog']:.1f} | "
            f"{of['delta1']:.1%} | {of['delta2']:.1%} | {of['delta3']:.1%} |"
            for what, of in (("as told", scores), ("median scaled", scores["median_scaled"]))
        ]
        head = "| | RMSE | AbsRel | log10 | SI-log | delta1 | delta2 | delta3 |\n|---|---|---|---|---|---|---|---|\n"
        lines += [f"## {part.capitalize()}: {scores['images']} images", head + "\n".join(rows)]
    if lines:
        lines.append(f"Images were parted by a rule: {_plain(found['data']['rule'])}.")
    return lines


def _mistaken(scores: dict, i: int) -> str:
    names, row = list(scores["per_class"]), list(scores["confusion"][i])
    row[i] = 0
    return f"{_plain(names[row.index(max(row))])} ({max(row)})" if max(row, default=0) else ""


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line: a class may be called like a picture on another host."""
    return re.sub(r"([\\`*_\[\]|~$!#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _name(path: str) -> str:
    return " ".join(Path(path).name.split())


def _model(start: str) -> str:
    """What was begun from: a known name or a Hub id as it is, of a folder its name."""
    return run_name(Path(start)) if Path(start).is_absolute() else start


def _minutes(run: Run) -> str:
    """Of work, by the records' own clock where there is one: a run may have been stopped for days."""
    records = run.metrics()
    seconds = sum(_number(record, "seconds") for record in records)
    if not seconds:
        batch, before = run.config.get("batch", 0), 0.0
        for record in records:
            if (speed := _number(record, "speed")) and (step := _number(record, "step")):
                seconds += (step - before) * batch / speed
                before = step
    return f"about {seconds / 60:.1f} minutes of training" if seconds > 0 and math.isfinite(seconds) else "not known"


def _number(record: dict, key: str) -> float:
    """A number of a record; 0 where it has none."""
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
