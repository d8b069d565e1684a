"""Absolute paths in a run's settings."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path


def absolute(config):
    """The configuration with absolute paths, so that the run can be resumed from another working folder."""
    from dinoviz.models import KNOWN

    names = [f.name for f in dataclasses.fields(config) if f.name in ("data", "validation", "test", "probe_images")]
    values = {}
    for name in names:
        value = getattr(config, name)
        if isinstance(value, tuple):
            values[name] = tuple(str(Path(each).absolute()) for each in value)
        elif isinstance(value, str) and value:
            values[name] = str(Path(value).absolute())
    for name in ("start", "model"):  # a folder, or else a name
        value = getattr(config, name, "")
        if value and value not in KNOWN and Path(value).exists():
            values[name] = str(Path(value).absolute())
    if getattr(config, "teacher", ""):
        values["teacher"] = _teacher(config.teacher)
    return dataclasses.replace(config, **values)


def _teacher(name: str) -> str:
    """The teacher as `pseudo_labels.open_teacher` finds it: a published head, then a run by its name, then a path."""
    from dinoviz.depth.dpt import PUBLISHED
    from training.runs.run import Run, RunError

    if name not in PUBLISHED:
        with suppress(RunError):
            return str(Run.open(name).folder.absolute())
        with suppress(OSError, ValueError, RuntimeError):  # an invalid path, or the home of an unknown user
            path = Path(name).expanduser()
            return str(path.absolute()) if path.exists() else name
    return name
