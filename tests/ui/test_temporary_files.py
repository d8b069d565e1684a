"""Temporary files: their owners, their bounds, and their removal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dinoviz.ui import temporary_files
from dinoviz.ui.temporary_files import MAX_AGE, NotYours, TemporaryFiles, TooMuch, remove_dead


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    files = TemporaryFiles(total=10_000, client=6_000, parent=tmp_path)
    yield files
    files.close()


def uploaded(files: TemporaryFiles, client: str, size: int, name: str = "a.png") -> str:
    with files.upload(client, size) as folder:
        path = folder / name
        path.write_bytes(b"x" * size)
        files.uploaded([str(path)], client)
    return str(path)


def made(files: TemporaryFiles, session: str) -> Path:
    """A result in the folder of the session."""
    folder = temporary_files._folder_of(files.folder, session)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "result.zip"
    path.write_bytes(b"x" * 100)
    files.made([str(path)], session)
    return path


def aged(path: str | Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_other_users_of_the_machine_cannot_read_the_folder(files):
    assert files.folder.stat().st_mode & 0o077 == 0


def test_an_upload_belongs_to_the_session_that_uses_it_first(files):
    path = uploaded(files, "1.2.3.4", 10)
    assert files.own(path, "first") == path
    assert files.own(path, "first") == path
    for other in ("second", None):
        with pytest.raises(NotYours):
            files.own(path, other)


def test_another_spelling_of_the_path_is_refused(files):
    path = Path(uploaded(files, "1.2.3.4", 10))
    for same in (f"{path.parent}/./{path.name}", f"{path.parent}/../{path.parent.name}/{path.name}", f"/{path}"):
        with pytest.raises(NotYours):
            files.own(same, "first")


def test_an_upload_that_was_replaced_by_a_link_is_refused(files, tmp_path):
    path = Path(uploaded(files, "1.2.3.4", 10))
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(NotYours):
        files.own(str(path), "first")


def test_the_uploads_of_each_client_are_bounded(files):
    uploaded(files, "1.1.1.1", 5_000)
    with pytest.raises(TooMuch), files.upload("1.1.1.1", 2_000):
        raise AssertionError("it was accepted")
    uploaded(files, "2.2.2.2", 2_000)


def test_uploads_under_way_count(files):
    with files.upload("1.1.1.1", 5_000), pytest.raises(TooMuch), files.upload("1.1.1.1", 5_000):
        raise AssertionError("it was accepted")
    uploaded(files, "1.1.1.1", 5_000)


def test_beyond_the_bound_the_least_recently_used_are_removed(files):
    old, newer, newest = (uploaded(files, f"client {i}", 4_000) for i in range(3))
    now = time.time()
    for path, age in ((old, 900), (newer, 600), (newest, 300)):
        aged(path, age)
        files._known[path].used = now - age
    files.own(old, "session")  # used just now
    files.sweep()
    assert Path(old).exists()
    assert not Path(newer).exists()
    assert Path(newest).exists()
    with pytest.raises(NotYours):
        files.own(newer, "session")


def test_old_files_are_removed_unless_in_use_or_shared(files, tmp_path):
    example = tmp_path / "example.png"
    example.write_bytes(b"x")
    example = files.share(example)
    unused, used = uploaded(files, "a", 10), uploaded(files, "b", 10)
    stray = files.folder / "stray.jpg"  # written by a library
    stray.write_bytes(b"x")
    for path in (example, unused, used, stray):
        aged(path, MAX_AGE + 60)
    files._known[unused].used = time.time() - MAX_AGE - 60
    files.own(used, "session")
    files.sweep()
    assert [Path(path).exists() for path in (example, unused, used, stray)] == [True, False, True, False]


def test_files_of_an_ended_session_are_removed(files):
    gone, back, both = made(files, "gone"), made(files, "back"), uploaded(files, "a", 10)
    files.own(both, "gone")
    files.made([both], "back")
    for session in ("gone", "back"):
        files.opened(session)
        files.left(session)
    files.sweep()
    assert gone.exists()
    files.opened("back")
    files._left["gone"] -= files.grace + 1
    files.sweep()
    assert not gone.exists()
    assert back.exists()
    assert Path(both).exists()
    files.own(both, "back")


def test_a_session_ends_with_its_last_page(files):
    result = made(files, "session")
    files.opened("session")
    files.opened("session")
    files.left("session")
    files.sweep()
    assert result.exists()
    files.left("session")
    files._left["session"] -= files.grace + 1
    files.sweep()
    assert not result.exists()


def test_the_folder_of_a_killed_process_is_removed_by_the_next(files, tmp_path):
    dead = tmp_path / "dinoviz-dead"
    dead.mkdir()
    (dead / "upload.png").write_bytes(b"x")
    young = tmp_path / "dinoviz-young"
    young.mkdir()
    aged(dead, 3600)
    aged(files.folder, 3600)  # of a running process
    remove_dead(tmp_path)
    assert not dead.exists()
    assert young.exists()
    assert files.folder.exists()


def test_nothing_is_left_after_sigterm(tmp_path):
    code = (
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        "from dinoviz.ui.temporary_files import TemporaryFiles\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"  # as app.py does
        f"files = TemporaryFiles(parent=Path({str(tmp_path)!r}))\n"
        "(files.folder / 'x').write_text('x')\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"ready\n"
        assert list(tmp_path.glob("dinoviz-*/x"))
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    assert not list(tmp_path.iterdir())
