"""The records of a run's metrics.jsonl, read while the file grows."""

from __future__ import annotations

import math
import os
import sys
import threading
from array import array
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from training.runs import files as run_files
from training.runs.run import Run

CACHED_RUNS = 64
MOST_NAMES = 256  # of different numbers in one run's records


@dataclass
class Column:
    """One number of a run over time: step, epoch and value, each (n,) float64; NaN where it is missing."""

    step: np.ndarray
    epoch: np.ndarray
    value: np.ndarray


class _MetricsLog:
    """A metrics.jsonl that grows: each record is read once."""

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._records: list[dict] = []
        # By key, as arrays: collecting a column from the records of a long run would take a second.
        self._columns: defaultdict[str, tuple[array, array, array]] = defaultdict(
            lambda: (array("d"), array("d"), array("d"))
        )
        self._stamp, self._read, self._last = None, 0, b""

    def records(self) -> list[dict]:
        with self._lock:
            self._update()
            return list(self._records)

    def columns(self) -> dict[str, Column]:
        with self._lock:
            self._update()
            return {key: Column(*map(np.array, column)) for key, column in self._columns.items()}

    def _update(self) -> None:
        try:
            with run_files.opened(self._path) as file:
                status = os.fstat(file.fileno())
                if self._stamp != (status.st_mtime_ns, status.st_size):
                    self._read_on(file)
                    self._stamp = status.st_mtime_ns, status.st_size
        except OSError:  # no record yet, or the file is gone
            self._forget()

    def _read_on(self, file: BinaryIO) -> None:
        # A resumed run drops its last records, and another run may have the folder now: then the line that was read
        # last is not at its place any more.
        file.seek(self._read - len(self._last))
        if file.read(len(self._last)) != self._last:
            self._forget()
            file.seek(0)
        for line in run_files.lines(file, run_files.MOST_METRICS - self._read):
            whole = line.endswith(b"\n")
            if not whole and len(line) < run_files.LONGEST_LINE:  # its end is not written yet
                return
            if whole and (record := run_files.record(line)) and len(self._records) < run_files.MOST_RECORDS:
                self._add(record)
            self._read += len(line)
            self._last = line

    def _add(self, record: dict) -> None:
        self._records.append({sys.intern(key): value for key, value in record.items()})
        step, epoch = number(record.get("step")), number(record.get("epoch"))
        for key, value in record.items():
            if key not in self._columns and len(self._columns) >= MOST_NAMES:
                continue
            for values, entry in zip(self._columns[key], (step, epoch, number(value)), strict=True):
                values.append(entry)


@lru_cache(maxsize=CACHED_RUNS)
def _log_at(path: Path) -> _MetricsLog:
    return _MetricsLog(path)


def _log_of(run: Run) -> _MetricsLog:
    return _log_at((run.folder / "metrics.jsonl").absolute())


def records(run: Run) -> list[dict]:
    """All complete records of a run, as `Run.metrics`; reads only what was added since the last call."""
    return _log_of(run).records()


def columns(run: Run) -> dict[str, Column]:
    """The same by key; a column has the records with its key."""
    return _log_of(run).columns()


def number(value) -> float:
    """The value as a float; NaN for anything that is not a number."""
    return float(value) if isinstance(value, int | float) else math.nan
