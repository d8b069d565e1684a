"""Writes the data of a depth probe into a folder if it is a zip file, a list or the demo.

Other runs read zip files in place. A probe needs each picture and its depth, given or predicted, as files on the disk.
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
LONGEST = 50  # characters of a file's name that are kept: its end, whose number defines groups


@dataclass(frozen=True)
class ZippedPairs:
    """An RGB-D folder inside a zip file. files: the path of each file in the new folder -> its member."""

    archive: Path
    files: dict[str, zipfile.ZipInfo]

    def __len__(self) -> int:
        return sum(name.startswith("rgb/") for name in self.files)


def place(sources: Sequence[Path], folder: Path) -> Path:
    """The folder of a probe's data: the one given, or a folder below `folder` for `unpack`.

    sources: a folder, zip files, lists and images; none for the demo.
    """
    if len(sources) == 1 and sources[0].is_dir():
        return sources[0]
    if not sources:
        return folder / "demo"
    one = len(sources) == 1 and sources[0].suffix.lower() not in SUFFIXES
    return folder / (_plain(sources[0].stem) if one else "images")


def unpack(sources: Sequence[Path], folder: Path, *, with_depth: bool) -> None:
    """Write the pictures of zip files, lists and images into a new folder.

    with_depth: whether there is depth to write; without it, a teacher predicts it.
    Raises DataError for data that `pictures` and `zipped_pairs` refuse and for a full disk, ImageError for a damaged
    zip file.
    """
    with writing(folder, DataError):
        if with_depth:
            _write_pairs(zipped_pairs(sources[0]), folder)
        else:
            _write_pictures(pictures(sources), folder)


def pictures(sources: Sequence[Path]) -> Pictures:
    """The pictures whose depth a teacher predicts; those of the demo are whole.

    Raises DataError for sources without pictures, and for pictures that have depth.
    """
    if not sources:
        whole = tuple(np.asarray(demo_picture(file)) for file in DEMO)
        return Pictures(DEMO, None, (), whole)
    for source in sources:
        if has_depth(source):
            raise DataError(f"{source.name} has depth: remove the teacher, or the folder depth.")
    return find(sources, classes=False)


def has_depth(source: Path) -> bool:
    """Whether a folder or a zip file has depth beside its pictures."""
    return (source / "depth").is_dir() or (_is_zip(source) and bool(_tops(source)))


def zipped_pairs(path: Path) -> ZippedPairs:
    """The pictures and their depth in a zip file, whose folders rgb and depth may be inside others.

    Raises DataError for a file without them, pictures without depth, and files that are not safe to unpack.
    """
    tops = _tops(path)
    if not tops:
        raise DataError(
            f"{path.name} needs two folders: rgb with pictures, and depth with the depth of each (.png, .npy)."
        )
    if len(tops) > 1:
        raise DataError(f"{path.name} has {len(tops)} folders with rgb and depth in them: merge them into one.")
    (found,) = tops.values()
    # An array takes precedence over a PNG of the same name, as in a folder.
    depth = {Path(name).stem: info for name, info in sorted(found["depth"].items(), key=lambda each: _suffix(each[0]),
                                                             reverse=True)}  # fmt: skip
    lacking = sorted(name for name in found["rgb"] if Path(name).stem not in depth)
    if lacking:
        more = ", ..." if len(lacking) > 3 else ""
        raise DataError(
            f"{len(lacking)} of {len(found['rgb'])} pictures in {path.name} have no depth: "
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
            except ImageError:  # an empty file is unreadable too, and is counted as broken when it is opened
                file.touch()
        else:
            try:
                os.link(os.path.realpath(where), file)
            except OSError:
                shutil.copyfile(where, file)


def distinct(stems: Iterable[str]) -> list[str]:
    """Unique names: a number is put before repeated ones, because a number at the end defines groups."""
    names, taken = [], set()
    for stem in stems:
        name, again = stem, 1
        while name.casefold() in taken:  # some file systems ignore case
            again += 1
            name = f"{again}-{stem}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _plain(stem: str) -> str:
    """A file name that is valid on every system, with the same number at its end."""
    return re.sub(r"[^\w.-]+", "_", stem)[-LONGEST:].lstrip(".") or "picture"


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"
