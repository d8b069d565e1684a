"""An uploaded picture, and the key by which its file is known."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image


@dataclass(frozen=True, eq=False)
class Picture:
    """An upload: its own size, the copy that is shown, and a function that gives its pixels."""

    size: tuple[int, int]
    shown: Image.Image
    digest: str
    name: str
    decode: Callable[[], Image.Image]

    @property
    def image(self) -> Image.Image:
        """The picture at its own size, decoded again if it was too large for the cache. Raises ImageError."""
        return self.decode()

    @property
    def nbytes(self) -> int:
        """Bytes of memory while it is cached."""
        return pixel_bytes(self.shown)


def pixel_bytes(image: Image.Image) -> int:
    """Bytes of a decoded RGB picture: Pillow uses four a pixel."""
    return 4 * image.width * image.height


def file_key(path: str) -> Hashable:
    """The path and a hash of the content, which is read once for each time that the file was written.

    Only the path where it is no regular file: a device or a pipe may have no end.
    """
    try:
        status = Path(path).stat()
        return (path, _content(path, status.st_mtime_ns, status.st_size)) if stat.S_ISREG(status.st_mode) else path
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return path


@lru_cache(maxsize=4096)
def _content(path: str, mtime_ns: int, size: int) -> str:
    # Gradio stores uploads by their content, so that a second upload of a file writes it again: a new time alone must
    # not make it another picture.
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
