"""Files for the tests of training data: pictures, depth maps and zip files, and sources made of them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from dinoviz.ui.train.image_data import FOLDER, UPLOAD, Source


def png(shade: int = 128, size: tuple[int, int] = (24, 16)) -> bytes:
    """A grey picture."""
    content = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(content, "PNG")
    return content.getvalue()


def depth_png(millimetres: int, size: tuple[int, int] = (24, 16)) -> bytes:
    """A depth map as 16-bit PNG."""
    content = io.BytesIO()
    Image.fromarray(np.full(size[::-1], millimetres, np.uint16)).save(content, "PNG")
    return content.getvalue()


def depth_npy(metres: float, size: tuple[int, int] = (24, 16)) -> bytes:
    """A depth map as NumPy array."""
    np.save(content := io.BytesIO(), np.full(size[::-1], metres, np.float32))
    return content.getvalue()


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    """A zip file of contents by name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def patched(path: Path, changes: dict[int, bytes]) -> Path:
    """A file with other bytes at some places."""
    content = bytearray(path.read_bytes())
    for at, new in changes.items():
        content[at : at + len(new)] = new
    path.write_bytes(content)
    return path


def damaged(path: Path, name: str, offset: int) -> Path:
    """A zip file with a wrong byte in the content of one of its files."""
    at = path.read_bytes().index(name.encode()) + offset
    return patched(path, {at: bytes([path.read_bytes()[at] ^ 255])})


def uploads(*files: Path, roots: tuple[Path, ...] = ()) -> Source:
    """Uploaded files, on a page that may read below `roots`."""
    return Source(UPLOAD, tuple(map(str, files)), roots=roots)


def on_machine(path: str | Path, *roots: Path, held_out: str = "") -> Source:
    """A path that is typed on a page that may read below `roots`."""
    return Source(FOLDER, path=str(path), held_out=held_out, roots=roots)
