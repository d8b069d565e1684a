"""Pictures: cut off, spoilt, huge by their header or once decoded, of rare modes, and files that are none."""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib

import numpy as np
from PIL import Image

from tests.hostile.generate import Corpus, cuts, picture, spoilt

# Pillow's names by ending.
FORMATS = {
    "png": "PNG",
    "jpg": "JPEG",
    "webp": "WEBP",
    "gif": "GIF",
    "tif": "TIFF",
    "bmp": "BMP",
    "ppm": "PPM",
    "jp2": "JPEG2000",
    "avif": "AVIF",
    "ico": "ICO",
}
PNG = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, ending: str, **options) -> bytes:
    """The bytes of an image file of this ending."""
    file = io.BytesIO()
    image.save(file, format=FORMATS.get(ending) or ending.upper(), **options)
    return file.getvalue()


def lab(image: Image.Image) -> Image.Image:
    """In mode LAB, without the profile that Pillow adds, which tells the time."""
    converted = image.convert("LAB")
    converted.info.clear()
    return converted


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, data: bytes, *, bits: int = 8, colour: int = 0, before: bytes = b"") -> bytes:
    """A PNG with this header and this (compressed) data, whatever they say of each other."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return PNG + header + before + chunk(b"IDAT", data) + chunk(b"IEND")


def zeros(count: int) -> bytes:
    """So many zeros, compressed a thousand times, without ever holding or compressing all of them."""
    whole, rest = divmod(count, 2**20)
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)  # stands alone, so it can be repeated
    packer = zlib.compressobj(9, wbits=-15)
    adler = (count % 65521) << 16 | 1
    return b"\x78\xda" + block * whole + packer.compress(bytes(rest)) + packer.flush() + struct.pack(">I", adler)


def tiff(entries: list[tuple[int, int, int, int]], after: bytes = b"", following: int = 0) -> bytes:
    """A little-endian TIFF of one directory: entries are (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", following) + after


def _tiff_of(width: int = 16, height: int = 16, **changed: tuple[int, int, int]) -> bytes:
    """A grey picture; changed: entries by tag as t256=(type, count, value)."""
    entries = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 200),
        277: (3, 1, 1),
        278: (4, 1, height),
        279: (4, 1, 256),
    }
    entries |= {int(tag[1:]): value for tag, value in changed.items()}
    content = tiff([(tag, *value) for tag, value in entries.items()])
    return content.ljust(200, b"\0") + bytes(range(256))


def write(corpus: Corpus) -> None:
    image = picture()
    good = {ending: encoded(image, ending) for ending in FORMATS}
    for ending, content in good.items():
        corpus.add("image", f"good.{ending}", content, "right")
        for name, part in cuts(content).items():
            corpus.add("image", f"{name}.{ending}", part)
        for number in range(3):
            corpus.add("image", f"spoilt{number}.{ending}", spoilt(content, corpus.random))
    _not_pictures(corpus, good)
    _huge(corpus, good)
    _bombs(corpus)
    _frames(corpus, image)
    _tiffs(corpus)
    _modes(corpus, image)
    _metadata(corpus, image)
    _chunks(corpus, good["png"])
    _shapes(corpus)
    _no_files(corpus, good["png"])


def _not_pictures(corpus: Corpus, good: dict[str, bytes]) -> None:
    html = b"<html><body><script>alert(document.cookie)</script></body></html>"
    for name, content in {
        "empty.png": b"",
        "one-byte.jpg": b"\xff",
        "magic-alone.png": PNG,
        "magic-alone.jpg": b"\xff\xd8\xff",
        "text.png": b"This is a text.\n" * 50,
        "html.jpg": html,
        "svg.jpg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "svg-entities.png": b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><svg>&b;</svg>',
        "pdf.jpg": b"%PDF-1.7\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj",
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file",
        "script.png": b"#!/bin/sh\nrm -rf /\n",
        "zip.png": b"PK\x05\x06" + bytes(18),
        "random.jpg": corpus.random.bytes(2000),
        "jpeg-magic.jpg": b"\xff\xd8\xff\xe0" + corpus.random.bytes(2000),
        "png-magic.png": PNG + corpus.random.bytes(2000),
        "utf16.png": "picture".encode("utf-16"),
        "fits.tif": b"SIMPLE  =                    T" + b" " * 2850,
        "xpm.png": b'/* XPM */ static char *x[] = {"9 9 1 1"};',
        "msp.png": b"LinS" + corpus.random.bytes(300),
        "numpy.png": b"\x93NUMPY\x01\0v\0{'descr'",
        "elf.png": b"\x7fELF" + bytes(90),
    }.items():
        corpus.add("image", f"none-{name}", content, "sentence")
    for name, content in {
        "png-named.jpg": good["png"],
        "jpeg-named.png": good["jpg"],
        "webp-named.bmp": good["webp"],
        "jpeg-and-html.jpg": good["jpg"] + html,
        "png-and-zip.png": good["png"] + b"PK\x05\x06" + bytes(18),
        "gif-and-script.gif": good["gif"] + b"/*<script>*/",
    }.items():
        corpus.add("image", f"polyglot-{name}", content, "right")
    corpus.add("image", "polyglot-png-in-jpeg.png", PNG + good["jpg"])


def _huge(corpus: Corpus, good: dict[str, bytes]) -> None:
    def patched(ending: str, at: int, fields: bytes) -> bytes:
        return good[ending][:at] + fields + good[ending][at + len(fields) :]

    sof = good["jpg"].index(b"\xff\xc0") + 5
    jp2 = good["jp2"].index(b"\xff\x51") + 6
    ispe = good["avif"].index(b"ispe") + 8
    vp8x = b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2
    for name, content in {
        "60000.png": png(60000, 60000, zlib.compress(b"0")),
        "most.png": png(2**31 - 1, 2**31 - 1, zlib.compress(b"0")),
        "beyond.png": png(2**32 - 1, 2**32 - 1, b""),
        "65500.jpg": patched("jpg", sof, struct.pack(">HH", 65500, 65500)),
        "65535.gif": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x01\0;",
        "most.bmp": patched("bmp", 18, struct.pack("<ii", 2**31 - 1, 2**31 - 1)),
        "60000.tif": _tiff_of(60000, 60000),
        "most.tif": _tiff_of(2**32 - 1, 2**32 - 1),
        "most.jp2": patched("jp2", jp2, struct.pack(">II", 2**31, 2**31)),
        "16384.webp": vp8x,
        "99999.ppm": b"P6 99999 99999 255\n1234",
        "digits.ppm": b"P6 " + b"9" * 400 + b" 9 255\n",
        "65535.avif": patched("avif", ispe, struct.pack(">II", 65535, 65535)),
    }.items():
        corpus.add("image", f"huge-{name}", content, "sentence")
    corpus.add("image", "huge-negative.bmp", patched("bmp", 18, struct.pack("<ii", -(2**31), -(2**31))))
    corpus.add("image", "huge-offset.bmp", patched("bmp", 10, struct.pack("<I", 2**32 - 1)))
    corpus.add("image", "huge-entry.ico", patched("ico", 14, struct.pack("<II", 2**32 - 1, 22)))


def _bombs(corpus: Corpus) -> None:
    side = 31_622
    corpus.add("image", "bomb-1e9.png", png(side, side, zeros(side * (side // 8 + 2)), bits=1), "sentence")
    corpus.add("image", "large-49mp.png", png(7000, 7000, zeros(7000 * (7000 // 8 + 1)), bits=1), "right")
    corpus.add("image", "large-48mp-rgb.png", png(6900, 6900, zeros(6900 * (3 * 6900 + 1)), colour=2), "right")
    corpus.add("image", "bomb-data.png", png(16, 16, zeros(100_000_000)))
    for name, kind, before in (
        ("text", b"zTXt", b"Comment\0\0"),
        ("profile", b"iCCP", b"icc\0\0"),
        ("utf8", b"iTXt", b"Comment\0\1\0\0\0"),
    ):
        data = zlib.compress(b"".join(b"\0" + bytes(16) for _ in range(16)))
        corpus.add("image", f"bomb-{name}.png", png(16, 16, data, before=chunk(kind, before + zeros(60_000_000))))


def _frames(corpus: Corpus, image: Image.Image) -> None:
    small = [image.resize((24, 18)).rotate(angle) for angle in (0, 10, 20)]
    more = {"save_all": True, "append_images": small[1:]}
    for ending in ("webp", "gif", "png", "tif", "avif"):
        corpus.add("image", f"animated.{ending}", encoded(small[0], ending, **more), "right")
    frame = b",\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0"
    for name, width, count in (("frames-1e5", 16, 100_000), ("frames-0", 16, 0)):
        screen = b"GIF89a" + struct.pack("<HH", width, width) + b"\x80\0\0\0\0\0\xff\xff\xff"
        corpus.add("image", f"{name}.gif", screen + frame * count + b";")
    content = encoded(small[0], "png", **more)
    at = content.index(b"acTL") + 4
    corpus.add("image", "frames-lying.png", content[:at] + struct.pack(">I", 2**31 - 1) + content[at + 4 :])


def _tiffs(corpus: Corpus) -> None:
    for name, content in {
        "loop": tiff([(256, 4, 1, 16), (257, 4, 1, 16)], following=8),
        "directory-far": b"II*\0" + struct.pack("<I", 2**31),
        "directory-none": b"II*\0" + bytes(4),
        "count": _tiff_of(t273=(4, 2**32 - 1, 8)),
        "bytes": _tiff_of(t279=(4, 1, 2**32 - 1)),
        "strip-far": _tiff_of(t273=(4, 1, 2**31)),
        "strip-none": _tiff_of(t279=(4, 1, 0)),
        "bits": _tiff_of(t258=(3, 1, 3)),
        "samples": _tiff_of(t277=(3, 1, 255)),
        "packed": _tiff_of(t259=(3, 1, 34712)),
        "jpg": _tiff_of(t259=(3, 1, 7)),
        "lzw": _tiff_of(t259=(3, 1, 5)),
        "rows": _tiff_of(t278=(4, 1, 0)),
        "tile": _tiff_of(t322=(4, 1, 2**31), t323=(4, 1, 2**31), t324=(4, 1, 200)),
        "zero": _tiff_of(0, 0),
        "type": _tiff_of(t256=(99, 1, 16)),
        "float": _tiff_of(t339=(3, 1, 3)),
        "planar": _tiff_of(t284=(3, 1, 2), t277=(3, 1, 3)),
        "big": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60),
        "sub": _tiff_of(t330=(4, 1, 8)),
        "exif": _tiff_of(t34665=(4, 1, 8)),
    }.items():
        corpus.add("image", f"tiff-{name}.tif", content)


def _modes(corpus: Corpus, image: Image.Image) -> None:
    grey = np.asarray(image.convert("L"))
    ramp = (grey.astype(np.uint16) << 8) | grey
    waves = grey.astype(np.float32) / 255
    for name, made, ending in (
        *(("cmyk", image.convert("CMYK"), "jpg"), ("cmyk", image.convert("CMYK"), "tif"), ("ycbcr", image, "jpg")),
        *(
            ("lab", lab(image), "tif"),
            ("grey", image.convert("L"), "png"),
            ("bit", image.convert("1"), "png"),
        ),
        *(
            ("palette", image.quantize(16), "png"),
            ("palette", image.quantize(256), "gif"),
            ("alpha", image.convert("RGBA"), "png"),
        ),
        *(
            ("grey-alpha", image.convert("LA"), "png"),
            ("deep", Image.fromarray(ramp), "png"),
            ("deep", Image.fromarray(ramp), "tif"),
        ),
        *(("float", Image.fromarray(waves), "tif"), ("integer", Image.fromarray(ramp.astype(np.int32)), "tif")),
    ):
        corpus.add("image", f"mode-{name}.{ending}", encoded(made, ending), "right")
    for name, value in (("nan", np.nan), ("infinite", np.inf), ("1e38", 3e38)):
        spotted = waves.copy()
        spotted[3, 5] = value
        corpus.add("image", f"mode-{name}.tif", encoded(Image.fromarray(spotted), "tif"))
    corpus.add("image", "mode-all-nan.tif", encoded(Image.fromarray(waves * np.nan), "tif"))
    clear = image.convert("RGBA")
    clear.putalpha(0)
    corpus.add("image", "mode-clear.png", encoded(clear, "png"), "right")
    corpus.add("image", "mode-transparent.gif", encoded(image.quantize(8), "gif", transparency=3), "right")


def _metadata(corpus: Corpus, image: Image.Image) -> None:
    exif = Image.Exif()
    for orientation in (6, 9, 0, 65535):
        exif[0x0112] = orientation
        corpus.add("image", f"exif-{orientation}.jpg", encoded(image, "jpg", exif=exif), "right")
    whole = exif.tobytes()
    for name, block in {
        "text": b"Exif\0\0text",
        "cut": whole[:12],
        "offset": whole[:10] + b"\xff" * 4 + whole[14:],
        "loop": b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "empty": b"Exif\0\0",
        "count": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff" * 20,
    }.items():
        corpus.add("image", f"exif-{name}.jpg", encoded(image, "jpg", exif=block), "right")
        corpus.add("image", f"exif-{name}.webp", encoded(image, "webp", exif=block), "right")
    for name, profile in {"text": b"no profile", "random": corpus.random.bytes(3000), "long": b"x" * 200_000}.items():
        for ending in ("jpg", "png", "webp", "tif"):
            written = encoded(image.resize((24, 18)), ending, icc_profile=profile)
            corpus.add("image", f"icc-{name}.{ending}", written, "right")
    corpus.add("image", "comment.jpg", encoded(image, "jpg", comment=b"<script>" + b"x" * 60_000), "right")


def _chunks(corpus: Corpus, good: bytes) -> None:
    header, rest = good[:33], good[33:]
    for name, content, expected in (
        ("text-2mb", header + chunk(b"tEXt", b"Comment\0" + b"x" * 1_200_000) + rest, "either"),
        ("thousands", header + chunk(b"tEXt", b"a\0b") * 20_000 + rest, "right"),
        ("unknown", header + chunk(b"unKn", b"?") + rest, "right"),
        ("required", header + chunk(b"UNKN", b"?") + rest, "either"),
        ("sum", good[:-20] + b"\0\0\0\0" + good[-16:], "either"),
        ("no-data", header + chunk(b"IEND"), "either"),
        ("no-end", good[:-12], "either"),
        ("no-header", PNG + rest, "sentence"),
        ("twice", header + header[8:] + rest, "either"),
        ("length", header + struct.pack(">I", 2**31 - 1) + rest[4:], "either"),
        ("after", good + b"\0" * 1000, "right"),
        ("no-palette", png(16, 16, zlib.compress(bytes(17 * 16)), colour=3), "either"),
        ("bits", png(16, 16, zeros(300), bits=7), "either"),
        ("colour", png(16, 16, zeros(300), colour=5), "either"),
        ("gamma", header + chunk(b"gAMA", bytes(4)) + rest, "right"),
        ("density", header + chunk(b"pHYs", b"\xff" * 9) + rest, "right"),
        ("transparent", header + chunk(b"tRNS", b"\0") + rest, "either"),
        ("zero", png(0, 0, b""), "sentence"),
        ("not-packed", png(16, 16, b"not deflate"), "either"),
    ):
        corpus.add("image", f"chunks-{name}.png", content, expected)


def _shapes(corpus: Corpus) -> None:
    for width, height, expected in (
        (1, 1, "sentence"),
        (7, 7, "sentence"),
        (8, 8, "right"),
        (1, 50_000, "sentence"),
        (50_000, 8, "either"),
        (8, 50_000, "either"),
        (3000, 8, "either"),
        (1, 8, "sentence"),
        (9, 1300, "either"),
    ):
        corpus.add("image", f"shape-{width}x{height}.png", encoded(Image.new("RGB", (width, height)), "png"), expected)


def _no_files(corpus: Corpus, good: bytes) -> None:
    corpus.add("image", "target.png", good, "right")
    corpus.folder("image", "folder.png", "sentence")
    os.mkfifo(corpus.add("image", "fifo.png", None, "sentence"))
    for name, target, expected in (
        ("link.png", "target.png", "right"),
        ("link-loop.png", "link-loop.png", "sentence"),
        ("link-none.png", "nothing", "sentence"),
        ("link-zero.png", "/dev/zero", "sentence"),
        ("link-random.png", "/dev/urandom", "sentence"),
        ("link-null.png", "/dev/null", "sentence"),
        ("link-memory.png", "/proc/self/mem", "sentence"),
        ("link-status.png", "/proc/self/status", "sentence"),
        ("link-passwd.png", "/etc/passwd", "sentence"),
        ("link-folder.png", "folder.png", "sentence"),
    ):
        corpus.add("image", name, None, expected).symlink_to(target)
    os.mknod(corpus.add("image", "socket.png", None, "sentence"), stat.S_IFSOCK | 0o600)
    with corpus.add("image", "sparse.png", b"", "sentence").open("wb") as file:
        file.truncate(2**33)
