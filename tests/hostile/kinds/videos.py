"""Videos: cut off, spoilt, without pictures, with headers that lie, playlists that name other files."""

from __future__ import annotations

import io
import os
import struct

import av
import numpy as np

from tests.hostile.generate import Corpus, cuts, picture, spoilt
from tests.hostile.kinds.images import encoded

# By ending: the container and the codec.
FORMATS = {
    "mp4": ("mp4", "libx264"),
    "mkv": ("matroska", "libx264"),
    "webm": ("webm", "libvpx"),
    "avi": ("avi", "mpeg4"),
    "mov": ("mov", "mpeg4"),
    "ts": ("mpegts", "mpeg2video"),
}
TITLE = "A title that is here to be replaced"


def clip(
    ending: str = "mp4", frames: int = 8, size: tuple[int, int] = (96, 72), title: str = "", **options: str
) -> bytes:
    """A cat that moves to the right."""
    container_format, codec = FORMATS[ending]
    still = np.asarray(picture(*size))
    file = io.BytesIO()
    with av.open(file, "w", format=container_format, options=options) as container:
        if title:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = (*size, "yuv420p")
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(still, 2 * number, 1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def sound() -> bytes:
    """A second of silence in an .mp4."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def patched(content: bytes, after: bytes, offset: int, fields: bytes) -> bytes:
    """The bytes so far after a name of a box or chunk replaced."""
    at = content.index(after) + len(after) + offset
    return content[:at] + fields + content[at + len(fields) :]


def write(corpus: Corpus) -> None:
    good = {ending: clip(ending) for ending in FORMATS}
    for ending, content in good.items():
        corpus.add("clip", f"good.{ending}", content, "right")
        for name, part in cuts(content, (0.05, 0.4, 0.8)).items():
            corpus.add("clip", f"{name}.{ending}", part)
        for number in range(2):
            corpus.add("clip", f"spoilt{number}.{ending}", spoilt(content, corpus.random, 30))
    _metadata(corpus)
    _headers(corpus, good)
    _none(corpus)
    _frames(corpus)


def _metadata(corpus: Corpus) -> None:
    """Its text need not be UTF-8; cameras of the world write what they please, and the pictures are sound."""
    for ending in ("mp4", "mkv", "avi", "mov"):
        titled = clip(ending, title=TITLE)
        for name, text in (
            ("latin", b"Caf\xe9 \xff\xfe\x81"),
            ("null", b"a\0b"),
            ("html", b"<script>alert(1)</script>"),
        ):
            corpus.add(
                "clip", f"title-{name}.{ending}", titled.replace(TITLE.encode(), text.ljust(len(TITLE))), "right"
            )
    corpus.add("clip", "fragments.mp4", clip(movflags="+frag_keyframe+empty_moov"), "right")


def _headers(corpus: Corpus, good: dict[str, bytes]) -> None:
    mp4, avi = good["mp4"], good["avi"]
    for name, content in {
        "rate-0.avi": patched(avi, b"avih", 4, bytes(4)),
        "rate-stream-0.avi": patched(avi, b"strh", 24, bytes(8)),
        "rate-most.avi": patched(avi, b"strh", 24, struct.pack("<II", 1, 2**32 - 1)),
        "rate-0.mp4": patched(mp4, b"mdhd", 12, bytes(4)),
        "rate-all-0.mp4": patched(mp4, b"mvhd", 12, bytes(4)),
        "length-0.mp4": patched(mp4, b"mvhd", 16, bytes(4)),
        "length-most.mp4": patched(mp4, b"mvhd", 16, b"\x7f" + b"\xff" * 3),
        "steps-0.mp4": patched(mp4, b"stts", 4, bytes(4)),
        "steps-most.mp4": patched(mp4, b"stts", 8, b"\x7f\xff\xff\xff\x7f\xff\xff\xff"),
        "size-65535.mp4": patched(mp4, b"avc1", 24, b"\xff" * 4),
        "size-0.mp4": patched(mp4, b"avc1", 24, bytes(4)),
        "size-30000.avi": patched(avi, b"strf", 8, struct.pack("<ii", 30000, 30000)),
        "size-most.avi": patched(avi, b"strf", 8, struct.pack("<ii", 2**31 - 1, 2**31 - 1)),
        "codec.mp4": patched(mp4, b"stsd", 12, b"xxxx"),
        "codec.avi": avi.replace(b"FMP4", b"XXXX"),
        "samples-most.mp4": patched(mp4, b"stsz", 8, b"\x7f\xff\xff\xff"),
        "offsets-most.mp4": patched(mp4, b"stco", 8, b"\xff" * 4),
        "chunks-most.mp4": patched(mp4, b"stsc", 4, b"\x7f\xff\xff\xff"),
        "matrix-0.mp4": patched(mp4, b"tkhd", 40, bytes(36)),
        "matrix-most.mp4": patched(mp4, b"tkhd", 40, b"\x7f\xff\xff\xff" * 9),
        "box-0.mp4": patched(mp4, b"ftyp", -8, bytes(4)),
        "box-most.mp4": patched(mp4, b"moov", -8, b"\xff" * 4),
        "no-index.mp4": mp4.replace(b"moov", b"free"),
        "entry-sizes.mkv": good["mkv"].replace(b"\x16\x54\xae\x6b", b"\x16\x54\xae\x6b\x01"),
        "brand.mp4": patched(mp4, b"ftyp", 0, b"\xff\xfe\xe9\x81"),
    }.items():
        corpus.add("clip", f"header-{name}", content)


def _none(corpus: Corpus) -> None:
    for name, content in {
        "empty.mp4": b"",
        "text.mp4": b"no video at all\n" * 9,
        "random.mp4": corpus.random.bytes(5000),
        "sound.mp4": sound(),
        "playlist.mp4": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "concat.mp4": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "session.mp4": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "picture.mp4": encoded(picture(), "png"),
        "dash.mp4": b'<?xml version="1.0"?><MPD><BaseURL>file:///etc/passwd</BaseURL></MPD>',
        "boxes.mp4": b"\0\0\x10\0moov" * 400,
        "deep.mp4": b"".join(struct.pack(">I", 8 * (5000 - i)) + b"moov" for i in range(5000)),
        "subtitles.avi": b"1\n00:00:00,0 --> 00:00:01,0\nhi\n",
    }.items():
        corpus.add("clip", f"none-{name}", content, "sentence")
    os.mkfifo(corpus.add("clip", "fifo.mp4", None, "sentence"))
    corpus.folder("clip", "folder.mp4", "sentence")
    for name, target in (
        ("zero", "/dev/zero"),
        ("random", "/dev/urandom"),
        ("none", "nothing"),
        ("loop", "link-loop.mp4"),
    ):
        corpus.add("clip", f"link-{name}.mp4", None, "sentence").symlink_to(target)
    with corpus.add("clip", "sparse.mp4", b"", "sentence").open("wb") as file:
        file.truncate(2**33)


def _frames(corpus: Corpus) -> None:
    corpus.add("clip", "one-frame.mp4", clip(frames=1), "right")
    corpus.add("clip", "many-frames.mp4", clip(frames=60), "right")
    corpus.add("clip", "tiny.avi", clip("avi", size=(2, 2)), "either")
    corpus.add("clip", "wide.avi", clip("avi", frames=2, size=(2048, 16)))
    frame = b"!\xf9\x04\0\x01\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0"
    corpus.add("clip", "gif-1e5.gif", b"GIF89a\x10\0\x10\0\x80\0\0\0\0\0\xff\xff\xff" + frame * 20_000 + b";")
    corpus.add("clip", "gif-huge.gif", b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff" + frame * 3 + b";")
    other = picture(50, 90)
    frames = [
        encoded(picture(), "png"),
        encoded(other, "png"),
        b"",
        encoded(picture(), "jpg")[:400],
        encoded(picture(), "png"),
    ]
    for name, contents in {
        "folder-sizes": frames[:2],
        "folder-damaged": frames[::2],
        "folder-first-damaged": frames[3:],
        "folder-all-damaged": frames[2:4],
        "folder-empty": [],
    }.items():
        folder = corpus.folder("clip", name)
        for number, content in enumerate(contents):
            (folder / f"{number}.png").write_bytes(content)
    names = corpus.folder("clip", "folder-names")
    for name in (
        b"9" * 200 + b".png",
        b"\xff\xfe.png",
        b"two\nlines.png",
        "\u0663.png".encode(),
        "\u00b2.png".encode(),
    ):
        (names / os.fsdecode(name)).write_bytes(frames[0])
