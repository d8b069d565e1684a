"""Files that are there whole or not at all, also after a kill -9; and what cannot be written, in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from dinoviz.errors import DinovizError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` in one step at the end; it does not if something is raised meanwhile."""
    part = path.with_name(f"{path.name}.part")
    yield part
    part.replace(path)


@contextmanager
def writing(what: str | Path, error: type[DinovizError] = DinovizError) -> Iterator[None]:
    """Whatever the file system refuses below becomes an error of this type, one sentence that names what it was."""
    try:
        yield
    except (OSError, SafetensorError) as refused:
        raise error(f"{what} cannot be written: {why(refused)}.") from None


def why(error: OSError | SafetensorError) -> str:
    """Why a file cannot be written, in the system's words; safetensors has its own error for a full disk."""
    return getattr(error, "strerror", None) or re.sub(r"^.*?I/O error: | \(os error \d+\)", "", str(error))
