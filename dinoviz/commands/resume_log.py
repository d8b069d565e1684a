"""What a long command has done, so that it goes on where it was interrupted, by Ctrl-C or by kill -9."""

from __future__ import annotations

import json
from pathlib import Path


class Journal:
    """Entries by key on disk, a line of JSON each; only where they begin is kept in memory.

    The first line says of what run it is. Each line is handed to the system as a whole, and one that was cut off is
    forgotten, so what is in it is true. A context manager: it stays for the next run, unless `finish` was called.
    """

    def __init__(self, path: Path, about: dict):
        """about: all that must be the same for a run to go on, as JSON holds it."""
        self.path = path
        self.stale = self.resumed = False  # whether there was one of another run, or of this
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

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._file.close()

    def add(self, key: str, entry: dict) -> None:
        """Remember what came of `key`, instead of what was remembered before."""
        self._lines[key] = self._append(json.dumps([key, entry]).encode() + b"\n")

    def get(self, key: str) -> dict | None:
        """What came of `key`, or None."""
        if key not in self._lines:
            return None
        self._file.seek(self._lines[key])
        return json.loads(self._file.readline())[1]

    def finish(self) -> None:
        """The run is through: there is nothing to go on with."""
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
            except (ValueError, TypeError, RecursionError):  # half a line, or what no run wrote
                break
            if not line.endswith(b"\n") or not isinstance(key, str) or not isinstance(entry, dict):
                break
            self._lines[key] = at
            at += len(line)
        self._file.seek(at)
        self._file.truncate()
