"""A run is a folder with its settings, metrics, status and checkpoints, which survive a kill and a full disk."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock, Timeout

from dinoviz.atomic_files import whole, writing
from training.config.base import ConfigError, shortened
from training.config.cli import KINDS
from training.runs import checkpoints
from training.runs import files as run_files
from training.runs.checkpoints import Checkpoint, CheckpointError
from training.runs.files import STATES, STEP, RunError

AT_WORK = ("starting", "running")
CLAIM = 10.0  # seconds to wait for a process that is starting the run, which takes milliseconds
# Process ids are reused, so the start time must agree too. psutil derives it from the clock, which may be corrected by
# a second or two.
SAME_START = 2.0


def root() -> Path:
    """The folder of all runs: $DINOVIZ_RUNS, or `runs` where the program was started."""
    return Path(os.environ.get("DINOVIZ_RUNS") or "runs")


_default_root = root  # for functions with an argument of that name


def is_name(name: str) -> bool:
    """Whether the name is valid for a run's folder on every system."""
    return bool(re.fullmatch(r"(?!\.)[A-Za-z0-9._-]{1,80}", name))


def check_name(name: str) -> str:
    """The name, if it is valid for a run's folder on every system; raises RunError otherwise."""
    if not is_name(name):
        raise RunError(
            f"{shortened(name)} is not a valid name of a run: use 1 to 80 letters, digits, dots, _ or -, not a "
            "dot first."
        )
    return name


class Run:
    """A run's folder, which one process writes and any process may read.

    config.json         settings, and the kind of run
    metrics.jsonl       one record of metrics per line
    status.json         state, step, steps, eta in seconds, heart beat, process
    log.txt             lines with the time
    output.txt          output of the process that the app started, see training.queue
    stop                exists if a stop is requested
    lock                see `claim`
    checkpoints/        see training.runs.checkpoints
    snapshots/, export/ attention and PCA of the teacher; the trained network in transformers' format

    Writing raises RunError if the file system refuses.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        return Path(os.path.realpath(self.folder)).name  # Path.resolve raises for a circular link

    def _writing(self) -> AbstractContextManager[None]:
        return writing(f"The run {self.name}", RunError)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @classmethod
    def create(cls, name: str, kind: str, config: dict, *, root: Path | None = None, state: str = "starting") -> Run:
        """Create a run in this state. Raises RunError for an existing or invalid name."""
        folder = (_default_root() if root is None else Path(root)) / check_name(name)
        run = cls(folder)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise RunError(f"There is already a run {name}: choose another name.") from None
        except OSError as error:
            raise RunError(f"The run {name} cannot be created: {error.strerror or error}.") from None
        try:
            with run._writing():
                (folder / "checkpoints").mkdir()
                (folder / "snapshots").mkdir()
                _write_json(folder / "config.json", {"kind": kind, **config}, sync=True)
            run.set_status(state)
        except RunError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return run

    @classmethod
    def open(cls, name_or_path: str | os.PathLike) -> Run:
        """The run of this name, or in this folder. Raises RunError, with a list of the runs, if there is none."""
        for folder in (root() / name_or_path, Path(name_or_path)):
            if _is_run(folder):
                return cls(folder)
        names = [run.name for run in list_runs()]
        known = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        there = f"the runs in {root()} are {known}" if names else f"there are no runs in {root()} yet"
        raise RunError(f"There is no run {name_or_path}; {there}.")

    @property
    def kind(self) -> str:
        """pretrain, finetune or probe."""
        return self._config()["kind"]

    @property
    def config(self) -> dict:
        """The settings of the run. Raises RunError if the file is damaged."""
        return {key: value for key, value in self._config().items() if key != "kind"}

    def set_config(self, config: dict) -> None:
        """Replace the settings of a run that has not started, for example because its images were copied."""
        with self._writing():
            _write_json(self.folder / "config.json", {"kind": self.kind, **config}, sync=True)

    def _config(self) -> dict:
        try:
            return run_files.read_config(self.folder)
        except RunError as error:
            raise RunError(f"The run {self.name} cannot be read: {error}") from None

    def problem(self) -> str | None:
        """The problem of the first damaged file, as a sentence without the run's name; None if the run is readable."""
        found = _config_problem(self.folder, *_stamp(self.folder / "config.json"))
        return found or self._status().get("problem")

    @property
    def export_folder(self) -> Path:
        """The folder of the trained network in transformers' format; it may not exist yet."""
        return self.folder / "export"

    def networks(self, *, snapshots: bool = False) -> list[Path]:
        """Folders that `dinoviz.load` opens: the run's once its network is exported, then its snapshots in order.

        Relative to the working folder if the run is, so that names are short.
        """
        folders = [self.folder, *(self.snapshots() if snapshots else [])]
        return [folder for folder in folders if run_files.is_file(folder / "export" / "config.json")]

    def snapshots(self) -> list[Path]:
        """The folders of its snapshots in order; other folders are ignored."""
        with suppress(OSError):
            found = [each for each in (self.folder / "snapshots").iterdir() if STEP.fullmatch(each.name)]
            return sorted(found, key=lambda each: (step_of(each), each.name))
        return []

    def log(self, text: str) -> None:
        """Append lines with the time to log.txt; errors of the file system are ignored."""
        lines = str(text).splitlines() or [""]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(OSError), run_files.appending(self.folder / "log.txt") as file:
            file.write("".join(f"{now} {line}\n" for line in lines).encode(errors="replace"))

    def add_metrics(self, record: dict) -> None:
        """Append a record to metrics.jsonl; numbers that are not finite become null."""
        line = json.dumps(_finite(record), allow_nan=False).encode()
        with self._writing(), run_files.appending(self.folder / "metrics.jsonl") as file:
            # A kill or a full disk may have left a partial line, which must stay separate.
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line + b"\n")

    def metrics(self) -> list[dict]:
        """The complete records of metrics.jsonl in order, up to MOST_RECORDS."""
        return [record for _, record in islice(self._records(run_files.MOST_METRICS), run_files.MOST_RECORDS)]

    def truncate_metrics(self, step: int) -> None:
        """Atomically drop the records after a step, which a run that resumes from there writes again."""
        kept = (line.rstrip(b"\n") + b"\n" for line, record in self._records() if (record.get("step") or 0) <= step)
        with self._writing():
            _write(self.folder / "metrics.jsonl", kept, sync=True)

    def _records(self, most: float = math.inf) -> Iterator[tuple[bytes, dict]]:
        with suppress(OSError), run_files.opened(self.folder / "metrics.jsonl") as file:
            for line in run_files.lines(file, most):
                if record := run_files.record(line):
                    yield line, record

    def set_status(self, state: str, **fields: Any) -> None:
        """Atomically write status.json: state, heart beat, process and `fields`.

        state: one of STATES.
        fields: step, steps, eta (seconds), message, spent (seconds of work, if these are limited, see
            training.queue); step, steps and spent keep their values if they are not given. `pid` is the process that
            does the work, by default this one.
        """
        if state not in STATES:
            raise ValueError(f"The state of a run must be one of {', '.join(STATES)}, not {state}.")
        pid = fields.pop("pid", os.getpid())
        missing = {"step", "steps", "spent"} - fields.keys()
        kept = {key: value for key, value in self._status().items() if key in missing}
        about = {"time": datetime.now(UTC).timestamp(), "pid": pid, "born": _born(pid), "host": socket.gethostname()}
        if fields.get("message"):
            fields["message"] = fields["message"][: run_files.MESSAGE]
        with self._writing():
            _write_json(self.folder / "status.json", _finite({"state": state, **kept, **fields, **about}))

    def status(self) -> dict:
        """The last status: state, step, steps, eta, time (UTC, seconds), pid, host, ...

        If it was written by a process of this machine that no longer exists, a running run has the state "died", and a
        queued one "stopped", because nothing will start it. The state is "unknown" if the file is missing or damaged;
        `problem` has the reason.
        """
        status = {"state": "unknown", **self._status()}
        queued = status["state"] == "queued"
        here = status.get("host") == socket.gethostname()
        if here and (queued or status["state"] in AT_WORK) and not _lives(status.get("pid"), status.get("born")):
            status["state"] = "stopped" if queued else "died"
        return status

    def at_work(self) -> bool:
        """Whether a process of this machine runs or starts it."""
        status = self.status()
        return status["state"] in AT_WORK and status.get("host") == socket.gethostname()

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Lock the run while its next process is decided: of two processes that find it free, one waits.

        Raises RunError if the other holds the lock too long, and if the folder was removed.
        """
        with self._writing():
            if not self.folder.is_dir():  # which FileLock would create
                raise RunError(f"The run in {self.folder} was removed.")
            try:
                lock = FileLock(self.folder / "lock", timeout=CLAIM).acquire()
            except Timeout:
                raise RunError(f"{self.name} is being started by another process.") from None
        with lock:
            yield

    def _status(self) -> dict:
        try:
            return run_files.read_status(self.folder)
        except RunError as error:
            return {"problem": str(error)}

    def request_stop(self) -> None:
        """Request a stop at the next step."""
        with self._writing():
            (self.folder / "stop").touch()

    def stop_requested(self) -> bool:
        """Whether a stop is requested."""
        return os.path.lexists(self.folder / "stop")

    def clear_stop(self) -> None:
        """Clear a stop request, as when a run is resumed."""
        with self._writing():
            (self.folder / "stop").unlink(missing_ok=True)

    def save_checkpoint(self, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict) -> None:
        """Atomically write a checkpoint, and delete all others except the good one before it.

        tensors: tensors by name, of each part (student, teacher, optimizer, ...); each part is a file.
        state: anything else that is needed to resume, as JSON.

        Raises RunError, with the last good checkpoint, which is unchanged, if it cannot be written.
        """
        try:
            checkpoints.save(self.folder / "checkpoints", step, tensors, state)
        except CheckpointError as error:
            last = checkpoints.newest(self.folder / "checkpoints")
            left = f"the last good one is of step {last.step}" if last else "there is no earlier one"
            raise RunError(
                f"The checkpoint of step {step} of run {self.name} cannot be written ({error}); {left}."
            ) from None

    def checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint with valid hashes, or None."""
        return checkpoints.newest(self.folder / "checkpoints", refused=self.log)


def list_runs(root: Path | None = None) -> list[Run]:
    """The runs in a folder, newest first; anything else in it is ignored."""
    folder = _default_root() if root is None else Path(root)
    try:
        runs = [Run(each) for each in folder.iterdir() if _is_run(each)]
    except OSError:
        return []
    return sorted(runs, key=lambda run: (-_made(run.folder), run.name))


def is_run_network(path: str) -> bool:
    """Whether a path is that of a run in `root`, or of one of its snapshots."""
    parts = Path(path).parts
    inside = parts[len(root().parts) :]
    if parts[: len(root().parts)] != root().parts or ".." in inside or not inside:
        return False
    name, *rest = inside
    snapshot = len(rest) == 2 and rest[0] == "snapshots" and STEP.fullmatch(rest[1])
    return bool((not rest or snapshot) and _is_run(root() / name))


def _is_run(folder: Path) -> bool:
    # A network in transformers' format has a config.json too. If they are not a file and a folder, the run is damaged.
    return os.path.lexists(folder / "config.json") and _is_folder(folder / "checkpoints")


def step_of(snapshot: Path) -> int:
    """The step of a folder in `Run.snapshots`."""
    return int(STEP.fullmatch(snapshot.name)[1])


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # an invalid name, or a folder that may not be entered
        return False


def _made(folder: Path) -> float:
    return _stamp(folder / "config.json")[0] / 1e9


def _stamp(path: Path) -> tuple[int, int]:
    """Modification time in nanoseconds and size of a file; zeros if there is none."""
    try:
        about = path.stat()
    except OSError:
        return 0, 0
    return about.st_mtime_ns, about.st_size


@lru_cache(maxsize=1024)  # the app lists the runs every second
def _config_problem(folder: Path, mtime_ns: int, size: int) -> str | None:
    try:
        config = run_files.read_config(folder)
        kind = config.pop("kind")
        if kind not in KINDS:
            return f"config.json is of a run of kind {kind!r}; the kinds are {', '.join(KINDS)}."
        # Another version of dinoviz may have had other settings; only known ones are validated.
        known = {field.name for field in dataclasses.fields(KINDS[kind])}
        values = KINDS[kind].renamed(config)
        KINDS[kind].from_dict({key: value for key, value in values.items() if key in known})
    except RunError as error:
        return str(error)
    except ConfigError as error:
        return f"config.json: {error}"
    return None


def _born(pid: int) -> float | None:
    """The start time of a process; None if it has ended."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _lives(pid: Any, born: Any) -> bool:
    now = _born(pid) if isinstance(pid, int) and pid > 0 else None
    return now is not None and (not isinstance(born, int | float) or abs(now - born) <= SAME_START)


def _finite(value: Any) -> Any:
    """The value with numpy and torch numbers as Python numbers, and NaN and infinity as None."""
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _write_json(path: Path, content: dict, *, sync: bool = False) -> None:
    _write(path, [(json.dumps(content, indent=2, default=str) + "\n").encode()], sync=sync)


def _write(path: Path, content: Iterable[bytes], *, sync: bool) -> None:
    with (
        checkpoints.removed_on_failure(path.with_name(f"{path.name}.part")),
        whole(path) as part,
        run_files.anew(part) as file,
    ):
        file.writelines(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
