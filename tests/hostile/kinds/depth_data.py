"""Pictures with their depth, as folders and as zip files: arrays and PNGs whose headers lie, meta.json of all sorts."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from tests.hostile.generate import Corpus, cuts, deep, picture
from tests.hostile.kinds.archives import lying, packed_zeros, rewritten, zipped
from tests.hostile.kinds.images import encoded, png, zeros
from tests.hostile.kinds.models import evil_pickle

PAIRS = 9


def npy(array: np.ndarray) -> bytes:
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_saying(header: str, content: bytes = b"", version: int = 1) -> bytes:
    """An .npy file with this header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + content


def link_or_write(path: Path, content: bytes, same: Path) -> None:
    """Write a file, or link it to another one of the same content, which takes no room."""
    if same.read_bytes() == content:
        os.link(same, path)
    else:
        path.write_bytes(content)


def said(shape: str, dtype: str = "'<f4'") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"


def write(corpus: Corpus) -> None:
    metres = np.linspace(0.5, 5, 72 * 96, dtype=np.float32).reshape(72, 96)
    millimetres = (metres * 1000).astype(np.uint16)
    image, good = encoded(picture(), "jpg"), encoded(Image.fromarray(millimetres), "png")

    corpus.path("picture").write_bytes(image)
    corpus.path("depth").write_bytes(good)

    def folder(
        name: str,
        depth: bytes | None = None,
        ending: str = "npy",
        expected="either",
        meta: str | None = None,
        rgb: bytes = image,
    ) -> Path:
        """PAIRS pictures; the depth of the first is as given."""
        made = corpus.folder("rgbd", name, expected)
        (made / "rgb").mkdir()
        (made / "depth").mkdir()
        for number in range(PAIRS):
            link_or_write(made / "rgb" / f"room{number}a.jpg", image if number else rgb, corpus.path("picture"))
            if number or depth is None:
                link_or_write(made / "depth" / f"room{number}a.png", good, corpus.path("depth"))
        if depth is not None:
            (made / "depth" / f"room0a.{ending}").write_bytes(depth)
        if meta is not None:
            (made / "meta.json").write_text(meta)
        return made

    folder("good", expected="right", meta='{"intrinsics": {"fx": 90, "fy": 90, "cx": 48, "cy": 36}}')
    _arrays(corpus, folder, metres)
    _pngs(folder, metres, millimetres)
    for name, meta in {
        "deep": deep(),
        "deep-inside": '{"intrinsics": ' + deep() + "}",
        "list": "[]",
        "text": "no JSON",
        "binary": "\0\1",
        "digits": '{"intrinsics": {"fx": ' + "9" * 400 + ', "fy": 1, "cx": 1, "cy": 1}}',
        "digits-5000": '{"intrinsics": {"fx": ' + "9" * 5000 + "}}",
        "nan": '{"intrinsics": {"fx": NaN, "fy": 1, "cx": 1, "cy": 1}}',
        "infinite": '{"intrinsics": {"fx": Infinity, "fy": 1, "cx": 1, "cy": 1}}',
        "zero": '{"intrinsics": {"fx": 0, "fy": 0, "cx": 0, "cy": 0}}',
        "lists": '{"intrinsics": {"fx": [1], "fy": {}, "cx": null, "cy": true}}',
        "number": '{"intrinsics": 7}',
        "strings": '{"intrinsics": {"fx": "9", "fy": "9", "cx": "9", "cy": "9"}}',
        "licence": '{"licence": ' + deep(900) + "}",
        "licence-html": '{"licence": "<script>alert(1)</script>"}',
    }.items():
        folder(f"meta-{name}", meta=meta)
    _files(corpus, folder, good)
    _zips(corpus, image, good)


def _arrays(corpus: Corpus, folder, metres: np.ndarray) -> None:
    good = npy(metres)
    for name, content in {
        "object": npy_saying(said("(72, 96)", "'|O'"), evil_pickle(corpus)),
        "pickle": evil_pickle(corpus),
        "pickled-array": pickle.dumps(metres),
        "lying": npy_saying(said("(1000000000, 1000000000)")),
        "lying-size": npy_saying(said("(72, 96)"), bytes(100)),
        "negative": npy_saying(said("(-72, -96)"), bytes(27648)),
        "code": npy_saying("__import__('os').system('true')"),
        "digits": npy_saying(said(f"({'9' * 400}, 2)")),
        "deep": npy_saying("(" * 5000 + ")" * 5000),
        "long": npy_saying(said("(72, 96)") + " " * 900_000, bytes(27648), 2),
        "fields": npy_saying(said("(72, 96)", "[('a', '<f4'), ('b', '<f4')]"), bytes(55296)),
        "nested-fields": npy_saying(said("(72, 96)", "[('a', " * 90 + "'<f4'" + ")]" * 90), bytes(27648)),
        "shape-text": npy_saying(said("'ab'")),
        "shape-real": npy_saying(said("(72.0, 96.0)")),
        "version": b"\x93NUMPY\x09\x09" + good[8:],
        "empty": b"",
        "magic": b"\x93NUMPY",
        "text": b"1 2 3",
        "zip": zipped({"a.npy": good}),
        "header-length": good[:8] + b"\xff\xff" + good[10:],
        **cuts(good, (0.001, 0.5)),
    }.items():
        folder(f"npy-{name}", content)
    with np.errstate(all="ignore"):
        for name, array in {
            "complex": metres.astype(complex),
            "bool": metres > 1,
            "text": metres.astype(str).astype("S8"),
            "dates": metres.astype("M8[s]"),
            "three": metres[None],
            "none": np.empty((0, 0)),
            "scalar": np.float32(7),
            "rgb": np.stack([metres] * 3, 2),
            "nan": metres * np.nan,
            "infinite": metres / 0,
            "minus": -metres,
            "zeros": metres * 0,
            "millimetres": metres * 1000,
            "small": metres[:9],
            "turned": metres.T,
            "1e308": metres.astype(float) * 1e307,
            "half-nan": np.where(metres > 2, np.nan, metres),
            "negative-whole": (-metres * 1000).astype(np.int64),
            "most": np.full((72, 96), 2**63 - 1),
            "mostu": np.full((72, 96), 2**64 - 1, np.uint64),
        }.items():
            folder(f"values-{name}", npy(np.asarray(array)))
    folder("values-fortran", npy(np.asfortranarray(metres)), expected="right")
    folder("values-big-endian", npy(metres.astype(">f4")), expected="right")


def _pngs(folder, metres: np.ndarray, millimetres: np.ndarray) -> None:
    good = encoded(Image.fromarray(millimetres), "png")
    for name, content in {
        "eight-bits": encoded(Image.fromarray((millimetres >> 8).astype(np.uint8)), "png"),
        "rgb": encoded(picture(), "png"),
        "metres": encoded(Image.fromarray((millimetres // 1000).astype(np.uint16)), "png"),
        "zeros": encoded(Image.fromarray(millimetres * 0), "png"),
        "size": encoded(Image.fromarray(millimetres[:9]), "png"),
        "jpeg": encoded(picture(), "jpg"),
        "text": b"text",
        "empty": b"",
        "huge": png(60000, 60000, zeros(9), bits=16),
        "same-huge": png(96, 72, zeros(60_000_000), bits=16),
        "tiff": encoded(Image.fromarray(metres), "tif"),
        "text-bomb": good[:33] + _text_bomb() + good[33:],
        "most": encoded(Image.fromarray(millimetres | 65535), "png"),
        **cuts(good, (0.1, 0.5)),
        "palette": encoded(picture().quantize(8), "png"),
    }.items():
        folder(f"png-{name}", content, "png")
    side = 31_622
    bomb = png(side, side, zeros(side * (side // 8 + 2)), bits=1)
    folder("png-and-picture-bomb", good, "png", rgb=bomb)
    folder("picture-text", good, "png", rgb=b"no picture")
    folder("picture-huge", good, "png", rgb=png(60000, 60000, b""))
    # Depth and picture of one size, both of which promise 49 million pixels.
    folder("both-large", png(7000, 7000, zeros(7000 * 14001), bits=16), "png", rgb=png(7000, 7000, zeros(7000 * 7001)))
    folder("both-bombs", bomb, "png", rgb=bomb)


def _text_bomb() -> bytes:
    from tests.hostile.kinds.images import chunk

    return chunk(b"zTXt", b"Comment\0\0" + zeros(60_000_000))


def _files(corpus: Corpus, folder, good: bytes) -> None:
    corpus.folder("rgbd", "empty", "sentence")
    (corpus.folder("rgbd", "no-depth", "sentence") / "rgb").mkdir()
    for name, file in {"depth": "depth/room0a.png", "picture": "rgb/room0a.jpg", "meta": "meta.json"}.items():
        for kind, how in {
            "fifo": os.mkfifo,
            "folder": Path.mkdir,
            "zero": lambda path: path.symlink_to("/dev/zero"),
            "none": lambda path: path.symlink_to("nothing"),
        }.items():
            made = folder(f"{name}-is-{kind}", meta="{}")
            (made / file).unlink()
            how(made / file)
    array = folder("array-zero")
    (array / "depth" / "room0a.npy").symlink_to("/dev/zero")
    sparse = folder("array-sparse", npy_saying(said("(72, 96)")))
    os.truncate(sparse / "depth" / "room0a.npy", 2**35)
    lacking = folder("lacking", expected="sentence")
    (lacking / "depth" / "room3a.png").unlink()
    few = folder("one")
    for file in (*(few / "rgb").glob("room[1-9]*"), *(few / "depth").glob("room[1-9]*")):
        file.unlink()
    digits = folder("name-digits")
    (digits / "rgb" / "room0a.jpg").rename(digits / "rgb" / ("9" * 200 + ".jpg"))
    (digits / "depth" / "room0a.png").rename(digits / "depth" / ("9" * 200 + ".png"))
    square = folder("name-square")
    (square / "rgb" / "room0a.jpg").rename(square / "rgb" / "room\u00b2.jpg")
    (square / "depth" / "room0a.png").rename(square / "depth" / "room\u00b2.png")
    shutil.copyfile(square / "rgb" / "room1a.jpg", square / "rgb" / os.fsdecode(b"\xff.jpg"))
    shutil.copyfile(square / "depth" / "room1a.png", square / "depth" / os.fsdecode(b"\xff.png"))


def _zips(corpus: Corpus, image: bytes, depth: bytes) -> None:
    def files(top: str = "") -> dict[str, bytes]:
        return {
            f"{top}{kind}/room{i}a.{ending}": content
            for i in range(PAIRS)
            for kind, ending, content in (("rgb", "jpg", image), ("depth", "png", depth))
        }

    add = corpus.add
    add("rgbd_zip", "good.zip", zipped(files()), "right")
    add("rgbd_zip", "inside.zip", zipped(files("a/b/")), "right")
    add("rgbd_zip", "two-tops.zip", zipped({**files("a/"), **files("b/")}), "sentence")
    add("rgbd_zip", "no-depth.zip", zipped({"rgb/a.jpg": image}), "sentence")
    add("rgbd_zip", "lacking.zip", zipped({**files(), "rgb/more.jpg": image}), "sentence")
    add("rgbd_zip", "up.zip", zipped({**files(), "../../rgb/evil.jpg": image, "../../depth/evil.png": depth}))
    add("rgbd_zip", "up-meta.zip", zipped({**files(), "../meta.json": b"{}"}))
    add("rgbd_zip", "meta-deep.zip", zipped({**files(), "meta.json": deep().encode()}))
    add("rgbd_zip", "meta-bomb.zip", zipped({**files(), "meta.json": b'{"a": "' + b" " * 150_000_000 + b'"}'}))
    add(
        "rgbd_zip",
        "array-object.zip",
        zipped({**files(), "depth/room0a.npy": npy_saying(said("(72, 96)", "'|O'"), evil_pickle(corpus))}),
    )
    add(
        "rgbd_zip",
        "bomb.zip",
        zipped({**files(), "depth/room0a.npy": npy_saying(said("(72, 96)"), bytes(150_000_000))}),
    )
    add(
        "rgbd_zip",
        "many-bombs.zip",
        zipped({**files(), **{f"depth/room{i}a.npy": bytes(100_000_000) for i in range(PAIRS)}}),
    )
    add("rgbd_zip", "lying.zip", lying("rgb/a.jpg", image, 2**31))
    add("rgbd_zip", "one-zeros.zip", rewritten(packed_zeros("rgb/a.png", 300_000_000), 5000), "sentence")
    for name, part in cuts(zipped(files()), (0.2, 0.9)).items():
        add("rgbd_zip", f"{name}.zip", part, "sentence")
