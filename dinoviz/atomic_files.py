"""Atomic writes: a file is complete or absent, even after a kill -9; and write errors for the user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from dinoviz.errors import DinovizError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` in one step at the end, unless an exception is raised."""
    part = path.with_name(f"{path.name}.part")
    yield part
    part.replace(path)


@contextmanager
def writing(what: str | Path, error: type[DinovizError] = DinovizError) -> Iterator[None]:
    """Turn errors of the file system into an error of this type that names `what` was being written."""
    try:
        yield
    except (OSError, SafetensorError) as refused:
        raise error(f"{what} cannot be written: {why(refused)}.") from None


def why(error: OSError | SafetensorError) -> str:
    """The system's reason for a failed write; safetensors has its own error type for a full disk."""
    return getattr(error, "strerror", None) or re.sub(r"^.*?I/O error: | \(os error \d+\)", "", str(error))
