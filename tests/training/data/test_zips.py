"""Zip files that were made to fill the memory or the disk, read within bounds."""

import io
import os
import struct
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoviz.images import ImageError
from tests.training.tiny_runs import refused
from training.data import sources as pictures
from training.data import zips
from training.data.dataset import Decoded
from training.data.sources import DataError, Memory, find

refusal = partial(refused, DataError)
SIZES = struct.Struct("<II")  # packed and unpacked, as both headers of a member have them


@pytest.fixture(scope="module")
def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(stream, "PNG")
    return stream.getvalue()


def zipped(path: Path, files: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def lying(path: Path, size: int) -> Path:
    """The same zip file, but its directory states `size` bytes for its only member."""
    with zipfile.ZipFile(path) as archive:
        (info,) = archive.infolist()
    sizes = SIZES.pack(info.compress_size, info.file_size), SIZES.pack(info.compress_size, size)
    path.write_bytes(path.read_bytes().replace(*sizes))
    return path


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_file_larger_than_stated_is_broken(tmp_path, png, packing):
    honest = zipped(tmp_path / "a.zip", {"a.png": png}, packing)
    assert find(honest).open(0).size == (40, 30)
    # That many bytes are a picture still, for Pillow does not ask for the last ones.
    with pytest.raises(ImageError, match=f"{len(png) - 4} bytes" if packing else "damaged|larger"):
        find(lying(zipped(tmp_path / "b.zip", {"a.png": png}, packing), len(png) - 4)).open(0)


def test_a_file_larger_than_stated_is_not_decompressed(tmp_path):
    path = lying(zipped(tmp_path / "a.zip", {"a.png": bytes(100_000_000)}), 1000)
    (where,) = find(path).where
    tracemalloc.start()
    with pytest.raises(ImageError):
        zips.read(where, "a.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_files_that_lie_over_each_other_are_refused(tmp_path, png):
    """One packed file under many names: 10 MB become petabytes without any file that is suspicious by itself."""
    path = zipped(tmp_path / "a.zip", {"a.png": png})
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    entry, end = content[start:-22], content[-22:]
    table = b"".join(entry.replace(b"a.png", f"{i}.png".encode()) for i in range(9))
    path.write_bytes(content[:start] + table + end[:8] + struct.pack("<HHI", 9, 9, len(table)) + end[16:])
    assert "overlap" in refusal(find, path)


def test_refuses_unknown_compression(tmp_path, png):
    path = zipped(tmp_path / "a.zip", {"a.png": png})
    path.write_bytes(path.read_bytes().replace(b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x63\0"))
    with pytest.raises(ImageError, match="compression"):
        find(path).open(0)


def test_pictures_that_grow_too_much_in_all_are_refused(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", {f"{i}.png": bytes(100_000) for i in range(9)})
    assert len(find(path)) == 9
    monkeypatch.setattr(zips, "GROWTH_FROM_BYTES", 500_000)
    assert "a.zip" in refusal(find, path)


def test_a_table_that_fills_the_memory_is_not_read(tmp_path, png, monkeypatch):
    path = zipped(tmp_path / "a.zip", {f"{i}.png": png for i in range(9)})
    monkeypatch.setattr(zips, "MAX_DIRECTORY_BYTES", 400)
    assert "MB" in refusal(find, path)


def test_threads_wait_for_memory():
    memory, used, most = Memory(6), [], []

    def work(needed: int) -> None:
        with memory.room(needed):
            used.append(min(needed, 6))
            most.append(sum(used))
            np.ones((300, 300)) @ np.ones((300, 300))
            used.remove(min(needed, 6))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [3, 2, 100, 1, 6, 0, 3, 5] * 10))
    assert max(most) <= 6
    assert len(most) == 80


def test_only_regular_files_are_opened(tmp_path, png):
    (tmp_path / "a.png").write_bytes(png)
    os.mkfifo(tmp_path / "b.png")
    assert [name for name, _ in Decoded(find(tmp_path), 16).broken] == ["b.png"]


def test_a_large_jpeg_is_decoded_at_the_size_that_is_needed(tmp_path, astronaut, monkeypatch):
    astronaut.resize((1600, 1200)).save(tmp_path / "a.jpg", quality=95)
    found = find(tmp_path)
    whole = Decoded(found, 64)
    monkeypatch.setattr(pictures, "REDUCED_FROM", 1_000_000)
    with found.opened(0, 2 * 64) as picture:
        assert picture.size == (200, 150)
    reduced = Decoded(found, 64)
    assert reduced.aspects.tolist() == whole.aspects.tolist()
    # Both average; by different filters, which shows at edges.
    assert (reduced.images.int() - whole.images.int()).abs().float().mean() < 2
