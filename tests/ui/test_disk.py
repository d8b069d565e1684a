"""A full disk, a denied write, and a port in use: one sentence each."""

import asyncio
import resource
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import save_file

from dinoviz.errors import disk_error, status
from dinoviz.ui.page import Page
from dinoviz.ui.shared import ViewImage, user_errors
from dinoviz.ui.temporary_files import TemporaryFiles
from dinoviz.video.io import VideoWriter

NOISE = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
APP = Path(__file__).resolve().parents[2] / "app.py"


@contextmanager
def full_disk() -> Iterator[None]:
    """Files are limited to some bytes, so that larger ones fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_video(path: Path) -> None:
    with VideoWriter(path, (320, 240), Fraction(25)) as writer:
        for _ in range(10):
            writer.add(NOISE)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("noise", NOISE.tobytes())


WRITERS = {
    "bytes": lambda path: path.write_bytes(NOISE.tobytes()),
    "picture": lambda path: Image.fromarray(NOISE).save(path, "PNG"),
    "array": lambda path: np.save(path, NOISE),
    "weights": lambda path: save_file({"noise": NOISE}, path),
    "zip": write_zip,
    "video": write_video,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_recognised_for_every_writer(tmp_path, kind):
    with full_disk(), pytest.raises((OSError, SafetensorError)) as caught:
        WRITERS[kind](tmp_path / "file")
    assert "disk is full" in str(disk_error(caught.value))


def test_a_video_that_does_not_fit_leaves_nothing(tmp_path):
    with full_disk(), pytest.raises(OSError, match="large"):
        write_video(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_disk_errors_of_handlers_have_no_path(tmp_path):
    with full_disk(), pytest.raises(gr.Error, match="disk is full") as caught, user_errors():
        WRITERS["bytes"](tmp_path / "file")
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(gr.Error, match="Permission denied"), user_errors():
        raise PermissionError(13, "Permission denied", "/secret")
    with pytest.raises(FileNotFoundError), user_errors():  # a bug
        (tmp_path / "nothing").read_bytes()


def test_disk_errors_of_gradio_after_a_handler(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with Page(files=TemporaryFiles(parent=tmp_path)) as page:
        view, button = ViewImage(), gr.Button()
        button.click(lambda: Image.fromarray(NOISE), None, view)
    with full_disk(), pytest.raises(gr.Error, match="disk is full"):
        asyncio.run(page.process_api(0, []))


def test_a_command_on_a_full_disk_ends_in_one_line(tmp_path, capsys):
    with full_disk():
        assert status("dinoviz", lambda: WRITERS["bytes"](tmp_path / "file")) == 2
    assert capsys.readouterr().err.count("\n") == 1


def app(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, APP, *options], capture_output=True, text=True, timeout=60)


def test_a_port_in_use_ends_the_app_in_one_line():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ended = app("--port", str(port))
    assert ended.returncode == 2
    assert str(port) in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [("--port", "99999999"), ("--port", "0"), ("--host", "no such host")])
def test_a_wrong_address_ends_the_app(options):
    ended = app(*options)
    assert ended.returncode == 2
    assert options[1] in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
