"""Files that are there whole or not at all, also after a kill -9; and what cannot be written, in one sentence."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from dinoviz.errors import DinovizError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room for anybody, for this user, in one file
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


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


def disk_error(error: OSError | SafetensorError) -> DinovizError | None:
    """What a full or closed disk refused, in one sentence; None for any other error.

    For those who catch what nobody expected: the sentence names no path, since strangers may read it.
    """
    number = getattr(error, "errno", None) or _number(str(error))
    if number in FULL:
        return DinovizError("The disk is full, so that this cannot be written: free some space and try again.")
    if number in CLOSED:
        return DinovizError(
            f"A file cannot be written ({os.strerror(number)}): whoever runs dinoviz has to open the folder for it."
        )
    return None


def _number(text: str) -> int | None:
    """The system's number of an error whose class keeps none: safetensors says it, NumPy has too few bytes written."""
    if found := re.search(r"\(os error (\d+)\)", text):
        return int(found[1])
    return errno.ENOSPC if re.fullmatch(r"\d+ requested and \d+ written", text) else None
