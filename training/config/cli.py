"""Command-line options from the fields of a configuration, and the command line of a configuration."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import get_args, get_type_hints

from dinoviz.atomic_files import whole
from training.config.base import RENAMED, Config
from training.config.pretrain import PretrainConfig, pretrain_preset
from training.config.tasks import FinetuneConfig, ProbeConfig


def add_settings(parser: argparse.ArgumentParser, config: type[Config], positional: tuple[str, ...] = ()) -> None:
    """Add an option for each field, under the field's group. Options that are not given are absent from the result.

    positional: fields that become positional arguments.
    """
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings from a file; options override them")
    parser.add_argument("--save-config", type=Path, metavar="FILE", help="write the settings to a file and exit")
    hints = get_type_hints(config)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in dataclasses.fields(config):
        group = field.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        _add(groups[group], field, hints[field.name], field.name in positional)
        for old in (old for old, new in RENAMED.items() if new == field.name):
            _add(groups[group], field, hints[field.name], positional=False, old=old)


def _add(group, field: dataclasses.Field, hint, positional: bool, old: str = "") -> None:
    """old: a former name of the setting, which is accepted but not shown."""
    kind = next(k for k in get_args(hint) if k is not type(None)) if isinstance(hint, UnionType) else hint
    several = getattr(kind, "__origin__", None) is tuple
    single = get_args(kind)[0] if several else kind
    text = f"{field.metadata['help']}{_default(field.default)}".replace("%", "%%")
    if positional:
        several_or_one = {"nargs": "*"} if several else {"nargs": "?"}
        group.add_argument(
            field.name, metavar=field.name.upper(), default=argparse.SUPPRESS, help=text, **several_or_one
        )
        return
    option = f"--{(old or field.name).replace('_', '-')}"
    common = {"dest": field.name, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS if old else text}
    if kind is bool:
        group.add_argument(option, action=argparse.BooleanOptionalAction, **common)
    elif field.metadata["choices"]:
        group.add_argument(option, type=single, choices=field.metadata["choices"], **common)
    else:
        word = {int: "N", float: "X", str: "TEXT"}[single]
        if several and single is not str:  # a path may hold commas
            group.add_argument(option, type=_words(single), nargs="+", action=_Joined, metavar=word, **common)
        else:
            group.add_argument(option, type=single, metavar=word, **({"nargs": "+"} if several else {}), **common)


def _words(single: type):
    """A parser of lists with commas: "3,6,9" is the same as "3 6 9"."""

    def words(text: str) -> list:
        return [single(word) for word in text.split(",") if word.strip()]

    words.__name__ = single.__name__  # for argparse's messages
    return words


class _Joined(argparse.Action):
    def __call__(self, parser, options, values, option=None):
        setattr(options, self.dest, [each for word in values for each in word])


def _default(value) -> str:
    if value in ((), "", None):
        return ""
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f" ({shown})"


def settings_of(options: argparse.Namespace, config: type[Config], preset: dict | None = None) -> Config:
    """The configuration: options override --config, which overrides the preset. Raises ConfigError."""
    names = {field.name for field in dataclasses.fields(config)}
    given = {name: value for name, value in vars(options).items() if name in names}
    if not given.get("data", True):  # a positional argument that was not given
        del given["data"]
    values = config.read(options.config) if options.config else {}
    return config.from_dict({**(preset or {}), **values, **given})


def save(config: Config, path: Path) -> None:
    """Write the settings to a file for --config. Raises ConfigError."""
    from training.config.base import ConfigError

    try:
        with whole(path) as part:
            part.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from None


KINDS: dict[str, type[Config]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "probe": ProbeConfig}


def command_line(kind: str, config: Config, *, name: str = "", preset: str = "", data: Sequence[str] = ()) -> str:
    """`python -m training KIND DATA ...` quoted for a POSIX shell, without options that equal the preset or default.

    data: replaces the configuration's own data, which may be a path that only the app knows.
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
