"""Reads the files of a run's folder, which may be from others, within bounds and validated by a table of rules."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dinoviz.errors import DinovizError
from dinoviz.json_files import read_json
from training.config.base import shortened

STATES = ("queued", "starting", "running", "stopped", "finished", "failed")
MESSAGE = 2000  # characters of a status's message
SMALL = 1_000_000  # bytes of config.json and status.json, which have some 5,000
MOST_STEPS = 10**12
# Of metrics.jsonl. A million steps with a record every ten have 40 MB; the rest of a larger file is not read.
MOST_METRICS = 64_000_000
MOST_RECORDS = 200_000
LONGEST_LINE = 65_536
MOST_KEYS, LONGEST_KEY = 64, 64
LARGEST = 1e300  # of a number in a record, so that plots can scale it
# The name of a checkpoint's or snapshot's folder; 12 digits are enough for any run.
STEP = re.compile(r"step-([0-9]{1,12})")


class RunError(DinovizError):
    """A run that cannot be created, opened or written; the message has its name and the reason."""


class Rule(NamedTuple):
    """A condition on a value: in words, and as a predicate."""

    words: str
    holds: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    """A whole number within inclusive bounds."""
    return Rule(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def number(low: float = -LARGEST, high: float = LARGEST) -> Rule:
    """A finite number within inclusive bounds."""
    return Rule(
        f"a number from {low:g} to {high:g}",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high,
    )


def text(most: int) -> Rule:
    """A string of at most `most` characters."""
    return Rule(f"a string of at most {most} characters", lambda value: isinstance(value, str) and len(value) <= most)


def one_of(choices: tuple[str, ...]) -> Rule:
    """One of several strings."""
    return Rule(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


STATUS = {
    "state": one_of(STATES), "step": whole(0, MOST_STEPS), "steps": whole(0, MOST_STEPS), "eta": number(0),
    "message": text(MESSAGE), "time": number(), "pid": whole(1, 2**31 - 1), "born": number(), "host": text(255),
    "spent": number(0),
}  # fmt: skip
CHECKPOINT = {
    "step": whole(0, MOST_STEPS),
    "state": Rule("an object", lambda value: isinstance(value, dict)),
    "files": Rule("an object", lambda value: isinstance(value, dict)),
}
CHECKPOINT_FILE = {"size": whole(0, 2**63), "sha256": Rule("a SHA-256", lambda value: isinstance(value, str))}


def checked(
    found: dict[str, Any], rules: dict[str, Rule], name: str, required: tuple[str, ...], error: type[DinovizError]
) -> dict[str, Any]:
    """The values that have rules; None counts as missing. Raises `error` for a value that breaks its rule.

    name: of the file, for the message.
    """
    values = {key: found[key] for key in rules if found.get(key) is not None}
    for key in required:
        if key not in values:
            raise error(f"{name} has no {key}.")
    for key, value in values.items():
        if not rules[key].holds(value):
            raise error(f"{name}: {key} must be {rules[key].words}, not {shortened(value)}.")
    return values


def read_status(folder: Path) -> dict[str, Any]:
    """The status.json of a run's folder. Raises RunError."""
    found = read_json(folder / "status.json", RunError, max_bytes=SMALL)
    return checked(found, STATUS, "status.json", ("state",), RunError)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a run's folder, with its kind; `training.runs.Run.problem` validates the rest.

    Raises RunError.
    """
    found = read_json(folder / "config.json", RunError, max_bytes=SMALL)
    checked(found, {"kind": text(40)}, "config.json", ("kind",), RunError)
    return found


def is_file(path: Path) -> bool:
    """Whether the path is a file; False if its folder may not be entered, where pathlib raises."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def opened(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError also for a folder, a FIFO, a device and a circular link."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"{path.name} is not a file")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def tail(path: Path, most: int) -> bytes:
    """The last `most` bytes of a file; b"" if it cannot be read."""
    with suppress(OSError, ValueError), opened(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read(most)
    return b""


def lines(file: BinaryIO, most: float = MOST_METRICS) -> Iterator[bytes]:
    """The lines of a file with their line ends, up to `most` bytes in all; lines longer than a record are cut."""
    while most > 0 and (line := file.readline(min(LONGEST_LINE, most))):
        most -= len(line)
        yield line


def record(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl: strings, finite numbers and None by key; None if it is not a record."""
    if len(line) > LONGEST_LINE:
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    keys = [key for key in islice(found, MOST_KEYS) if len(key) <= LONGEST_KEY and _is_text(key)]
    return {key: _figure(found[key]) for key in keys} or None


def _figure(value: Any) -> Any:
    """A string or finite number as it is; None for anything else, as for NaN when it was written."""
    if isinstance(value, str):
        return value if _is_text(value) else None
    return value if isinstance(value, int | float) and -LARGEST <= value <= LARGEST else None


def _is_text(value: str) -> bool:
    """Whether it can be encoded: JSON can hold half of a surrogate pair."""
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def anew(path: Path) -> BinaryIO:
    """Create a new file; an existing one is removed, because opening a FIFO would block."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def appending(path: Path) -> BinaryIO:
    """Open a regular file for appending, created if missing. Raises OSError for anything else."""
    if os.path.lexists(path) and not path.is_file():
        raise OSError(f"{path.name} is not a file")
    return path.open("ab+")
