"""Zip files: bombs of every make, names that climb out, sizes that lie, and directories that are damaged."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping

from tests.hostile.generate import Corpus, cuts, picture, spoilt
from tests.hostile.kinds.images import encoded, png, zeros


def zipped(files: Mapping[str | zipfile.ZipInfo, bytes], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file of these."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packing) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def classes(content: bytes, each: int = 3) -> dict[str, bytes]:
    """The same picture as several of two classes."""
    return {f"{label}/{number}.png": content for label in ("cat", "dog") for number in range(each)}


def lying(name: str, content: bytes, size: int, packed: int | None = None) -> bytes:
    """A zip file of one member whose headers tell another size, and another packed size."""
    made = zipped({name: content})
    real = zipfile.ZipFile(io.BytesIO(made)).getinfo(name)
    packed = real.compress_size if packed is None else packed
    old, new = struct.pack("<II", real.compress_size, real.file_size), struct.pack("<II", packed, size)
    return made.replace(old, new)


def write(corpus: Corpus) -> None:
    picture_file = encoded(picture(48, 36), "png")
    good = zipped(classes(picture_file))
    corpus.add("archive", "good.zip", good, "right")
    for name, part in cuts(good, (0.1, 0.5, 0.95)).items():
        corpus.add("archive", f"{name}.zip", part, "sentence")
    for number in range(4):
        corpus.add("archive", f"spoilt{number}.zip", spoilt(good, corpus.random, 20))
    _no_zips(corpus, picture_file)
    _bombs(corpus, picture_file)
    _names(corpus, picture_file)
    _members(corpus, picture_file, good)
    _folders(corpus, picture_file)


def _no_zips(corpus: Corpus, picture_file: bytes) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    for name, content in {
        "empty": b"",
        "text": b"PK no zip",
        "nothing": zipped({}),
        "tar": tar.getvalue(),
        "picture": picture_file,
        "directory-alone": b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 60000, 60000, 2**32 - 1, 0, 0),
        "no-pictures": zipped({"readme.txt": b"hello", "run.exe": b"MZ"}),
        "only-system": zipped({"__MACOSX/._a.png": b"x"}),
        "only-folders": zipped({"cat.png/": b""}),
        "millions": b"PK\x06\x06"
        + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 2**40, 2**40, 2**40, 0)
        + b"PK\x06\x07"
        + struct.pack("<IQI", 0, 0, 1)
        + b"PK\x05\x06"
        + b"\xff" * 16
        + b"\0\0",
    }.items():
        corpus.add("archive", f"none-{name}.zip", content, "sentence")


def _bombs(corpus: Corpus, picture_file: bytes) -> None:
    # 2 GB, so that who inflates it whole is noticed.
    corpus.add("archive", "bomb-lying.zip", rewritten(packed_zeros("cat/a.png", 2_000_000_000), 5_000))
    inflating = packed_zeros("cat/a.png", 300_000_000)
    corpus.add("archive", "bomb-honest.zip", rewritten(inflating, 300_000_000))
    corpus.add("archive", "bomb-lying-two.zip", rewritten(inflating, 5_000, copies=2))
    corpus.add("archive", "bomb-lying-10mb.zip", rewritten(inflating, 9_900_000))
    corpus.add("archive", "bomb-overlapping.zip", rewritten(inflating, 9_900_000, copies=300))
    inner = zipped({f"{i}.png": picture_file for i in range(3)})
    for level in range(5):
        inner = zipped({f"level{level}-{i}.zip": inner for i in range(4)})
    corpus.add("archive", "bomb-nested.zip", inner, "sentence")
    corpus.add("archive", "bomb-many.zip", zipped({f"c{i % 7}/{i}.png": b"" for i in range(10_000)}))
    side = 31_622
    huge = png(side, side, zeros(side * (side // 8 + 2)), bits=1)
    corpus.add("archive", "bomb-picture.zip", zipped({**classes(picture_file), "cat/huge.png": huge}))
    large = png(7000, 7000, zeros(7000 * (3 * 7000 + 1)), colour=2)
    corpus.add("archive", "large-twelve.zip", zipped({f"{'ab'[i % 2]}/{i}.png": large for i in range(12)}), "right")
    corpus.add("archive", "lying-larger.zip", lying("a/1.png", picture_file, 150_000_000))
    corpus.add("archive", "lying-packed.zip", lying("a/1.png", picture_file, len(picture_file), 2**31))
    corpus.add("archive", "lying-none.zip", lying("a/1.png", picture_file, 0))


def packed_zeros(name: str, count: int) -> tuple[str, bytes]:
    return name, zeros(count)[2:-4]  # zlib's stream without what deflate does not have


def rewritten(packed: tuple[str, bytes], size: int, copies: int = 1) -> bytes:
    """A zip whose directory names one packed member so many times and says that it has `size` bytes."""
    name, data = packed
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(data), size, len(name), 0)
    start = b"PK\x03\x04" + fields + name.encode() + data
    directory = b""
    for copy in range(copies):
        other = f"{name[:-4]}{copy:04}.png" if copy else name
        entry = struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 8, 0, 33, 0, len(data), size, len(other), 0, 0, 0, 0, 0, 0)
        directory += b"PK\x01\x02" + entry + other.encode()
    return (
        start + directory + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, copies, copies, len(directory), len(start), 0)
    )


def _names(corpus: Corpus, picture_file: bytes) -> None:
    for name, inside in {
        "up": "../../evil.png",
        "up-deep": "cat/../../../../../../tmp/hostile-evil.png",
        "absolute": "/tmp/hostile-evil.png",
        "drive": "C:\\hostile-evil.png",
        "backslashes": "..\\..\\hostile-evil.png",
        "share": "\\\\host\\share\\evil.png",
        "newline": "cat/two\nlines.png",
        "html": "<img src=x onerror=alert(1)>/a.png",
        "long": "x" * 60_000 + ".png",
        "deep": "/".join("abcdefgh"[i % 8] for i in range(20_000)) + "/a.png",
        "emoji": "\U0001f408/\U0001f408.png",
        "bidi": "\u202egnp.png",
        "dash": "-rf.png",
        "device": "cat/NUL.png",
        "empty": "cat/ .png",
        "dots": "cat/....png",
    }.items():
        corpus.add("archive", f"name-{name}.zip", zipped({**classes(picture_file), inside: picture_file}))
    raw = zipped({**classes(picture_file), "cat/AAAA.png": picture_file})
    corpus.add("archive", "name-not-utf8.zip", raw.replace(b"AAAA", b"\xff\xfe\xe9\x81"))
    corpus.add("archive", "name-null.zip", raw.replace(b"AAAA", b"A\0/B"))
    twice = zipped({**classes(picture_file), "cat/0000.png": picture_file}).replace(b"cat/0000.png", b"cat/0.png.png")
    corpus.add("archive", "name-twice.zip", twice)
    corpus.add("archive", "name-capitals.zip", zipped({"A/a.png": picture_file, "a/A.PNG": picture_file}))


def _members(corpus: Corpus, picture_file: bytes, good: bytes) -> None:
    link = zipfile.ZipInfo("cat/link.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    corpus.add("archive", "link.zip", zipped({**classes(picture_file), link: b"/etc/passwd"}))
    encrypted = good.replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\x01\0")
    corpus.add(
        "archive", "encrypted.zip", encrypted.replace(b"PK\x03\x04\x14\0\0\0", b"PK\x03\x04\x14\0\x01\0"), "sentence"
    )
    corpus.add("archive", "packing-99.zip", good.replace(b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x63\0"), "sentence")
    for name, packing in (("bzip2", zipfile.ZIP_BZIP2), ("lzma", zipfile.ZIP_LZMA), ("stored", zipfile.ZIP_STORED)):
        corpus.add("archive", f"packing-{name}.zip", zipped(classes(picture_file), packing), "right")
    corpus.add("archive", "bomb-lzma.zip", zipped({"a/1.png": bytes(300_000_000)}, zipfile.ZIP_LZMA), "sentence")
    corpus.add("archive", "before.zip", b"MZ" + bytes(5000) + good, "right")
    corpus.add("archive", "comment.zip", good[:-2] + struct.pack("<H", 60_000) + b"<b>" * 20_000, "right")
    corpus.add("archive", "sum.zip", good.replace(picture_file[40:60], bytes(20)))
    broken = {f"cat/{i}.png": picture_file[: 40 * i] for i in range(6)}
    corpus.add("archive", "damaged-pictures.zip", zipped({**classes(picture_file, 30), **broken}))
    corpus.add("archive", "damaged-all.zip", zipped(broken), "sentence")
    corpus.add("archive", "one-class.zip", zipped({f"cat/{i}.png": picture_file for i in range(4)}))
    corpus.add("archive", "one-each.zip", zipped({"cat/1.png": picture_file, "dog/1.png": picture_file}))
    corpus.add("archive", "many-classes.zip", zipped({f"{i}/1.png": picture_file for i in range(200)}))
    corpus.add("archive", "mixed.zip", zipped({**classes(picture_file), "stray.png": picture_file}))


def _folders(corpus: Corpus, picture_file: bytes) -> None:
    """Folders of pictures to train on."""
    import os

    def folder(name: str, expected="either"):
        made = corpus.folder("pictures", name, expected)
        for inside, content in classes(picture_file).items():
            (made / inside).parent.mkdir(exist_ok=True)
            (made / inside).write_bytes(content)
        return made

    folder("folder-good", "right")
    corpus.folder("pictures", "folder-empty", "sentence")
    (folder("folder-circle") / "cat" / "up").symlink_to("..")
    os.mkfifo(folder("folder-fifo") / "cat" / "fifo.png")
    (folder("folder-zero") / "cat" / "zero.png").symlink_to("/dev/zero")
    (folder("folder-link-none") / "cat" / "none.png").symlink_to("nothing")
    (folder("folder-of-picture-name") / "cat" / "inner.png").mkdir()
    (folder("folder-not-utf8") / os.fsdecode(b"caf\xe9") / "x").mkdir(parents=True)
    (corpus.path("folder-not-utf8") / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xff.png")).write_bytes(picture_file)
    (folder("folder-newline") / "cat" / "two\nlines.png").write_bytes(picture_file[:300])
    (folder("folder-sparse") / "cat" / "sparse.png").touch()
    os.truncate(corpus.path("folder-sparse") / "cat" / "sparse.png", 2**33)
