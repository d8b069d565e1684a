"""The command that does what a configuration says: what the page shows, one can run without it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence

from training.config.base import Config
from training.config.pretrain import PretrainConfig, pretrain_preset
from training.config.tasks import FinetuneConfig, ProbeConfig

KINDS: dict[str, type[Config]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "probe": ProbeConfig}


def command_line(kind: str, config: Config, *, name: str = "", preset: str = "", data: Sequence[str] = ()) -> str:
    """`python -m training KIND DATA ...`, quoted for a POSIX shell; options that are as preset or default are left out.

    data: what to write in place of the configuration's own data, which may lie where only the page finds it.
    """
    usual = dataclasses.asdict(KINDS[kind](**pretrain_preset(preset) if preset else {}))
    given = list(data) or ([config.data] if isinstance(config.data, str) else list(config.data))
    words = ["python", "-m", "training", kind, *(filter(None, given) if any(given) else ["--demo"])]
    if preset:
        words += ["--preset", preset]
    for key, value in dataclasses.asdict(config).items():
        if key == "data" or value == usual[key]:
            continue
        option = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(_text, value if isinstance(value, tuple) else (value,))]
    if name:
        words += ["--name", name]
    return shlex.join(words)


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
