from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dinoviz.images import ImageError
from dinoviz.video import io as clips
from dinoviz.video.io import ClipError

# Container, codec, pixel format, size: what cameras, browsers and old programs write.
KINDS = {
    "a.mp4": ("libx264", "yuv420p", (320, 240)),
    "odd.mp4": ("libx264", "yuv444p", (321, 241)),
    "a.webm": ("libvpx-vp9", "yuv420p", (321, 241)),
    "a.mov": ("mpeg4", "yuv420p", (320, 240)),
    "a.avi": ("mjpeg", "yuvj420p", (321, 241)),
    "a.gif": ("gif", "rgb8", (321, 241)),
    "a.mkv": ("ffv1", "yuv420p", (321, 241)),
}
IDENTITY = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
TURNED = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()  # as telephones are held


def film(size: tuple[int, int], count: int = 6) -> list[np.ndarray]:
    """Grey frames that get brighter, red in the top left corner."""
    frames = []
    for i in range(count):
        frame = np.full((size[1], size[0], 3), 60 + 20 * (i % 8), np.uint8)
        frame[: size[1] // 3, : size[0] // 3] = (220, 30, 30)
        frames.append(frame)
    return frames


def write(path: Path, frames: list[np.ndarray], codec: str = "libx264", pixels: str = "yuv420p", **options) -> Path:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


# Reading


@pytest.mark.parametrize("name", KINDS)
def test_what_cameras_and_browsers_write_is_read(tmp_path, name):
    codec, pixels, size = KINDS[name]
    clip = clips.open_clip(write(tmp_path / name, film(size), codec, pixels))
    assert (clip.size, clip.rate, clip.count) == (size, 10, 6)
    frames = list(clip.frames())
    assert [label for label, _ in frames] == [f"{i:06d}" for i in range(6)]
    for (_, picture), expected in zip(frames, film(size), strict=True):
        assert picture.size == size
        assert picture.mode == "RGB"
        # Corner and ground, to what the codecs lose and GIF, which has four blues here.
        for y, x in ((20, 20), (200, 200)):
            np.testing.assert_allclose(np.asarray(picture)[y, x].astype(int), expected[y, x].astype(int), atol=60)


def test_a_telephones_rotation_is_applied(tmp_path):
    path = write(tmp_path / "a.mp4", film((320, 240)))
    content = path.read_bytes()
    at = content.index(IDENTITY, content.index(b"tkhd"))
    path.write_bytes(content[:at] + TURNED + content[at + len(TURNED) :])
    clip = clips.open_clip(path)
    assert clip.size == (240, 320)
    _, picture = next(clip.frames())
    pixels = np.asarray(picture).astype(int)
    assert picture.size == (240, 320)
    assert (pixels[20, 220] - pixels[20, 20])[0] > 80  # the red corner is at the top right: turned clockwise


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_title_that_is_no_utf8_is_no_damage(tmp_path, name):
    title = b"a title that is replaced"
    path = tmp_path / name
    codec, pixels, size = KINDS[name]
    with av.open(str(path), "w") as container:
        container.metadata["title"] = title.decode()
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        for frame in film(size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    content = path.read_bytes()
    assert title in content
    path.write_bytes(content.replace(title, b"Caf\xe9 \xff\xfe".ljust(len(title))))
    assert len(list(clips.open_clip(path).frames())) == 6


def avi(path: Path, chunk: bytes, offset: int, field: int) -> Path:
    """A video with a wrong number in its header, so many bytes behind the name of a chunk."""
    content = write(path, film((64, 48)), "mjpeg", "yuvj420p").read_bytes()
    at = content.index(chunk) + len(chunk) + 4 + offset
    path.write_bytes(content[:at] + field.to_bytes(4, "little") + content[at + 4 :])
    return path


@pytest.mark.parametrize("rate", [0, 2**32 - 1])
def test_a_rate_that_no_camera_has_is_not_taken(tmp_path, rate):
    clip = clips.open_clip(avi(tmp_path / "a.avi", b"strh", 24, rate))
    assert 0.01 <= clip.rate <= 1000
    assert len(list(clip.frames())) == 6


def test_a_number_of_frames_that_the_file_cannot_hold_is_not_believed(tmp_path):
    clip = clips.open_clip(avi(tmp_path / "a.avi", b"strh", 32, 2**31 - 1))
    assert clip.count is None
    assert len(list(clip.frames())) == 6


def test_frames_that_would_fill_the_memory_are_not_decoded(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", film((320, 240)))
    monkeypatch.setattr(clips, "MAX_FRAME_PIXELS", 320 * 240 - 1)
    with pytest.raises(ClipError, match="320 x 240"):
        clips.open_clip(path)
    # The container may say less than the stream in it needs.
    content = path.read_bytes()
    at = content.index(b"avc1", content.index(b"stsd")) + 4 + 24
    path.write_bytes(content[:at] + b"\0\x20\0\x20" + content[at + 4 :])
    with pytest.raises(ClipError):
        list(clips.open_clip(path).frames())


def test_every_third_frame_keeps_its_number(tmp_path):
    clip = clips.open_clip(write(tmp_path / "a.mp4", film((64, 48), 8)))
    assert [name for name, _ in clip.frames(every=3)] == ["000000", "000003", "000006"]


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    for i in (10, 9, 1):
        Image.new("L", (20, 16), i).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    clip = clips.open_clip(tmp_path)
    assert (clip.size, clip.count) == ((20, 16), 3)
    frames = list(clip.frames())
    assert [name for name, _ in frames] == ["frame1", "frame9", "frame10"]
    assert [np.asarray(picture)[0, 0, 0] for _, picture in frames] == [1, 9, 10]


def test_two_pictures_of_one_stem_get_two_names(tmp_path):
    for name in ("1.bmp", "1.png"):
        Image.new("L", (20, 16)).save(tmp_path / name)
    assert [name for name, _ in clips.open_clip(tmp_path).frames()] == ["1", "1.png"]


def test_a_broken_picture_of_a_folder_is_reported_and_skipped(tmp_path):
    for i in range(3):
        Image.new("L", (20, 16), i).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_text("broken")
    skipped = []
    assert [name for name, _ in clips.open_clip(tmp_path).frames(on_skip=skipped.append)] == ["0", "2"]
    assert [str(error).startswith("1.png: ") for error in skipped] == [True]
    with pytest.raises(ImageError, match=r"1\.png"):
        list(clips.open_clip(tmp_path).frames())


def test_a_broken_first_picture_is_refused_for_the_mask_is_its(tmp_path):
    (tmp_path / "0.png").write_text("broken")
    Image.new("L", (20, 16)).save(tmp_path / "1.png")
    with pytest.raises(ImageError, match=r"0\.png"):
        clips.open_clip(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("text.mp4", b"this is no video, " * 100, "not a readable video"),
        ("empty.mp4", b"", "empty"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:10,\n/etc/hostname\n#EXT-X-ENDLIST\n", "not a readable video"),
        ("list.ffconcat", b"ffconcat version 1.0\nfile a.mp4\n", "not a readable video"),
        ("photo.png", b"any", "a picture, not a video"),
    ],
)
def test_files_that_are_not_videos_are_refused(tmp_path, name, content, named):
    write(tmp_path / "a.mp4", film((64, 48)))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClipError, match=named) as caught:
        clips.open_clip(tmp_path / name)
    assert str(caught.value).startswith(name)
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.mp4", tmp_path):
        with pytest.raises(ClipError, match=path.name):
            clips.open_clip(path)


@pytest.mark.parametrize(("name", "mark"), [("a.mp4", b"avc1"), ("a.webm", b"V_VP9")])
def test_an_unknown_codec_is_refused(tmp_path, name, mark):
    path = write(tmp_path / name, film((64, 48)), *KINDS[name][:2])
    path.write_bytes(path.read_bytes().replace(mark, mark[:-2] + b"zz"))
    with pytest.raises(ClipError, match="codec"):
        clips.open_clip(path)


def test_sound_without_pictures_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ClipError, match="sound"):
        clips.open_clip(tmp_path / "a.mp4")


def test_a_video_without_frames_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.start_encoding()
    with pytest.raises(ClipError, match=r"a\.avi"):
        clips.open_clip(tmp_path / "a.avi")


@pytest.mark.parametrize("name", ["faststart.mp4", "a.webm", "a.avi"])
def test_a_truncated_video_gives_its_frames_and_then_raises(tmp_path, name):
    random = np.random.default_rng(0)  # noise, so that the frames fill the file and not the header
    frames = [random.integers(0, 255, (96, 128, 3), dtype=np.uint8) for _ in range(30)]
    codec, pixels, _ = KINDS[name.replace("faststart", "a")]
    options = {"movflags": "+faststart"} if name.endswith("mp4") else {}
    path = write(tmp_path / name, frames, codec, pixels, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    seen = []
    with pytest.raises(ClipError, match="truncated"):
        seen.extend(name for name, _ in clips.open_clip(path).frames())
    assert 8 <= len(seen) <= 20


def test_an_mp4_without_its_end_is_refused(tmp_path):
    path = write(tmp_path / "a.mp4", film((64, 48), 30))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ClipError, match="end is missing"):
        clips.open_clip(path)


# Writing


@pytest.mark.parametrize("size", [(64, 48), (65, 49)], ids=str)
def test_written_videos_are_playable_in_browsers(tmp_path, size):
    frames = film(size)
    with clips.VideoWriter(tmp_path / "overlay", size, Fraction(10)) as writer:
        for frame in frames:
            writer.add(frame)
    assert writer.path == tmp_path / "overlay.mp4"
    assert [path.name for path in tmp_path.iterdir()] == ["overlay.mp4"]
    with av.open(str(writer.path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
        assert stream.average_rate == 10
    content = writer.path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays before it has arrived
    for (_, picture), frame in zip(clips.open_clip(writer.path).frames(), frames, strict=True):
        np.testing.assert_allclose(np.asarray(picture)[40, 40].astype(int), frame[40, 40].astype(int), atol=6)


def test_without_h264_vp9_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "CODECS", frozenset({"libvpx-vp9"}))
    with clips.VideoWriter(tmp_path / "overlay", (65, 49), Fraction(10)) as writer:
        for frame in film((65, 49)):
            writer.add(frame)
    assert writer.path == tmp_path / "overlay.webm"
    assert clips.open_clip(writer.path).size == (66, 50)


def test_an_unfinished_video_leaves_no_file(tmp_path):
    def broken() -> None:
        with clips.VideoWriter(tmp_path / "overlay", (64, 48), Fraction(10)) as writer:
            writer.add(film((64, 48))[0])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert not list(tmp_path.iterdir())
