"""Finds images in folders, zip files and lists, with their labels, without decoding them."""

from __future__ import annotations

import csv
import io
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dinoviz.images import FORMATS, SUFFIXES, open_image
from training.data import zips
from training.data.zips import DataError, Member, is_hidden

Where = str | Member | np.ndarray  # a path, a member of a zip file, or the pixels (H, W, 3) uint8 themselves


class Memory:
    """A budget that threads share: a thread that needs more than is left waits; one at a time may exceed it."""

    def __init__(self, most: int):
        self._most, self._free, self._changed = most, most, threading.Condition()

    @contextmanager
    def room(self, needed: int) -> Iterator[None]:
        """Hold `needed` of the budget in this context, at most all of it."""
        needed = min(needed, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= needed)
            self._free -= needed
        try:
            yield
        finally:
            with self._changed:
                self._free += needed
                self._changed.notify_all()


# Of a process, for any number of threads: one picture of the largest size, or five of a phone.
DECODED = Memory(64_000_000)  # pixels, at about 8 bytes each
FILES = Memory(zips.MAX_MEMBER_BYTES)  # bytes, of files read from zip files
MOST_LIST_BYTES = 500_000_000  # five million paths of a hundred characters
REDUCED_FROM = 16_000_000  # pixels; smaller pictures are decoded at full size


@dataclass(frozen=True, eq=False)
class Pictures:
    """N pictures by their locations; cheap to copy, to cut and to send to another process.

    names: of the pictures for messages: their paths below the source.
    labels: (N,) int64, indices into `classes`; None without classes.
    classes: names of the classes; () if there are none.
    where: the location of each picture.
    """

    names: tuple[str, ...]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    where: tuple[Where, ...]

    def __len__(self) -> int:
        return len(self.names)

    def open(self, i: int) -> Image.Image:
        """Picture i, upright, mode RGB. Raises dinoviz.images.ImageError if it cannot be read."""
        with self.opened(i) as picture:
            return picture

    @contextmanager
    def opened(self, i: int, side: int | None = None) -> Iterator[Image.Image]:
        """Picture i as `open` returns it, in a context; other threads wait if together they would fill the memory.

        side: least size of its sides that is needed, at which a large JPEG file is decoded; see `open_image`.
        """
        where, name = self.where[i], self.names[i]
        if isinstance(where, np.ndarray):
            yield open_image(where, name=name)
            return
        with FILES.room(zips.size(where) if isinstance(where, Member) else 0):
            source = zips.read(where, name) if isinstance(where, Member) else where
            pixels = header_pixels(source)
            with DECODED.room(pixels):
                yield open_image(source, name=name, side=side if pixels > REDUCED_FROM else None)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Pictures:
        """The pictures at these indices, in that order, with all classes, so that labels keep their meaning."""
        indices = np.asarray(indices, dtype=np.int64)
        return Pictures(
            tuple(self.names[i] for i in indices),
            None if self.labels is None else self.labels[indices],
            self.classes,
            tuple(self.where[i] for i in indices),
        )


def find(source: str | os.PathLike | Sequence[str | os.PathLike], *, classes: bool = True) -> Pictures:
    """The pictures of a source, or of several joined in the order given.

    source: each is a folder, a .zip file (read in place, never extracted), a .txt list (one path a line, relative to
        the list; # begins a comment), a .csv list (columns path and label, or path alone) or an image. The folders
        right below a folder are its classes if every image lies in one; a single folder that holds all of a zip file
        is skipped. Hidden files and __MACOSX are ignored. Folders and zip files are sorted by name, lists keep their
        order.
    classes: False ignores the classes.

    Several sources have labels only if each has; classes of the same name are merged. The images are not decoded.
    Raises DataError if there are no files, no images, or if a zip file is not safe to read.
    """
    sources = [Path(source)] if isinstance(source, str | os.PathLike) else [Path(each) for each in source]
    if not sources:
        raise DataError("No images were given: name a folder, a zip file or a list.")
    names: list[str] = []
    where: list[Where] = []
    labels: list[str | None] = []
    for path in sources:
        found = _find(path)
        names += [f"{path.name}/{name}" if len(sources) > 1 and path.is_dir() else name for name, _, _ in found]
        where += [where for _, where, _ in found]
        labels += [label for _, _, label in found]
    if not classes or None in labels:
        return Pictures(tuple(names), None, (), tuple(where))
    known = sorted(set(labels))
    position = {label: index for index, label in enumerate(known)}
    return Pictures(tuple(names), np.array([position[label] for label in labels]), tuple(known), tuple(where))


Found = list[tuple[str, Where, str | None]]  # name, where, class


def header_pixels(source: str | bytes) -> int:
    """Width times height by a picture's header; 0 for other files, which `open_image` will refuse."""
    if not isinstance(source, bytes) and not Path(source).is_file():  # opening a FIFO would block
        return 0
    Image.init()
    try:
        known = [name for name in FORMATS if name in Image.OPEN]
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=known) as image:
            return image.width * image.height
    except Exception:  # decoders raise nearly everything on damaged headers
        return 0


def _find(path: Path) -> Found:
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder.")
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return _in_zip(path)
    if suffix in (".txt", ".csv"):
        return _in_list(path)
    if suffix in SUFFIXES:
        return [(path.name, str(path), None)]
    raise DataError(f"{path.name} must be a folder of images, a zip file, a list (.txt, .csv) or an image.")


def _in_folder(folder: Path) -> Found:
    files = sorted(_below(folder))
    images = [file for file in files if Path(file).suffix.lower() in SUFFIXES]
    _check_any(folder, len(files), len(images))
    labels = _classes_of(images)
    return [(name, str(folder / name), label) for name, label in zip(images, labels, strict=True)]


def _below(folder: Path) -> Iterator[str]:
    """The files below a folder as relative POSIX paths; links to folders are followed, except in circles."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.")

    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        about = Path(parent).stat()
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        inside = Path(parent).relative_to(folder)
        yield from ((inside / name).as_posix() for name in files if not is_hidden(name))


def _classes_of(images: Sequence[str]) -> list[str | None]:
    tops = [name.partition("/") for name in images]
    return [top for top, _, _ in tops] if all(rest for _, _, rest in tops) else [None] * len(images)


def _check_any(path: Path, files: int, images: int) -> None:
    if not files:
        raise DataError(f"{path.name or path} is empty: there are no images in it.")
    if not images:
        count = "one file, which is not an image" if files == 1 else f"{files:,} files, none of them an image"
        raise DataError(f"{path.name or path} has {count}.")


def _in_zip(path: Path) -> Found:
    inside = zips.members(path)
    images = sorted(name for name in inside if Path(name).suffix.lower() in SUFFIXES)
    _check_any(path, len(inside), len(images))
    zips.check(path, [inside[name] for name in images])
    without = images
    while len({name.partition("/")[0] for name in without}) == 1 and all("/" in name for name in without):
        without = [name.partition("/")[2] for name in without]
    labels = _classes_of(without)
    where = [Member(str(path), inside[name].filename) for name in images]
    return [(f"{path.name}/{name}", *rest) for name, *rest in zip(images, where, labels, strict=True)]


def _in_list(path: Path) -> Found:
    try:
        if path.stat().st_size > MOST_LIST_BYTES:
            raise DataError(f"{path.name} is too large for a list: it has more than {MOST_LIST_BYTES / 1e6:g} MB.")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path.name} is not a list: it is not UTF-8 text.") from None
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}.") from None
    lines = _csv_lines(path, text) if path.suffix.lower() == ".csv" else _txt_lines(text)
    if not lines:
        raise DataError(f"{path.name} lists no images.")
    missing = [name for name, _ in lines if not _is_file(path.parent / name)]
    if missing:
        which = ", ".join(missing[:3]) + (f" and {len(missing) - 3:,} more" if len(missing) > 3 else "")
        raise DataError(f"{path.name}: {len(missing):,} of its {len(lines):,} files do not exist: {which}.")
    without = [name for name, label in lines if not label]
    if without and len(without) < len(lines):
        raise DataError(
            f"{path.name}: {len(without):,} of its {len(lines):,} lines have no label, the first is {without[0]}."
        )
    return [(name, str(path.parent / name), label) for name, label in lines]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, or a null byte
        return False


def _txt_lines(text: str) -> list[tuple[str, None]]:
    lines = (line.strip() for line in text.splitlines())
    return [(line, None) for line in lines if line and not line.startswith("#")]


def _csv_lines(path: Path, text: str) -> list[tuple[str, str | None]]:
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())]
    except csv.Error as error:
        raise DataError(f"{path.name} is not a list: {error}.") from None
    rows = [row for row in rows if any(row) and not row[0].startswith("#")]
    columns = [cell.lower() for cell in rows[0]] if rows else []
    at, label_at = 0, 1
    if "path" in columns:
        at, label_at = columns.index("path"), columns.index("label") if "label" in columns else -1
        rows = rows[1:]
    return [
        (row[at], (row[label_at] or None) if 0 <= label_at < len(row) else None)
        for row in rows
        if at < len(row) and row[at]
    ]
