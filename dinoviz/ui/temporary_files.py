"""Temporary files: uploads, and the files that the page makes of them.

All are in one folder of this process, which Gradio uses too. A file belongs to the session that uploaded or made it,
and no other session can use it as an input. Their size is bounded for each client and in all; they are removed by
age, after their session ended, and when the app exits.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from gradio.context import LocalContext
from gradio.utils import get_upload_folder

from dinoviz.errors import DinovizError

PREFIX = "dinoviz-"
ALIVE = ".alive"  # locked while the process that owns the folder lives
SHARED, SESSIONS, UPLOADS = "shared", "sessions", "uploads"
MAX_AGE = 6 * 3600
# Seconds after a page was left: a laptop that sleeps reconnects as the same session, and must not lose its pictures.
GRACE = {True: 120, False: 3600}  # by whether the page is public
SWEEP_EVERY = 30
IN_USE = 60  # files written or used in the last minute are not removed for space
GIGABYTE = 2**30


class NotYours(DinovizError):
    """A file that is not of this session; the message does not reveal whether it exists."""


class TooMuch(DinovizError):
    """An upload beyond the bound of one client, or of all."""


@dataclass
class Known:
    """A file that may be an input. owners: sessions; none for an upload that was not used yet."""

    owners: set[str] = field(default_factory=set)
    client: str = ""
    size: int = 0
    used: float = field(default_factory=time.time)


class TemporaryFiles:
    """The folder of this process, and which session may use which file in it.

    Args:
        public: whether strangers use the page.
        total: bytes of all files; 0: a quarter of the free space, at most 8 GB.
        client: bytes of the uploads of one network address; 0: by `total` and `public`.
        parent: where the folder is made, by default the system's folder for temporary files.
    """

    def __init__(self, *, public: bool = False, total: int = 0, client: int = 0, parent: Path | None = None):
        parent = Path(parent or tempfile.gettempdir())
        remove_dead(parent)
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).resolve()
        self._alive = FileLock(self.folder / ALIVE)
        self._alive.acquire()
        self.total = total or min(8 * GIGABYTE, shutil.disk_usage(self.folder).free // 4)
        self.client = client or (min(GIGABYTE, self.total // 4) if public else self.total)
        self.grace = GRACE[public]
        self._known: dict[str, Known] = {}
        self._shared: set[str] = set()
        self._coming: dict[str, int] = {}  # bytes of uploads under way, by client
        self._connections: dict[str, int] = {}
        self._left: dict[str, float] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        for name in (SHARED, SESSIONS, UPLOADS):
            (self.folder / name).mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(self.folder)
        atexit.register(self.close)
        threading.Thread(target=self._keep_sweeping, daemon=True).start()

    def close(self) -> None:
        """Remove everything."""
        if not self._closed.is_set():
            self._closed.set()
            atexit.unregister(self.close)
            shutil.rmtree(self.folder, ignore_errors=True)
            self._alive.release()

    def share(self, path: str | Path) -> str:
        """Copy a file for everybody to use, as long as the app runs; returns the copy's path."""
        copy = shared_copy(path)
        self._shared.add(copy)
        return copy

    def share_all(self) -> None:
        """Let everybody use the present files: Gradio's copies of the page's first values and examples."""
        self._shared |= {path for path, _, _ in self._files()}

    def own(self, path: str, session: str | None) -> str:
        """The path itself, if the session may use it. Raises NotYours.

        Paths are compared with those that were handed out before the disk is read, so that the answer to any other
        path is the same whether it exists or not.

        Args:
            path: of an input.
            session: None for a client without one, which may use uploads that no session has used.
        """
        if path in self._shared:
            return path
        with self._lock:
            known = self._known.get(path)
            if known is None or (known.owners and (session or "") not in known.owners):
                raise NotYours("This file was not uploaded in this session: upload it first.")
            if session:
                known.owners.add(session)
            known.used = time.time()
        try:
            regular = stat.S_ISREG(os.lstat(path).st_mode)
        except OSError:
            regular = False
        if not regular:
            raise NotYours("This file is no longer here: upload it again.")
        return path

    def made(self, paths: Iterable[str], session: str | None) -> None:
        """Let the session use the files that were made for it. Paths outside the folder are ignored."""
        inside = f"{self.folder}{os.sep}"
        with self._lock:
            for path in paths:
                if path.startswith(inside) and path not in self._shared:
                    self._known.setdefault(path, Known()).owners.add(session or "")

    @contextmanager
    def upload(self, client: str, size: int) -> Iterator[Path]:
        """An empty folder for an upload, removed if that fails. Raises TooMuch.

        The folder's name is a secret of 128 bits. Gradio's is a hash of the content, which is the same for everybody
        who uploads the same file, and so can be guessed.

        Args:
            client: network address.
            size: bytes that the client declared.
        """
        with self._lock:
            present = sum(known.size for known in self._known.values() if known.client == client)
            coming = self._coming.get(client, 0)
            if present + coming + size > self.client:
                raise TooMuch(
                    f"Uploads of one visitor may have at most {self.client / 1e6:.0f} MB; yours have "
                    f"{(present + coming) / 1e6:.0f} MB already, which are removed after a while."
                )
            if sum(self._coming.values()) + size > self.total:
                raise TooMuch("Too many uploads at once: try again in a minute.")
            self._coming[client] = coming + size
        folder = self.folder / UPLOADS / secrets.token_hex(16)
        folder.mkdir()
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            with self._lock:
                self._coming[client] -= size
                if not self._coming[client]:
                    del self._coming[client]

    def uploaded(self, paths: Iterable[str], client: str) -> None:
        """Record uploads. They belong to the first session that uses them, which has to know the secret paths."""
        with self._lock:
            for path in paths:
                self._known[path] = Known(client=client, size=Path(path).stat().st_size)
        if self._size() > self.total:
            self.sweep()

    def opened(self, session: str) -> None:
        """Record that a page of this session is connected."""
        with self._lock:
            self._connections[session] = self._connections.get(session, 0) + 1
            self._left.pop(session, None)

    def left(self, session: str) -> None:
        """Record that a page of this session was left; its files are removed later, unless it reconnects."""
        with self._lock:
            self._connections[session] = self._connections.get(session, 1) - 1
            if self._connections[session] <= 0:
                del self._connections[session]
                self._left[session] = time.time()

    def sweep(self) -> None:
        """Remove old files, files of sessions that ended, and beyond the bound the least recently used ones."""
        now = time.time()
        with self._lock:
            ended = [session for session, when in self._left.items() if now - when > self.grace]
            for session in ended:
                del self._left[session]
            self._forget(ended)
        for session in ended:
            shutil.rmtree(_folder_of(self.folder, session), ignore_errors=True)
        files = sorted((self._used(path, written), size, path) for path, size, written in self._files())
        excess = sum(size for _, size, _ in files) - self.total
        for used, size, path in files:
            if path in self._shared:
                continue
            if now - used > MAX_AGE or (excess > 0 and now - used > IN_USE):
                self._remove(path)
                excess -= size
        self._remove_empty_folders(now)

    def _forget(self, sessions: Iterable[str]) -> None:
        """Remove the files that belong only to these sessions; called with the lock held."""
        gone = set(sessions)
        for path, known in list(self._known.items()):
            if known.owners and known.owners <= gone:
                del self._known[path]
                _unlink(path)
            else:
                known.owners -= gone

    def _remove(self, path: str) -> None:
        with self._lock:
            self._known.pop(path, None)
        _unlink(path)

    def _used(self, path: str, written: float) -> float:
        known = self._known.get(path)
        return max(written, known.used) if known else written

    def _files(self) -> Iterator[tuple[str, int, float]]:
        """Yield (path, bytes, time written) of all files, without those that vanish meanwhile."""
        for folder, _, names in os.walk(self.folder):
            for name in names:
                if name == ALIVE:
                    continue
                with suppress(OSError):
                    path = os.path.join(folder, name)  # noqa: PTH118 (a walk over thousands of files)
                    status = os.lstat(path)
                    yield path, status.st_size, status.st_mtime

    def _size(self) -> int:
        return sum(size for _, size, _ in self._files())

    def _remove_empty_folders(self, now: float) -> None:
        for folder, _, _ in os.walk(self.folder, topdown=False):
            if Path(folder) != self.folder and Path(folder).parent != self.folder:
                with suppress(OSError):  # it is not empty
                    if now - os.lstat(folder).st_mtime > IN_USE:
                        Path(folder).rmdir()

    def _keep_sweeping(self) -> None:
        while not self._closed.wait(SWEEP_EVERY):
            self.sweep()


def shared_copy(path: str | Path) -> str:
    """Copy a file once to where it may be served; returns the copy's path, which shows no folder of this machine."""
    copy = Path(get_upload_folder()) / SHARED / Path(path).name
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return str(copy)


def session_folder() -> Path:
    """The folder for files that are made for the running request: its session's, or the shared one without a request.

    Also right in the threads of jobs, which run in the context of the request that started them.
    """
    request = LocalContext.request.get(None)
    session = getattr(request, "session_hash", None)
    files = getattr(LocalContext.blocks.get(None), "files", None)  # of the page that is running
    root = files.folder if files else Path(get_upload_folder())
    folder = _folder_of(root, session) if session else root / SHARED
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fresh_folder() -> Path:
    """A new empty folder in the session's."""
    return Path(tempfile.mkdtemp(dir=session_folder()))


def remove_dead(parent: Path) -> None:
    """Remove the folders of processes that were killed."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):
            status = os.lstat(folder)
            mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
            # A folder that was just made is not locked yet.
            if stat.S_ISDIR(status.st_mode) and mine and time.time() - status.st_mtime > IN_USE:
                with FileLock(folder / ALIVE, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)


def _folder_of(root: Path, session: str) -> Path:
    # A client chooses the name of its session, which must not become a path.
    return root / SESSIONS / hashlib.sha256(session.encode(errors="replace")).hexdigest()[:32]


def _unlink(path: str) -> None:
    with suppress(OSError):
        Path(path).unlink()
