"""What a depth probe learns from, where it is no folder yet: a zip file, a list or the demo is put into one.

Other runs read zip files in place. A probe reads each picture together with its depth, or with what a teacher writes of
it, by where they are on the disk.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dinoviz.atomic_files import writing
from dinoviz.images import SUFFIXES, ImageError
from training.data import zips
from training.data.demo import DEMO, demo_picture
from training.data.sources import DataError, Member, Pictures, find

DEPTH = (".png", ".npy")
LONGEST = 50  # characters of a file's name that are kept: its end, where a number may tell what belongs together


@dataclass(frozen=True)
class ZippedPairs:
    """An RGB-D folder inside a zip file. files: where each of its files goes -> which member it is."""

    archive: Path
    files: dict[str, zipfile.ZipInfo]

    def __len__(self) -> int:
        return sum(name.startswith("rgb/") for name in self.files)


def place(sources: Sequence[Path], folder: Path) -> Path:
    """Where a probe finds its data: the folder that was named, or else one below `folder`, for `unpack` to fill.

    sources: a folder, zip files, lists and images; none for the demo.
    """
    if len(sources) == 1 and sources[0].is_dir():
        return sources[0]
    if not sources:
        return folder / "demo"
    one = len(sources) == 1 and sources[0].suffix.lower() not in SUFFIXES
    return folder / (_plain(sources[0].stem) if one else "images")


def unpack(sources: Sequence[Path], folder: Path, *, taught: bool) -> None:
    """Put the pictures of sources that are no folder into a new one; with their depth, unless a teacher tells it.

    Raises DataError for what `pictures` and `zipped_pairs` refuse and a full disk, ImageError for a damaged zip file.
    """
    with writing(folder, DataError):
        if taught:
            _write_pictures(pictures(sources), folder)
        else:
            _write_pairs(zipped_pairs(sources[0]), folder)


def pictures(sources: Sequence[Path]) -> Pictures:
    """The pictures that a teacher is to tell the depth of; those of the demo are whole.

    Raises DataError for what there are no pictures in, and for those that have their depth.
    """
    if not sources:
        whole = tuple(np.asarray(demo_picture(file)) for file in DEMO)
        return Pictures(DEMO, None, (), whole)
    for source in sources:
        if has_depth(source):
            raise DataError(f"{source.name} has depth of its own: leave the teacher out, or the folder depth.")
    return find(sources, classes=False)


def has_depth(source: Path) -> bool:
    """Whether a folder or a zip file has the depth of its pictures beside them."""
    return (source / "depth").is_dir() or (_is_zip(source) and bool(_tops(source)))


def zipped_pairs(path: Path) -> ZippedPairs:
    """The pictures and their depth in a zip file, whose folders rgb and depth may lie in others.

    Raises DataError for a file without them, pictures that lack their depth, and what is not safe to unpack.
    """
    tops = _tops(path)
    if not tops:
        raise DataError(
            f"{path.name} has no folders rgb and depth beside each other, with pictures in one and their depth (.png, "
            ".npy) in the other."
        )
    if len(tops) > 1:
        raise DataError(f"{path.name} has {len(tops)} folders with rgb and depth in them; put all into one.")
    (found,) = tops.values()
    # An array wins over a PNG of the same name, as in a folder.
    depth = {Path(name).stem: info for name, info in sorted(found["depth"].items(), key=lambda each: _suffix(each[0]),
                                                             reverse=True)}  # fmt: skip
    lacking = sorted(name for name in found["rgb"] if Path(name).stem not in depth)
    if lacking:
        more = ", ..." if len(lacking) > 3 else ""
        raise DataError(
            f"{len(lacking)} of {len(found['rgb'])} pictures in {path.name} lack their depth: "
            f"{', '.join(lacking[:3])}{more}."
        )
    stems = sorted({Path(name).stem for name in found["rgb"]})
    called = dict(zip(stems, distinct(map(_plain, stems)), strict=True))
    files = {f"rgb/{called[Path(name).stem]}{_suffix(name)}": info for name, info in sorted(found["rgb"].items())}
    files |= {f"depth/{called[stem]}{_suffix(depth[stem].filename)}": depth[stem] for stem in stems}
    if "meta.json" in found["beside"]:
        files["meta.json"] = found["beside"]["meta.json"]
    zips.check(path, files.values())
    return ZippedPairs(path, files)


Top = dict[str, dict[str, zipfile.ZipInfo]]  # of "rgb", "depth" and "beside", files by name


def _tops(path: Path) -> dict[tuple[str, ...], Top]:
    """The folders inside a zip file that have both rgb and depth in them."""
    tops: dict[tuple[str, ...], Top] = {}

    def add(top: Sequence[str], kind: str, name: str, info: zipfile.ZipInfo) -> None:
        tops.setdefault(tuple(top), {"rgb": {}, "depth": {}, "beside": {}})[kind][name] = info

    for inside, info in zips.members(path).items():
        *folders, name = inside.split("/")
        if name == "meta.json":
            add(folders, "beside", name, info)
        elif folders and folders[-1].lower() in ("rgb", "depth"):
            kind = folders[-1].lower()
            if _suffix(name) in (SUFFIXES if kind == "rgb" else DEPTH):
                add(folders[:-1], kind, name, info)
    return {top: found for top, found in tops.items() if found["rgb"] and found["depth"]}


def _write_pairs(pairs: ZippedPairs, folder: Path) -> None:
    for name in ("rgb", "depth"):
        (folder / name).mkdir(parents=True)
    for name, info in pairs.files.items():
        (folder / name).write_bytes(zips.read(Member(str(pairs.archive), info.filename), info.filename))


def _write_pictures(found: Pictures, folder: Path) -> None:
    folder.mkdir(parents=True)
    called = distinct(_plain(Path(name).stem) for name in found.names)
    for i, (where, name) in enumerate(zip(found.where, called, strict=True)):
        file = folder / f"{name}{_suffix(found.names[i])}"
        if isinstance(where, np.ndarray):
            Image.fromarray(where).save(file)
        elif isinstance(where, Member):
            try:
                file.write_bytes(zips.read(where, found.names[i]))
            except ImageError:  # an empty file is no picture either: who opens it says so, and how many may be
                file.touch()
        else:
            try:
                os.link(os.path.realpath(where), file)
            except OSError:
                shutil.copyfile(where, file)


def distinct(stems: Iterable[str]) -> list[str]:
    """A name for each that no other has: its own, or with a number before it, since that at its end tells groups."""
    names, taken = [], set()
    for stem in stems:
        name, again = stem, 1
        while name.casefold() in taken:  # some systems do not tell capitals apart
            again += 1
            name = f"{again}-{stem}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _plain(stem: str) -> str:
    """As every system takes it, with the same number at its end."""
    return re.sub(r"[^\w.-]+", "_", stem)[-LONGEST:].lstrip(".") or "picture"


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"
