"""The base of all configurations: dataclass fields with help, bounds and choices, and their validation."""

from __future__ import annotations

import dataclasses
import math
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from dinoviz.errors import DinovizError
from dinoviz.json_files import read_json

# Bound of numbers without one of their own, so that sizes in bytes and the like stay finite.
LARGEST = 1e10
LONGEST = 60  # characters of a value in a message
# Settings that were renamed: files and commands written before keep working. Old name -> new name.
RENAMED = {"way": "method"}


class ConfigError(DinovizError):
    """An invalid setting; the message has its name, the value given and what is accepted."""


def setting(
    default: Any,
    help: str,
    *,
    group: str,
    low: float | None = None,
    high: float | None = None,
    choices: tuple | None = None,
    knob: bool = False,
) -> Any:
    """A dataclass field with help text and validation.

    low, high: inclusive bounds of the value, or of each value of a tuple. group: the heading it is shown under.
    knob: whether the app shows it outside "All other settings"; the other settings are folded away.
    """
    metadata = {"help": help, "group": group, "low": low, "high": high, "choices": choices, "knob": knob}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Base class of the configurations of all kinds of runs."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _cast(field, hints[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            _check(field, value)
        self.check()

    def check(self) -> None:
        """Raise ConfigError if settings contradict each other."""

    def check_new(self) -> None:
        """Raise ConfigError for settings that a new run should not have; runs of earlier versions may be resumed."""

    def to_dict(self) -> dict:
        """Values that JSON can hold; the inverse of `from_dict`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> Self:
        """A configuration of these values; renamed settings may have their old names (`RENAMED`).

        Raises ConfigError for unknown names and invalid values.
        """
        values = cls.renamed(values)
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(
                f"There is no setting {shortened(unknown[0])}. The settings are {', '.join(sorted(known))}."
            )
        return cls(**values)

    @classmethod
    def renamed(cls, values: dict) -> dict:
        """The values with old names of settings replaced by the new ones; a new name wins over its old one."""
        fields = {field.name for field in dataclasses.fields(cls)}
        old = {name: new for name, new in RENAMED.items() if name not in fields and new in fields}
        found = {old[name]: value for name, value in values.items() if name in old}
        return found | {name: value for name, value in values.items() if name not in old}

    @classmethod
    def read(cls, path: str | Path) -> dict:
        """The values in a JSON file of --save-config, or in a run's config.json. Raises ConfigError."""
        values = read_json(
            path, ConfigError, name=f"The configuration {path}", finite=False
        )  # the validation names the setting
        values.pop("kind", None)
        cls.from_dict(values)
        return cls.renamed(values)


def shortened(value: Any) -> str:
    """The repr of a value for a message, cut to a bounded length."""
    words = repr(value)[: LONGEST + 1] if not isinstance(value, dict | list | tuple) or len(value) < LONGEST else ""
    words = words or f"a {type(value).__name__} of {len(value)}"
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} …"


def _cast(field: dataclasses.Field, hint: Any, value: Any) -> Any:
    """The value in the type of the hint, which JSON and the command line may not have. Raises ConfigError."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    for kind in kinds:
        with suppress(TypeError):
            return _as(kind, value)
    wanted = " or ".join(_name(kind) for kind in kinds)
    raise ConfigError(f"{field.name} must be of type {wanted}, not {shortened(value)}.")


def _as(kind: Any, value: Any) -> Any:
    """The value, or each of a list, converted to a type without loss. Raises TypeError."""
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_as(get_args(kind)[0], one) for one in value)
    kind = get_origin(kind) or kind
    if isinstance(value, bool) == (kind is bool):  # to Python, True is a number
        if kind is float and isinstance(value, int):
            large = abs(value) > sys.float_info.max  # which JSON can hold
            return float(value) if not large else math.inf if value > 0 else -math.inf
        if kind is int and isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, kind):
            return value
    raise TypeError


def _name(kind: Any) -> str:
    return f"list of {_name(get_args(kind)[0])}" if get_origin(kind) is tuple else getattr(kind, "__name__", str(kind))


def _check(field: dataclasses.Field, value: Any) -> None:
    low, high, choices = (field.metadata.get(key) for key in ("low", "high", "choices"))
    if choices is not None and value not in choices:
        raise ConfigError(f"{field.name} must be one of {', '.join(map(str, choices))}, not {shortened(value)}.")
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, int | float) or isinstance(number, bool):
            continue
        number = _as(float, number)
        if not math.isfinite(number) or (low is not None and number < low) or (high is not None and number > high):
            bounds = " and ".join(
                f"{word} {bound:g}" for word, bound in (("at least", low), ("at most", high)) if bound is not None
            )
            raise ConfigError(f"{field.name} must be {bounds or 'a finite number'}, not {number:g}.")
        if abs(number) > LARGEST:
            raise ConfigError(f"{field.name} must be at most {LARGEST:g}, not {number:g}.")
