"""A queue of runs in separate processes, a limited number at once; the app may end or be killed at any time.

A job is `python -m training resume RUN`, which starts a run without a checkpoint. It reports through its run's folder
only, so that any process that opens the folder, also a later app, sees its state and can stop it.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from dinoviz.errors import DinovizError
from training import runs
from training.config.base import Config
from training.config.cli import KINDS
from training.new_runs import check
from training.runs.files import anew, tail
from training.runs.lifecycle import PARENT
from training.runs.limits import folder_bytes
from training.runs.paths import absolute
from training.runs.run import AT_WORK, Run, RunError, list_runs

POLL = 0.3  # seconds between checks of the processes
OVERTIME = 60.0  # seconds that a run has for a checkpoint after it reached a limit
SIZE_POLL = 5.0  # seconds between checks of the size of a run's folder
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
NICE = 10  # of at most 19
LONGEST = 300  # characters of a message
PROJECT = Path(__file__).resolve().parents[1]


class JobError(DinovizError):
    """A request that is not possible for a run; the message says why."""


@dataclass
class _Job:
    run: Run
    keep: bool
    process: subprocess.Popen | None = None  # None while it is queued
    began: float = 0.0  # by the monotonic clock
    spent: float = 0.0  # seconds, before it began
    size_checked: float = 0.0  # time of the last check of its folder's size
    over: str = ""  # the limit that it reached, as a sentence
    over_since: float = 0.0
    ended_by_us: bool = False


class Jobs:
    """Runs in separate processes: at most `limit` at once, the others wait in a queue."""

    def __init__(
        self, root: Path | None = None, limit: int = 1, *, minutes: float = math.inf, megabytes: float = math.inf
    ):
        """root: the folder of runs, by default `training.runs.root`. limit: with 0, none is started.

        minutes: of training that a run may take over all its resumptions. megabytes: that its folder may take. A run
        that reaches a limit is stopped with a checkpoint, and its status has the reason.
        """
        self.minutes, self.megabytes = minutes, megabytes
        self.root = (runs.root() if root is None else Path(root)).absolute()
        self.limit = limit
        self._lock = threading.RLock()
        self._queue: list[_Job] = []
        self._working: list[_Job] = []
        self._supervisor: threading.Thread | None = None
        self._closed = False

    def submit(
        self,
        name: str,
        kind: str,
        config: Config | dict,
        *,
        keep: bool = False,
        before: Callable[[Run], None] | None = None,
    ) -> Run:
        """Create a run in state "queued", which starts when there is room.

        kind: pretrain, finetune or probe. keep: whether it continues when this process ends; else it stops then.
        before: called with the run before it is queued, for example to write files into its folder; it may
            `set_config`. If it raises, or the run would refuse its images or settings, the folder is removed.

        Raises DinovizError for an invalid name, settings, images or folder.
        """
        if kind not in KINDS:
            raise JobError(f"There is no kind of run {kind!r}; the kinds are {', '.join(KINDS)}.")
        settings = KINDS[kind].from_dict(config if isinstance(config, dict) else config.to_dict())
        settings.check_new()
        run = Run.create(name, kind, absolute(settings).to_dict(), root=self.root, state="queued")
        try:
            if before is not None:
                before(run)
            check(kind, KINDS[kind].from_dict(run.config))
            with self._lock:
                self._check_open()
                self._enqueue(_Job(run, keep))
        except BaseException as error:
            shutil.rmtree(run.folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise JobError(f"The run {run.name} cannot be written: {error.strerror or error}.") from None
            raise
        return run

    def resume(self, run: Run, *, keep: bool = False) -> None:
        """Append a run that was stopped, failed or died to the queue. Raises DinovizError for any other."""
        run.config  # noqa: B018, raises RunError if the run was removed
        with self._lock, run.claim():
            state = run.status()["state"]
            if state in ("queued", *AT_WORK):
                raise JobError(f"{run.name} is {'queued' if state == 'queued' else 'running'} already.")
            if state == "finished":
                raise JobError(f"{run.name} is finished: there is nothing to resume.")
            if run.status().get("spent", 0) >= 60 * self.minutes:
                raise JobError(f"{run.name} has used the {self.minutes:g} minutes that a run may take here.")
            self._check_open()
            run.clear_stop()
            run.set_status("queued")
            self._enqueue(_Job(run, keep))

    def stop(self, run: Run) -> None:
        """Remove a run from the queue, or stop it at its next step, whichever process started it.

        Raises JobError if it is neither queued nor running.
        """
        with self._lock:
            state = run.status()["state"]
            if state not in ("queued", *AT_WORK):
                raise JobError(f"{run.name} is {state}, not running: there is nothing to stop.")
            run.request_stop()
            self._drop_stopped()

    def queue(self) -> list[str]:
        """The names of the waiting runs, in order."""
        with self._lock:
            return [job.run.name for job in self._queue]

    def close(self, seconds: float = 20) -> None:
        """End all processes except those to keep: request a stop, wait, terminate, kill. Queued runs are stopped.

        May be called again; afterwards nothing can be submitted.
        """
        with self._lock:
            self._closed = True
            for job in [*self._queue, *self._ending()]:
                with suppress(RunError):
                    job.run.request_stop()
            self._drop_stopped()
        self._wait(seconds)
        for end in (subprocess.Popen.terminate, _kill):
            with self._lock:
                for job in self._ending():
                    job.ended_by_us = True
                    end(job.process)
            self._wait(GRACE)

    def _ending(self) -> list[_Job]:
        return [job for job in self._working if not job.keep]

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._ending() and time.monotonic() < end:
            with self._lock:
                self._reap()
            time.sleep(0.05)

    def _check_open(self) -> None:
        if self._closed:
            raise JobError("The app is closing and starts no more runs.")

    def _enqueue(self, job: _Job) -> None:
        self._queue.append(job)
        if self._supervisor is None:
            self._supervisor = threading.Thread(target=self._supervise, name="jobs", daemon=True)
            self._supervisor.start()

    def _supervise(self) -> None:
        while True:
            with self._lock:
                self._reap()
                self._end_over_limit()
                self._drop_stopped()
                while self._queue and self._count() < self.limit:
                    self._start(self._queue.pop(0))
                if self._closed and not self._working:
                    return
            time.sleep(POLL)

    def _count(self) -> int:
        """The number of running runs: the processes of this object, and those of others."""
        if len(self._working) >= self.limit:  # the usual case, without reading every run's folder
            return len(self._working)
        own = {os.path.realpath(job.run.folder) for job in self._working}
        return len(own | {os.path.realpath(run.folder) for run in list_runs(self.root) if run.at_work()})

    def _drop_stopped(self) -> None:
        """Remove queued runs whose stop was requested, also by `python -m training stop`."""
        for job in [job for job in self._queue if self._closed or job.run.stop_requested()]:
            self._queue.remove(job)
            with suppress(RunError):
                job.run.set_status("stopped")

    def _start(self, job: _Job) -> None:
        # The app's folder may have another `training`, and relative paths must stay valid.
        path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "TQDM_DISABLE": "1"}
        environment.pop(PARENT, None)
        if not job.keep:
            environment[PARENT] = str(os.getpid())
        try:
            # Others that would start it, and the process itself, wait until its id is written.
            with job.run.claim(), anew(job.run.folder / "output.txt") as output:
                job.process = subprocess.Popen(
                    [sys.executable, "-m", "training", "resume", str(job.run.folder.absolute())],
                    env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
                _lower_priority(job.process.pid)
                self._working.append(job)
                job.began, job.spent = time.monotonic(), job.run.status().get("spent", 0.0)
                job.run.set_status("starting", pid=job.process.pid)
        except (OSError, RunError) as error:
            if job.process is not None:
                job.process.kill()
            why = error if isinstance(error, RunError) else f"The process cannot be started: {error.strerror or error}."
            with suppress(RunError):
                job.run.set_status("failed", message=str(why))

    def _end_over_limit(self) -> None:
        """Stop runs that reached a limit, and kill those that do not stop."""
        now = time.monotonic()
        for job in self._working:
            if not job.over:
                job.over = self._limit_reached(job, now)
                if job.over:
                    job.over_since = now
                    with suppress(RunError):
                        job.run.request_stop()
            elif now - job.over_since > OVERTIME and not job.ended_by_us:
                job.ended_by_us = True
                _kill(job.process)

    def _limit_reached(self, job: _Job, now: float) -> str:
        """The limit that a run has reached, as a sentence; "" for none."""
        if job.spent + now - job.began >= 60 * self.minutes:
            return f"Stopped after {self.minutes:g} minutes, the limit of a run here."
        if math.isfinite(self.megabytes) and now - job.size_checked > SIZE_POLL:
            job.size_checked = now
            if folder_bytes(job.run.folder) > 1e6 * self.megabytes:
                return f"Stopped with {self.megabytes:g} MB of files, the limit of a run here."
        return ""

    def _reap(self) -> None:
        for job in [job for job in self._working if job.process.poll() is not None]:
            self._working.remove(job)
            status = job.run.status()
            state, message = status["state"], status.get("message")
            if state in ("died", "unknown"):  # it ended without writing its state
                state = "stopped" if job.ended_by_us else "failed"
                message = "Killed with the app before it stopped." if job.ended_by_us else _why(job)
            elif not math.isfinite(self.minutes):
                continue
            if state == "stopped" and job.over:
                message = f"{job.over} It can be resumed from its last checkpoint."
            if message and message != status.get("message"):
                job.run.log(message)
            spent = {"spent": job.spent + time.monotonic() - job.began} if math.isfinite(self.minutes) else {}
            with suppress(RunError):
                job.run.set_status(state, message=message, eta=status.get("eta"), **spent)


def _lower_priority(pid: int) -> None:
    """Lower the priority of a process, so that the app stays responsive."""
    with suppress(psutil.Error):
        psutil.Process(pid).nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if psutil.WINDOWS else NICE)


def _kill(process: subprocess.Popen) -> None:
    """Kill the process and its workers."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _why(job: _Job) -> str:
    """The reason why a process ended: the last line of its output."""
    status = job.process.returncode
    if status == -9:
        return "The process was killed; the machine may have run out of memory."
    lines = tail(job.run.folder / "output.txt", 64_000).decode(errors="replace").split("\n")
    output = [line.strip() for line in lines if line.strip()]
    if output:
        return output[-1].removeprefix("training: ")[:LONGEST]
    return f"The process ended with status {status} and without output."
