"""`python -m dinoviz video`: masks, table and overlay, resumed runs, and refusals."""

import os
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dinoviz import mask_files, video
from dinoviz.commands import video as command
from dinoviz.video import io as clips
from tests.commands.running import contents, names, refused, run
from tests.video.test_io import film, write

# Odd in both sides.
SIZE, COUNT = (121, 97), 8
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path, coffee) -> Path:
    """Eight frames: a window of 121 x 97 pixels moves over a cup."""
    (tmp_path / "cup").mkdir()
    for i in range(COUNT):
        coffee.resize((200, 133)).crop((3 * i, i, 3 * i + SIZE[0], i + SIZE[1])).save(tmp_path / "cup" / f"{i:05d}.png")
    return tmp_path / "cup"


@pytest.fixture
def mask(tmp_path) -> Path:
    pixels = np.zeros(SIZE[::-1], np.uint8)
    pixels[20:70, 30:90] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def test_masks_overlay_and_areas_are_written(tiny_model, tiny_backbone, folder, mask, out, capsys):
    assert run("video", folder, "--mask", mask, "--out", out, *tiny_model) == 0
    assert names(out) == ["cup-areas.csv", *(f"cup-masks/{i:05d}.png" for i in range(COUNT)), "cup-overlay.mp4"]
    output = capsys.readouterr().out
    assert "layer 2 of 3" in output
    assert "8 frames done" in output
    expected = list(
        video.propagate(sorted(folder.iterdir()), mask_files.read_mask(mask), tiny_backbone, resolution=224)
    )  # fmt: skip
    lines = (out / "cup-areas.csv").read_text().splitlines()
    assert lines[0] == "frame,object 1 (pixels)"
    for tracked, line in zip(expected, lines[1:], strict=True):
        written = Image.open(out / "cup-masks" / f"{tracked.index:05d}.png")
        assert (written.mode, written.size) == ("L", SIZE)
        np.testing.assert_array_equal(np.asarray(written), tracked.mask * 255)
        assert line == f"{tracked.index:05d},{tracked.area[0]}"
    assert clips.open_clip(out / "cup-overlay.mp4").size == (122, 98)
    assert len(list(clips.open_clip(out / "cup-overlay.mp4").frames())) == COUNT


def test_frames_whose_names_are_not_utf8_are_in_the_table(tiny_model, folder, mask, out):
    (folder / "00007.png").rename(folder / os.fsdecode(b"\xff.png"))
    assert run("video", folder, "--mask", mask, "--out", out, *tiny_model) == 0
    assert r"\udcff," in (out / "cup-areas.csv").read_text()


def test_a_video_file_of_odd_size_works(tiny_model, tmp_path, mask, out):
    path = write(tmp_path / "film.webm", film(SIZE, 3), "libvpx-vp9")
    assert run("video", path, "--mask", mask, "--out", out, *tiny_model) == 0
    assert names(out) == ["film-areas.csv", *(f"film-masks/{i:06d}.png" for i in range(3)), "film-overlay.mp4"]
    assert Image.open(out / "film-masks" / "000002.png").size == SIZE
    with av.open(str(out / "film-overlay.mp4")) as container:
        assert container.streams.video[0].average_rate == 10


def test_several_objects_come_from_a_palette_and_go_to_one(tiny_model, folder, tmp_path, out):
    labels = np.zeros(SIZE[::-1], np.uint8)
    labels[10:50, 10:50], labels[40:90, 60:110] = 1, 2
    mask_files.write_mask(tmp_path / "two.png", labels, 2)
    assert run("video", folder, "--mask", tmp_path / "two.png", "--out", out, *tiny_model, "--every", "3") == 0
    assert names(out / "cup-masks") == ["00000.png", "00003.png", "00006.png"]
    assert Image.open(out / "cup-masks" / "00000.png").mode == "P"
    np.testing.assert_array_equal(mask_files.read_labels(out / "cup-masks" / "00000.png"), labels)
    assert (out / "cup-areas.csv").read_text().startswith("frame,object 1 (pixels),object 2 (pixels)\n00000,1600,2500")


@pytest.mark.parametrize("option", [["--published"], ["--layer", "3"], ["--radius", "1"], ["--temperature", "0.5"]])
def test_options_reach_the_propagation(tiny_model, tiny_backbone, folder, mask, out, option, capsys):
    run("video", folder, "--mask", mask, "--out", out, *tiny_model, *option, "--every", "4")
    settings = {
        "--published": video.PUBLISHED, "--layer": video.Settings(layers=(2,)), "--radius": video.Settings(radius=1),
        "--temperature": video.Settings(temperature=0.5),
    }[option[0]]  # fmt: skip
    frames = [folder / "00000.png", folder / "00004.png"]
    *_, last = video.propagate(frames, mask_files.read_mask(mask), tiny_backbone, resolution=224, settings=settings)
    np.testing.assert_array_equal(mask_files.read_labels(out / "cup-masks" / "00004.png"), last.mask)


# Interrupted


class Killed(BaseException):
    """Not caught by the program, like a kill -9."""


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, Killed])
def test_an_interrupted_run_resumes_and_ends_with_the_same_files(
    tiny_model, folder, mask, tmp_path, monkeypatch, capsys, interruption
):
    arguments = ["video", folder, "--mask", mask, *tiny_model, "--out"]
    run(*arguments, tmp_path / "whole")
    write_mask, written = mask_files.write_mask, []

    def interrupted(path: Path, *rest) -> None:
        if path.stem == "00005":
            raise interruption
        write_mask(path, *rest)

    monkeypatch.setattr(command, "SAVE_SECONDS", 0 if interruption is Killed else 1000)
    monkeypatch.setattr(mask_files, "write_mask", interrupted)
    if interruption is Killed:
        with pytest.raises(Killed):
            run(*arguments, tmp_path / "out")
    else:
        assert run(*arguments, tmp_path / "out") == 130
    assert (tmp_path / "out" / "cup-unfinished.npz").is_file()
    assert not (tmp_path / "out" / "cup-areas.csv").exists()

    monkeypatch.setattr(
        mask_files, "write_mask", lambda path, *rest: written.append(path.stem) or write_mask(path, *rest)
    )
    capsys.readouterr()
    assert run(*arguments, tmp_path / "out") == 0
    assert "resuming after" in capsys.readouterr().out
    assert written == ["00005", "00006", "00007"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_second_run_leaves_nothing_of_the_first(tiny_model, folder, mask, out):
    for every in (1, 4):
        assert run("video", folder, "--mask", mask, "--out", out, *tiny_model, "--every", str(every)) == 0
    assert names(out) == ["cup-areas.csv", "cup-masks/00000.png", "cup-masks/00004.png", "cup-overlay.mp4"]


def test_a_run_with_other_arguments_starts_again(tiny_model, folder, mask, out, monkeypatch, capsys):
    arguments = ["video", folder, "--mask", mask, "--out", out, *tiny_model]
    with monkeypatch.context() as patch:
        patch.setattr(command.csv, "writer", lambda file: _StopsAfter(file, 4))
        assert run(*arguments) == 130
    assert (out / "cup-unfinished.npz").is_file()
    capsys.readouterr()
    assert run(*arguments, "--every", "2") == 0
    output = capsys.readouterr().out
    assert "other arguments" in output
    assert "resuming" not in output
    assert names(out / "cup-masks") == [f"{i:05d}.png" for i in (0, 2, 4, 6)]


class _StopsAfter:
    """A csv writer during whose n-th row Ctrl-C is pressed."""

    def __init__(self, file, rows: int):
        self.left = rows

    def writerow(self, row: list) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_killed_program_can_be_resumed(tiny_model, folder, mask, tmp_path):
    arguments = ["video", str(folder), "--mask", str(mask), *tiny_model, "--out"]
    kill = (
        "import os, signal, sys\n"
        "from dinoviz import __main__, mask_files\n"
        "from dinoviz.commands import video\n"
        "video.SAVE_SECONDS, write = 0, mask_files.write_mask\n"
        "def mortal(path, *rest):\n"
        "    write(path, *rest)\n"
        "    path.stem == '00004' and os.kill(os.getpid(), signal.SIGKILL)\n"
        "mask_files.write_mask = mortal\n"
        "__main__.main(sys.argv[1:])\n"
    )
    program = subprocess.run([sys.executable, "-c", kill, *arguments, str(tmp_path / "out")], cwd=ROOT)
    assert program.returncode == -9
    for out in ("out", "whole"):
        assert run(*arguments, tmp_path / out) == 0
    assert {k: v for k, v in contents(tmp_path / "out").items() if "part" not in k} == contents(tmp_path / "whole")


# Refusals


def test_masks_of_the_user_are_not_overwritten(tiny_model, folder, mask, capsys):
    theirs = folder.with_name("cup-masks")
    theirs.mkdir()
    (theirs / "00000.png").write_bytes(mask.read_bytes())
    line = refused(capsys, "video", folder, "--mask", theirs / "00000.png", "--out", folder.parent, *tiny_model)
    assert f"{theirs} " in line
    assert (theirs / "00000.png").read_bytes() == mask.read_bytes()


def test_a_broken_frame_is_reported_and_the_others_are_processed(tiny_model, folder, mask, out, capsys):
    (folder / "00003.png").write_text("broken")
    assert run("video", folder, "--mask", mask, "--out", out, *tiny_model) == 2
    captured = capsys.readouterr()
    assert "00003.png: " in captured.err
    assert "7 frames done" in captured.out
    assert names(out / "cup-masks") == [f"{i:05d}.png" for i in (0, 1, 2, 4, 5, 6, 7)]


def test_a_frame_of_another_size_ends_the_run_after_those_before_it(tiny_model, folder, mask, out, capsys):
    Image.new("RGB", (60, 60)).save(folder / "00004.png")
    assert run("video", folder, "--mask", mask, "--out", out, *tiny_model) == 2
    captured = capsys.readouterr()
    assert re.search("Frame 4 .* 60 x 60 .* 121 x 97", captured.err)
    assert names(out) == ["cup-areas.csv", *(f"cup-masks/{i:05d}.png" for i in range(4)), "cup-overlay.mp4"]


def test_a_truncated_video_is_processed_up_to_its_end(tiny_model, tmp_path, mask, out, capsys):
    random = np.random.default_rng(0)
    frames = [random.integers(0, 255, (*SIZE[::-1], 3), dtype=np.uint8) for _ in range(10)]
    path = write(tmp_path / "film.avi", frames, "mjpeg", "yuvj420p")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run("video", path, "--mask", mask, "--out", out, *tiny_model) == 2
    assert "truncated" in capsys.readouterr().err
    assert len(names(out / "film-masks")) in (3, 4, 5)
    assert (out / "film-overlay.mp4").is_file()


def test_a_file_that_is_not_a_video_is_refused(tiny_model, tmp_path, mask, out, capsys):
    (tmp_path / "a.mp4").write_text("no video")
    line = refused(capsys, "video", tmp_path / "a.mp4", "--mask", mask, "--out", out, *tiny_model)
    assert "a.mp4: " in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("pixels", "named"),
    [
        (np.zeros(SIZE[::-1], np.uint8), "empty"),
        (np.full(SIZE[::-1], 255, np.uint8), "whole frame"),
        (np.eye(30, dtype=np.uint8), "30 x 30 .* 121 x 97"),
    ],
    ids=["empty", "full", "size"],
)
def test_a_mask_that_cannot_be_used_is_refused(tiny_model, folder, tmp_path, out, capsys, pixels, named):
    Image.fromarray(pixels).save(tmp_path / "bad.png")
    line = refused(capsys, "video", folder, "--mask", tmp_path / "bad.png", "--out", out, *tiny_model)
    assert re.search(named, line)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--every", "0"], "--every .* not 0"),
        (["--radius", "-1"], "radius .* not -1"),
        (["--temperature", "0"], "temperature .* not 0.0"),
        (["--opacity", "2"], "opacity .* 2.0"),
        (["--layer", "4"], "1 to 3, not 4"),
        (["--resolution", "20"], "32 to 1792, not 20"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_is_refused_in_one_line(tiny_model, folder, mask, out, capsys, options, named):
    assert re.search(named, refused(capsys, "video", folder, "--mask", mask, "--out", out, *tiny_model, *options))
