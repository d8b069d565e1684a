"""A run is a folder: what was asked for, what was measured, and checkpoints that survive a kill and a full disk."""

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
CLAIM = 10.0  # seconds to wait for who is just starting the run, which takes milliseconds
# Process ids are used again: another process has another start. psutil derives it from the clock, which may be set
# right by a second or two.
SAME_START = 2.0


def root() -> Path:
    """The folder of all runs: $DINOVIZ_RUNS, or `runs` where the program was started."""
    return Path(os.environ.get("DINOVIZ_RUNS") or "runs")


_default_root = root  # where an argument has its name


def is_name(name: str) -> bool:
    """Whether it can be a run's folder on every system."""
    return bool(re.fullmatch(r"(?!\.)[A-Za-z0-9._-]{1,80}", name))


def check_name(name: str) -> str:
    """The name, if it can be a run's folder on every system; raises RunError otherwise."""
    if not is_name(name):
        raise RunError(
            f"{shortened(name)} cannot be a run's name: it needs 1 to 80 letters, digits, dots, _ or -, and "
            "no dot first."
        )
    return name


class Run:
    """A run's folder, which one process writes and any may read.

    config.json         what was asked for, and the kind of run
    metrics.jsonl       a record a line, as they come
    status.json         state, step, steps, eta in seconds, heart beat, process
    log.txt             lines with the time
    output.txt          what the process of a run that the app started printed, see training.queue
    stop                is there when somebody asked the run to end at its next step
    lock                see `claim`
    checkpoints/        see training.runs.checkpoints
    snapshots/, export/ what others put there: pictures of the teacher, and the teacher in transformers' format

    Writing raises RunError with one sentence where the file system refuses.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        return Path(os.path.realpath(self.folder)).name  # pathlib's own raises for a link that leads to itself

    def _writing(self) -> AbstractContextManager[None]:
        return writing(f"The run {self.name}", RunError)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @classmethod
    def create(cls, name: str, kind: str, config: dict, *, root: Path | None = None, state: str = "starting") -> Run:
        """A new run in this state. Raises RunError if there is one of this name, or for a bad name."""
        folder = (_default_root() if root is None else Path(root)) / check_name(name)
        run = cls(folder)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise RunError(f"There is already a run {name}; choose another name.") from None
        except OSError as error:
            raise RunError(f"The run {name} cannot be made: {error.strerror or error}.") from None
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
        """The run of this name, or in this folder. Raises RunError, which lists the runs there are."""
        for folder in (root() / name_or_path, Path(name_or_path)):
            if _is_run(folder):
                return cls(folder)
        names = [run.name for run in list_runs()]
        known = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        there = f"the runs in {root()} are {known}" if names else f"there are none in {root()} yet"
        raise RunError(f"There is no run {name_or_path}; {there}.")

    @property
    def kind(self) -> str:
        """What sort of run this is: pretrain, finetune, ..."""
        return self._config()["kind"]

    @property
    def config(self) -> dict:
        """What `create` was given. Raises RunError if the file is damaged."""
        return {key: value for key, value in self._config().items() if key != "kind"}

    def set_config(self, config: dict) -> None:
        """Replace what was asked for, in a run that has not begun: its images were brought into its folder, say."""
        with self._writing():
            _write_json(self.folder / "config.json", {"kind": self.kind, **config}, sync=True)

    def _config(self) -> dict:
        try:
            return run_files.read_config(self.folder)
        except RunError as error:
            raise RunError(f"The run {self.name} cannot be read: {error}") from None

    def problem(self) -> str | None:
        """Why the run cannot be shown, as a sentence without its name: the one file that says so; None if it can."""
        found = _config_problem(self.folder, *_stamp(self.folder / "config.json"))
        return found or self._status().get("problem")

    @property
    def export_folder(self) -> Path:
        """Where the trained network goes in transformers' format; it need not exist."""
        return self.folder / "export"

    def networks(self, *, snapshots: bool = False) -> list[Path]:
        """Folders that `dinoviz.load` opens: its own once its network was exported, then its snapshots in order.

        Relative to where the program was started if the run is, so that names stay short.
        """
        folders = [self.folder, *(self.snapshots() if snapshots else [])]
        return [folder for folder in folders if run_files.is_file(folder / "export" / "config.json")]

    def snapshots(self) -> list[Path]:
        """The folders of its snapshots in order; what has the name of no step is passed over."""
        with suppress(OSError):
            found = [each for each in (self.folder / "snapshots").iterdir() if STEP.fullmatch(each.name)]
            return sorted(found, key=lambda each: (step_of(each), each.name))
        return []

    def log(self, text: str) -> None:
        """Add lines with the time to log.txt; a log that cannot be written stops nothing."""
        lines = str(text).splitlines() or [""]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(OSError), run_files.appending(self.folder / "log.txt") as file:
            file.write("".join(f"{now} {line}\n" for line in lines).encode(errors="replace"))

    def add_metrics(self, record: dict) -> None:
        """Add a record to metrics.jsonl; what is not a finite number becomes null."""
        line = json.dumps(_finite(record), allow_nan=False).encode()
        with self._writing(), run_files.appending(self.folder / "metrics.jsonl") as file:
            # A kill or a full disk may have left half a line, which must stay one by itself.
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line + b"\n")

    def metrics(self) -> list[dict]:
        """The whole records of metrics.jsonl in the order in which they were added, as many as are read of any."""
        return [record for _, record in islice(self._records(run_files.MOST_METRICS), run_files.MOST_RECORDS)]

    def truncate_metrics(self, step: int) -> None:
        """Drop the records after a step, in one go: a run that is resumed from there writes them again."""
        kept = (line.rstrip(b"\n") + b"\n" for line, record in self._records() if (record.get("step") or 0) <= step)
        with self._writing():
            _write(self.folder / "metrics.jsonl", kept, sync=True)

    def _records(self, most: float = math.inf) -> Iterator[tuple[bytes, dict]]:
        with suppress(OSError), run_files.opened(self.folder / "metrics.jsonl") as file:
            for line in run_files.lines(file, most):
                if record := run_files.record(line):
                    yield line, record

    def set_status(self, state: str, **fields: Any) -> None:
        """Write status.json whole: the state, a heart beat, the process, and `fields`.

        state: one of STATES.
        fields: step, steps, eta (seconds), message, spent (seconds of work, where these are bounded, see
            training.queue); step, steps and spent stay as they were if they are not given. `pid`
            is the process that does the work, by default this one; the app gives the one it started.
        """
        if state not in STATES:
            raise ValueError(f"A run is {', '.join(STATES)}, not {state}.")
        pid = fields.pop("pid", os.getpid())
        missing = {"step", "steps", "spent"} - fields.keys()
        kept = {key: value for key, value in self._status().items() if key in missing}
        about = {"time": datetime.now(UTC).timestamp(), "pid": pid, "born": _born(pid), "host": socket.gethostname()}
        if fields.get("message"):
            fields["message"] = fields["message"][: run_files.MESSAGE]
        with self._writing():
            _write_json(self.folder / "status.json", _finite({"state": state, **kept, **fields, **about}))

    def status(self) -> dict:
        """What was last written: state, step, steps, eta, time (UTC, seconds), pid, host, ...

        Where the process that wrote it was on this machine and is gone, the state is "died" if it was at work, and
        "stopped" if the run was queued, for nobody will start it. It is "unknown" if the file is missing or damaged;
        `problem` says then why.
        """
        status = {"state": "unknown", **self._status()}
        waits = status["state"] == "queued"
        here = status.get("host") == socket.gethostname()
        if here and (waits or status["state"] in AT_WORK) and not _lives(status.get("pid"), status.get("born")):
            status["state"] = "stopped" if waits else "died"
        return status

    def at_work(self) -> bool:
        """Whether a process of this machine works in it, or is about to."""
        status = self.status()
        return status["state"] in AT_WORK and status.get("host") == socket.gethostname()

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Decide in this context who works in the run: of two who found it free at once, one waits for the other.

        Raises RunError if the other takes too long, and if the folder is gone.
        """
        with self._writing():
            if not self.folder.is_dir():  # which FileLock would make
                raise RunError(f"There is no run in {self.folder} any more.")
            try:
                lock = FileLock(self.folder / "lock", timeout=CLAIM).acquire()
            except Timeout:
                raise RunError(f"{self.name} is just being started by another process.") from None
        with lock:
            yield

    def _status(self) -> dict:
        try:
            return run_files.read_status(self.folder)
        except RunError as error:
            return {"problem": str(error)}

    def request_stop(self) -> None:
        """Ask the run to end at its next step."""
        with self._writing():
            (self.folder / "stop").touch()

    def stop_requested(self) -> bool:
        """Whether somebody asked the run to end."""
        return os.path.lexists(self.folder / "stop")

    def clear_stop(self) -> None:
        """Take the request back, as a run does that is resumed."""
        with self._writing():
            (self.folder / "stop").unlink(missing_ok=True)

    def save_checkpoint(self, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict) -> None:
        """Write a checkpoint, whole or not at all, and delete all but it and the good one before it.

        tensors: by part of the training (student, teacher, optimizer, ...) tensors by name; each part is one file.
        state: whatever else is needed to go on, as JSON.

        Raises RunError if it cannot be written; it names the last good checkpoint, which is untouched.
        """
        try:
            checkpoints.save(self.folder / "checkpoints", step, tensors, state)
        except CheckpointError as error:
            last = checkpoints.newest(self.folder / "checkpoints")
            left = f"the last good one is that of step {last.step}" if last else "there is none before it"
            raise RunError(
                f"The checkpoint of step {step} of run {self.name} cannot be written ({error}); {left}."
            ) from None

    def checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, every byte checked; None if there is none."""
        return checkpoints.newest(self.folder / "checkpoints", refused=self.log)


def list_runs(root: Path | None = None) -> list[Run]:
    """The runs in a folder, the one made last first; whatever else lies there is passed over."""
    folder = _default_root() if root is None else Path(root)
    try:
        runs = [Run(each) for each in folder.iterdir() if _is_run(each)]
    except OSError:
        return []
    return sorted(runs, key=lambda run: (-_made(run.folder), run.name))


def is_run_network(path: str) -> bool:
    """Whether a path is that of a run in `root`, or of one of its snapshots, and nothing else."""
    parts = Path(path).parts
    inside = parts[len(root().parts) :]
    if parts[: len(root().parts)] != root().parts or ".." in inside or not inside:
        return False
    name, *rest = inside
    snapshot = len(rest) == 2 and rest[0] == "snapshots" and STEP.fullmatch(rest[1])
    return bool((not rest or snapshot) and _is_run(root() / name))


def _is_run(folder: Path) -> bool:
    # A network in transformers' format has a config.json too. Both may be anything else: that is a damaged run.
    return os.path.lexists(folder / "config.json") and _is_folder(folder / "checkpoints")


def step_of(snapshot: Path) -> int:
    """The step of a snapshot's folder, which is one of `Run.snapshots`."""
    return int(STEP.fullmatch(snapshot.name)[1])


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file system takes, a folder that may not be entered
        return False


def _made(folder: Path) -> float:
    return _stamp(folder / "config.json")[0] / 1e9


def _stamp(path: Path) -> tuple[int, int]:
    """When a file was written last, in nanoseconds, and its size; zeros where there is none."""
    try:
        about = path.stat()
    except OSError:
        return 0, 0
    return about.st_mtime_ns, about.st_size


@lru_cache(maxsize=1024)  # the list of runs asks every second
def _config_problem(folder: Path, mtime_ns: int, size: int) -> str | None:
    try:
        config = run_files.read_config(folder)
        kind = config.pop("kind")
        if kind not in KINDS:
            return f"config.json is of a run of kind {kind!r}; known are {', '.join(KINDS)}."
        # Another version of dinoviz may have had other settings; those that there are must be right.
        known = {field.name for field in dataclasses.fields(KINDS[kind])}
        values = KINDS[kind].renamed(config)
        KINDS[kind].from_dict({key: value for key, value in values.items() if key in known})
    except RunError as error:
        return str(error)
    except ConfigError as error:
        return f"config.json: {error}"
    return None


def _born(pid: int) -> float | None:
    """When a process started; None if it is no more."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _lives(pid: Any, born: Any) -> bool:
    now = _born(pid) if isinstance(pid, int) and pid > 0 else None
    return now is not None and (not isinstance(born, int | float) or abs(now - born) <= SAME_START)


def _finite(value: Any) -> Any:
    """The value with numbers of numpy and torch as plain ones, and NaN and infinity as None."""
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
