"""Reads untrusted zip files in place, within bounds on sizes, numbers and growth."""

from __future__ import annotations

import copy
import functools
import io
import os
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dinoviz.errors import DinovizError
from dinoviz.images import ImageError

# An image that is larger than this, or large and compressed more than this, is a decompression bomb.
MAX_MEMBER_BYTES = 200_000_000
MAX_RATIO, MAX_RATIO_FROM_BYTES = 200, 10_000_000
# So is a zip file that grows more than this in all, to more than this.
MAX_GROWTH, GROWTH_FROM_BYTES = 20, 1_000_000_000
MAX_MEMBERS = 1_000_000
MAX_DIRECTORY_BYTES = 200 * MAX_MEMBERS  # of the central directory, with a path for each file
ENTRY = b"PK\x01\x02"  # signature of a file's entry in the central directory
LOCAL_HEADER_BYTES = 30  # without the name
# bzip2 and LZMA decompress all that they read at once, up to 80 MB of so much; zipfile reads no less.
CHUNK = 4096


class DataError(DinovizError):
    """Images that cannot be trained on; `broken` lists (name, reason) of every unreadable picture."""

    def __init__(self, message: str, broken: Sequence[tuple[str, str]] = ()):
        super().__init__(message)
        self.broken = list(broken)


class Member(NamedTuple):
    """A file inside a zip file."""

    archive: str
    name: str


class _File(io.FileIO):
    """A zip file on the disk, with bounds on its central directory, which zipfile reads in one piece."""

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise DataError(
                f"{Path(self.name).name} has a directory of {size / 1e6:,.0f} MB; at most "
                f"{MAX_DIRECTORY_BYTES / 1e6:g} MB are read from a zip file."
            )
        content = super().read(size)
        if (count := content.count(ENTRY)) > MAX_MEMBERS:
            raise DataError(
                f"{Path(self.name).name} has {count:,} files; at most {MAX_MEMBERS:,} are read from a zip file."
            )
        return content


def members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The files in a zip file by their POSIX paths, without hidden ones.

    Raises DataError for other files, for too many files, for files that overlap, and for paths that lead out of the
    folder that the zip file would be extracted to.
    """
    try:
        with _File(path) as file, zipfile.ZipFile(file) as archive:
            found = [info for info in archive.infolist() if not info.is_dir()]
            end = archive.start_dir
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path.name} cannot be opened: {error.strerror or error}.") from None
    except Exception:  # zipfile raises many things on damaged directories
        raise DataError(f"{path.name} is damaged or not a zip file.") from None
    _check_apart(path, found, end)
    inside = {}
    for info in found:
        steps = info.filename.replace("\\", "/")  # some programs write backslashes
        # A leading / is removed, as unzip does.
        if ".." in steps.split("/") or steps[1:3] == ":/":
            raise DataError(f"{path.name} contains a path outside of itself, {info.filename[:80]!r}; it is not read.")
        parts = [part for part in steps.split("/") if part not in ("", ".")]
        if parts and not any(map(is_hidden, parts)):
            inside["/".join(parts)] = info
    return inside


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is ignored."""
    return name.startswith(".") or name == "__MACOSX"


def _check_apart(path: Path, found: Collection[zipfile.ZipInfo], end: int) -> None:
    """Raise DataError if two files share bytes, by which a small zip file can hold petabytes (Fifield 2019)."""
    free = 0
    for info in sorted(found, key=lambda info: info.header_offset):
        if info.header_offset < free:
            raise DataError(f"{path.name} has overlapping files, as zip bombs do; it is not read.")
        # The name in the local header may have another encoding, but at least as many bytes as characters.
        free = info.header_offset + LOCAL_HEADER_BYTES + len(info.orig_filename) + info.compress_size
    if free > end:
        raise DataError(f"{path.name} is damaged: a file in it ends beyond the end of all files.")


def check(path: Path, chosen: Collection[zipfile.ZipInfo]) -> None:
    """Raise DataError if one of the chosen files is encrypted or a bomb, or if all of them together are a bomb."""
    for info in chosen:
        _check_member(path, info)
    size, packed = (sum(getattr(info, key) for info in chosen) for key in ("file_size", "compress_size"))
    if size > max(GROWTH_FROM_BYTES, MAX_GROWTH * packed):
        raise DataError(
            f"{path.name} would grow {size / max(1, packed):,.0f} times to {size / 1e9:,.1f} GB, far more than "
            "pictures; it is not read."
        )


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    if info.flag_bits & 1:
        raise DataError(f"{path.name} is encrypted: create it without a password.")
    ratio = info.file_size / max(1, info.compress_size)
    if info.file_size > MAX_MEMBER_BYTES:
        raise DataError(
            f"{path.name}: {_short(info)} has {info.file_size / 1e6:,.0f} MB; images of at most "
            f"{MAX_MEMBER_BYTES / 1e6:g} MB are read from a zip file."
        )
    if ratio > MAX_RATIO and info.file_size > MAX_RATIO_FROM_BYTES:
        raise DataError(
            f"{path.name}: {_short(info)} would grow {ratio:,.0f} times to {info.file_size / 1e6:,.0f} MB, far more "
            "than an image; the zip file is not read."
        )


def _short(info: zipfile.ZipInfo) -> str:
    name = PurePosixPath(info.filename)
    return str(name) if len(str(name)) <= 80 else f"…{str(name)[-80:]}"


@functools.lru_cache(maxsize=8)
def _archive(path: str, changed: int, process: int) -> zipfile.ZipFile:
    # ZipFile locks between threads; forked processes would share the position in the file.
    return zipfile.ZipFile(_File(path))


def read(member: Member, name: str) -> bytes:
    """The bytes of a file in a zip file, which may have been replaced since `check`.

    name: for messages. Raises ImageError for a file that `check` refuses, and for more bytes than the directory states.
    """
    try:
        archive = _opened(member)
        info = archive.getinfo(member.name)
        _check_member(Path(member.archive), info)
        content = _content(archive, info)
    except DataError as error:
        raise ImageError(str(error)) from None
    except OSError as error:
        raise ImageError(f"{name}: the zip file cannot be read ({error.strerror or error}).") from None
    except KeyError:
        raise ImageError(f"{name}: it is no longer in the zip file.") from None
    except MemoryError:
        raise ImageError(f"{name}: not enough memory to read it from the zip file.") from None
    except NotImplementedError:
        raise ImageError(
            f"{name}: its compression method is not supported: create the zip file with another."
        ) from None
    except Exception:  # a wrong checksum, a broken stream
        raise ImageError(f"{name}: this part of the zip file is damaged.") from None
    if len(content) > info.file_size:
        raise ImageError(f"{name}: it is larger than the {info.file_size:,} bytes that the zip file states.")
    return content


def size(member: Member) -> int:
    """Bytes of a file in a zip file by its directory; 0 if it cannot be read, which `read` reports."""
    try:
        return _opened(member).getinfo(member.name).file_size
    except Exception:  # zipfile raises many things on damaged directories
        return 0


def _opened(member: Member) -> zipfile.ZipFile:
    return _archive(member.archive, Path(member.archive).stat().st_mtime_ns, os.getpid())


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The content of a member; if it is larger than stated, somewhat more than the stated size."""
    promised = copy.copy(info)
    promised.file_size += CHUNK + 1  # else zipfile would silently cut off what is too much
    content = bytearray()
    with archive.open(promised) as stream:
        while len(content) <= info.file_size and (chunk := stream.read(CHUNK)):
            content += chunk
    return bytes(content)
