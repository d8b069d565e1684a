"""Access: the operator's settings, and which browser may see which training run."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from training.runs.files import tail
from training.runs.limits import Limits
from training.runs.run import Run, RunError, is_name, is_run_network, list_runs, root

MOST_RUNS = 100  # that a page lists
# Larger models would fill a shared machine's memory and disk.
PUBLIC_MILLION_PARAMETERS = 310


def _default_cache_bytes() -> int:
    text = os.environ.get("DINOVIZ_CACHE_MB", "")
    return int(text) * 2**20 if text.isdigit() else _memory() // 8


def _temporary_bytes() -> int:
    text = os.environ.get("DINOVIZ_TEMP_MB", "")
    return int(text) * 2**20 if text.isdigit() else 0


def _default_job_bytes() -> int:
    # With the caches (a quarter of the memory together), the weights and the libraries, the sum stays below the whole.
    return _memory() // 3


def _memory() -> int:
    """Bytes of memory that this process may use: the machine's, or the container's limit."""
    total = psutil.virtual_memory().total
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(limit).read_text()))
    return total


@dataclass(frozen=True)
class Settings:
    """The operator's settings.

    public: other people than the owner of the machine can reach the page. train: whether the page can train.
    data_roots: folders of this machine that may be trained on. runs_at_once: how many; more wait in a queue.
    limits: of the runs on a public page. cache_bytes: of the feature cache. temporary_bytes: of the files on the disk;
    0: a share of what is free. job_bytes: that all running forward passes may take together; more wait.
    models_kept: by default the one of the bar and the two of the comparison.
    """

    public: bool = False
    train: bool = True
    data_roots: tuple[Path, ...] = ()
    runs_at_once: int = 1
    limits: Limits = field(default_factory=lambda: Limits.of(os.environ))
    cache_bytes: int = field(default_factory=_default_cache_bytes)
    temporary_bytes: int = field(default_factory=_temporary_bytes)
    job_bytes: int = field(default_factory=_default_job_bytes)
    models_kept: int = 3


def own(run: Run, token: str) -> None:
    """Record the browser that made the run, as a hash of its token."""
    (run.folder / "owner.txt").write_text(_digest(token), encoding="ascii")


def visible(public: bool, token: str) -> list[Run]:
    """The runs that a browser may see, newest first: on a public page only its own."""
    return [run for run in list_runs() if not public or _owns(token, run)][:MOST_RUNS]


def key(run: Run, public: bool) -> str:
    """The value that stands for a run on the page: its folder; on a public page its name, which shows no path."""
    return run.name if public else str(run.folder)


def opened(key: str | None, public: bool, token: str) -> Run:
    """The run with this `key`, if this browser may see it. Raises RunError."""
    folder = str(root() / key) if public and isinstance(key, str) and is_name(key) else key
    try:  # the folder of a run itself, not of a snapshot
        known = isinstance(folder, str) and is_run_network(folder) and Path(folder).parent == root()
    except OSError:  # longer than any path
        known = False
    if not known or (public and not _owns(token, Run(folder))):
        raise RunError("Choose a run first.")
    return Run(folder)


def _owns(token: str, run: Run) -> bool:
    """Whether the browser made the run; one without a token owns nothing, since all of those would be the same."""
    try:
        return bool(token) and tail(run.folder / "owner.txt", 65).decode() == _digest(token)
    except ValueError:
        return False


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
