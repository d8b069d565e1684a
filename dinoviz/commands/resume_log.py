"""A log on disk of what a long command has done, to resume after Ctrl-C or kill -9."""

from __future__ import annotations

import json
from pathlib import Path


class ResumeLog:
    """Entries by key in a file, one line of JSON each; only the positions of the lines are in memory.

    The first line identifies the run. Each line is written at once, and a truncated last line is ignored, so that all
    entries are complete. A context manager: the file stays for the next run, unless `finish` was called.
    """

    def __init__(self, path: Path, about: dict):
        """Open or start the log; `about` must be equal to that of the earlier run to resume it."""
        self.path = path
        self.stale = self.resumed = False  # whether the file was of another run, or of this one
        self._lines: dict[str, int] = {}
        head = json.dumps(about, sort_keys=True).encode() + b"\n"
        path.touch()
        self._file = path.open("r+b")
        if self._file.readline() == head:
            self.resumed = True
            self._read()
        else:
            self.stale = path.stat().st_size > 0
            self._file.seek(0)
            self._file.truncate()
            self._append(head)

    def __enter__(self) -> ResumeLog:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._file.close()

    def add(self, key: str, entry: dict) -> None:
        """Add or replace the entry of `key`."""
        self._lines[key] = self._append(json.dumps([key, entry]).encode() + b"\n")

    def get(self, key: str) -> dict | None:
        """The entry of `key`, or None."""
        if key not in self._lines:
            return None
        self._file.seek(self._lines[key])
        return json.loads(self._file.readline())[1]

    def finish(self) -> None:
        """Delete the log at the end of the run."""
        self._file.close()
        self.path.unlink()

    def _append(self, line: bytes) -> int:
        at = self._file.seek(0, 2)
        self._file.write(line)
        self._file.flush()
        return at

    def _read(self) -> None:
        at = self._file.tell()
        for line in self._file:
            try:
                key, entry = json.loads(line)
            except (ValueError, TypeError, RecursionError):  # a truncated or damaged line
                break
            if not line.endswith(b"\n") or not isinstance(key, str) or not isinstance(entry, dict):
                break
            self._lines[key] = at
            at += len(line)
        self._file.seek(at)
        self._file.truncate()
