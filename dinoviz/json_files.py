"""Read JSON from untrusted sources, with bounds on size, nesting depth and numbers."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from dinoviz.errors import DinovizError

MAX_BYTES = 4_000_000  # a config.json with the 21,841 classes of ImageNet-21k has 1.5 MB
MAX_DEPTH = 50  # nested objects and lists; ours have 5, and json.dumps fails from about 1,000 on
MAX_DIGITS = 20  # of integers, enough for 64 bits; float() fails from 309 on


class _Refused(ValueError):
    """The reason why valid JSON is not accepted."""


def read_json(
    path: str | os.PathLike,
    error: type[DinovizError] = DinovizError,
    *,
    name: str | None = None,
    max_bytes: int = MAX_BYTES,
    finite: bool = True,
) -> dict[str, Any]:
    """Read the object in a JSON file; at most `max_bytes` are read.

    Args:
        path: of the file.
        error: type to raise.
        name: of the file in messages, by default its name without the folder.
        max_bytes: the largest accepted file.
        finite: refuse NaN and Infinity, which Python writes and reads although JSON has no such numbers.

    Raises:
        DinovizError: as `error`, for a missing file, one that is no regular file, and JSON that `parse_json` refuses.
    """
    path = Path(path)
    name = name or path.name
    try:
        if not path.is_file():  # reading a FIFO or a device would never end
            raise error(f"{name} is {'not a file' if path.exists() else 'missing'}.")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as refused:
        raise error(f"{name} cannot be read: {refused.strerror or refused}.") from None
    return parse_json(data, name, error, max_bytes=max_bytes, finite=finite)


def parse_json(
    data: str | bytes,
    name: str,
    error: type[DinovizError] = DinovizError,
    *,
    max_bytes: int = MAX_BYTES,
    finite: bool = True,
) -> dict[str, Any]:
    """Parse a JSON object. Arguments as for `read_json`.

    Raises `error` for text longer than `max_bytes`, invalid JSON, anything but an object, nesting deeper than
    MAX_DEPTH, numbers that are not finite or have more than MAX_DIGITS digits, and unpaired surrogates.
    """
    if len(data) > max_bytes:
        raise error(f"{name} is longer than {max_bytes / 1e6:g} MB, the largest accepted size.")
    try:
        found = json.loads(
            data,
            parse_int=_integer,
            parse_float=_finite if finite else float,
            parse_constant=_finite if finite else float,
        )
        _check(found)
    except _Refused as refused:
        raise error(f"{name} {refused}.") from None
    except RecursionError:
        raise error(f"{name} is nested deeper than {MAX_DEPTH} levels.") from None
    except ValueError:
        raise error(f"{name} is not valid JSON.") from None
    if not isinstance(found, dict):
        raise error(f"{name} holds a {type(found).__name__} instead of a JSON object.")
    return found


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > MAX_DIGITS:
        raise _Refused(f"holds a whole number of {len(text)} digits; at most {MAX_DIGITS} are accepted")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise _Refused(f"holds the number {text[:20]}, which is not finite")
    return value


def _check(found: Any) -> None:
    """Raise _Refused for deep nesting and unpaired surrogates; level by level, since recursion could overflow."""
    level, depth = [found], 0
    while level:
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise _Refused("holds an unpaired surrogate, which is not a character") from None
        if depth > MAX_DEPTH:
            raise _Refused(f"is nested deeper than {MAX_DEPTH} levels")
        level, depth = below, depth + 1
