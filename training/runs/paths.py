"""Paths in a run's settings, as they stay right in another working folder."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path


def absolute(config):
    """Paths as they will still be right when the run is resumed from another folder."""
    from dinoviz.models import KNOWN

    names = [f.name for f in dataclasses.fields(config) if f.name in ("data", "validation", "test", "probe_images")]
    values = {}
    for name in names:
        value = getattr(config, name)
        if isinstance(value, tuple):
            values[name] = tuple(str(Path(each).absolute()) for each in value)
        elif isinstance(value, str) and value:
            values[name] = str(Path(value).absolute())
    for name in ("start", "model"):  # a folder, or a name that there is no folder of
        value = getattr(config, name, "")
        if value and value not in KNOWN and Path(value).exists():
            values[name] = str(Path(value).absolute())
    if getattr(config, "teacher", ""):
        values["teacher"] = _teacher(config.teacher)
    return dataclasses.replace(config, **values)


def _teacher(name: str) -> str:
    """As `distil.open_teacher` finds it: a published head by its name, then a run by its name, then what is there."""
    from dinoviz.depth.dpt import PUBLISHED
    from training.runs.run import Run, RunError

    if name not in PUBLISHED:
        with suppress(RunError):
            return str(Run.open(name).folder.absolute())
        with suppress(OSError, ValueError, RuntimeError):  # a name that no file system takes, the home of nobody
            path = Path(name).expanduser()
            return str(path.absolute()) if path.exists() else name
    return name
