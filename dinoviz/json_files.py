"""JSON files that anybody may have written: bounded in size, in depth and in numbers, or refused in one sentence."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from dinoviz.errors import DinovizError

MAX_BYTES = 4_000_000  # a config.json with the 21,841 classes of ImageNet-21k has 1.5 MB
MAX_DEPTH = 50  # objects and lists within each other; ours have 5, and json.dumps fails from about 1,000 on
MAX_DIGITS = 20  # of whole numbers, as many as 64 bits have; float() fails from 309 on


class _Refused(ValueError):
    """Why valid JSON is not accepted."""


def read_json(
    path: str | os.PathLike,
    error: type[DinovizError] = DinovizError,
    *,
    name: str | None = None,
    max_bytes: int = MAX_BYTES,
    finite: bool = True,
) -> dict[str, Any]:
    """The object in a JSON file; no more than `max_bytes` are ever read.

    error: what to raise. name: what to call the file in messages, by default as it is called in its folder.
    finite: refuse NaN and Infinity, which Python writes and reads though JSON has no such numbers.

    Raises `error` for a file that is not there or no regular file, and for what `parse_json` refuses.
    """
    path = Path(path)
    name = name or path.name
    try:
        if not path.is_file():  # a FIFO or a device would be read for ever
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
    """The object that a text holds. Arguments as of `read_json`.

    Raises `error` for a text that is longer than `max_bytes`, no JSON, no object, nested deeper than MAX_DEPTH, or
    holds a number that is not finite or has more than MAX_DIGITS digits, or characters that no file can hold.
    """
    if len(data) > max_bytes:
        raise error(f"{name} is longer than {max_bytes / 1e6:g} MB, the most that is read of such a file.")
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
        raise error(f"{name} holds a {type(found).__name__}; a JSON object with names and values is expected.")
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
    """Level by level, since what is nested too deep for `json` may be so for recursion here. Raises _Refused."""
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
                    raise _Refused("holds half of a surrogate pair, which is no character") from None
        if depth > MAX_DEPTH:
            raise _Refused(f"is nested deeper than {MAX_DEPTH} levels")
        level, depth = below, depth + 1
