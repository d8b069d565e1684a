"""From the values of the form to a run that can be made: its configuration and its data, checked."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

from dinoviz.ui.train.depth_data import DepthSource, teacher_of
from dinoviz.ui.train.form import Form
from dinoviz.ui.train.image_data import DEMO, FOLDER, Source, check_broken
from dinoviz.ui.workbench import Workbench
from training.config.base import Config
from training.config.cli import KINDS
from training.data.demo import demo
from training.depth.pseudo_labels import MAX_BROKEN
from training.runs.run import check_name

SCRATCH, ADAPT, FINETUNE, PROBE = "scratch", "adapt", "finetune", "probe"
KIND = {SCRATCH: "pretrain", ADAPT: "pretrain", FINETUNE: "finetune", PROBE: "probe"}


@dataclass(frozen=True)
class Values:
    """What the form holds; an empty text may be None. settings: of all forms, one after the other."""

    where: str
    files: list[str] | None
    path: str | None
    held_out: str | None
    model: str
    task: str
    teacher: str | None
    preset: str | None
    name: str | None
    keep: bool
    settings: tuple

    @classmethod
    def of(cls, where, files, path, held_out, model, task, teacher, preset, name, keep, *settings) -> Values:
        """From values in the order of the controls."""
        return cls(where, files, path, held_out, model, task, teacher, preset, name, keep, settings)


@dataclass(frozen=True)
class RunRequest:
    """A run that can be made. keep: go on when the app is closed."""

    kind: str
    config: Config
    preset: str
    name: str
    source: Source | DepthSource
    keep: bool

    def config_on(self, folder: Path) -> Config:
        """The configuration with its data, of which uploads go into `folder`."""
        paths, held_out = self.source.paths(folder), self.source.held_out_path
        data = {"data": paths[0] if self.kind == "probe" else paths}
        return replace(self.config, **data, **{"validation" if self.kind == "pretrain" else "test": held_out})

    def count(self) -> int:
        """The number of images to train on. Raises DinovizError."""
        if self.kind == "probe":
            return self.source.count()
        pictures = self.source.find()
        return len(demo("train") if pictures is None else pictures)

    def config_to_time(self) -> Config:
        """The configuration for an estimate, with a probe's data if that is a folder: its names decide the split."""
        if self.kind == "probe" and self.source.source.where == FOLDER:
            placed = self.config_on(Path())
            return placed if Path(placed.data).is_dir() else replace(placed, data="")
        return self.config


class RequestReader:
    """Reads a `RunRequest` from the values of the page, by the forms of all kinds of runs."""

    def __init__(self, bench: Workbench, forms: dict[str, Form]):
        self.bench, self.forms = bench, forms

    def read(self, *values, checked: bool = True) -> RunRequest:
        """Read the values of `Values.of`. Raises DinovizError; checked: also for the pictures and the name."""
        given = Values.of(*values)
        kind = KIND[given.task]
        source = source_of(self.bench, given.where, given.files, given.path, given.held_out)
        settings = self._settings(given, source)
        if given.task == PROBE:
            source = DepthSource(source, settings["teacher"])
        preset = (given.preset or "") if kind == "pretrain" else ""
        config = KINDS[kind].from_dict(settings)
        request = RunRequest(kind, config, preset, (given.name or "").strip(), source, bool(given.keep))
        limits = self.bench.settings.limits if self.bench.settings.public else None
        if limits:
            limits.check(kind, config, 0)
        if not checked:
            return request
        pictures = source.find()
        if limits:
            limits.check(kind, config, request.count())
        if pictures is not None:
            check_broken(self.bench, pictures, *((MAX_BROKEN, "") if given.task == PROBE else (config.max_broken,)))
        return replace(request, name=check_name(request.name or _time_name(request)))

    def _settings(self, given: Values, source: Source) -> dict:
        """The settings of the chosen kind, with those that other parts of the page decide."""
        kind = KIND[given.task]
        settings = self.forms[kind].read(self._form_values(kind, given.settings))
        if given.where == DEMO and kind == "pretrain":
            settings["validation_share"] = 0.0  # the demo has held-out images of its own
        if given.task != SCRATCH:
            self.bench.check_model(given.model)
            settings["start" if given.task == ADAPT else "model"] = given.model
        if given.task == PROBE:
            settings["teacher"] = teacher_of(self.bench, source, given.teacher)
        return settings

    def _form_values(self, kind: str, values: tuple) -> list:
        start = 0
        for each, form in self.forms.items():
            if each == kind:
                return list(values[start : start + len(form.parts)])
            start += len(form.parts)
        raise KeyError(kind)


def source_of(bench: Workbench, where: str, files: list[str] | None, path: str | None, held_out: str | None) -> Source:
    """The data that the page names; an empty text may be None."""
    roots = bench.settings.data_roots
    return Source(where, tuple(files or ()), (path or "").strip(), (held_out or "").strip(), roots)


def _time_name(request: RunRequest) -> str:
    return f"{request.preset or request.kind}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(1)}"
