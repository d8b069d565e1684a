"""Start and end of the work in a run: resuming, stop requests and failures, and the status that they leave."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from dinoviz.errors import DinovizError, Stopped
from training.runs.run import AT_WORK, Run, RunError

PARENT = "DINOVIZ_PARENT"  # environment variable with the id of the parent process, with which a run ends
LESS_MEMORY = {
    "pretrain": "lower batch, local_crops or global_size, or raise accumulate",
    "finetune": "lower batch or size",
    "probe": "lower batch or resolution",
}


@contextmanager
def working(run: Run, *, writes: bool = True) -> Iterator[Callable[[], bool]]:
    """A context for the work in a run; yields a function that returns whether a stop is requested.

    A stop is requested by the run's stop file, by the signals of `stop_signals`, and by the end of the process in
    $DINOVIZ_PARENT. Stopped sets the run to "stopped" and is not raised further; any other exception sets it to
    "failed" with its message and is raised, a full device memory as DinovizError. writes: False in all processes
    except the main one.
    """
    try:
        with stop_signals() as signalled, enough_memory(run.kind):
            yield lambda: signalled.is_set() or run.stop_requested() or _is_orphan()
    except Stopped:
        if writes:
            run.log("Stopped: the parent app exited." if _is_orphan() else "Stopped on request.")
            run.set_status("stopped", eta=None)
    except KeyboardInterrupt:  # the second Ctrl-C
        if writes:
            run.log("Ended at once by a second Ctrl-C.")
            with suppress(RunError):
                run.set_status("stopped", eta=None)
        raise
    except BaseException as error:
        if writes:
            run.log(str(error) if isinstance(error, DinovizError) else traceback.format_exc())
            with suppress(RunError):  # on a full disk this cannot be written either
                run.set_status("failed", message=str(error) or type(error).__name__)
        raise


def early_stop(measure: str, patience: int, best: str, epoch: int) -> str:
    """The reason for early stopping, as a sentence for log and summary.

    measure: the metric that did not improve for `patience` epochs. best: its best value with unit, reached in `epoch`.
    """
    epochs = "1 epoch" if patience == 1 else f"{patience} epochs"
    return f"Stopped early: no better {measure} in {epochs}; best {best} at epoch {epoch}."


def _is_orphan() -> bool:
    parent = os.environ.get(PARENT)
    return parent is not None and parent != str(os.getppid())


@contextmanager
def enough_memory(kind: str) -> Iterator[None]:
    """Turn a full device memory into a DinovizError that names the settings to lower in a run of this kind."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise DinovizError(f"The device's memory is full: {LESS_MEMORY[kind]}.") from None


def reopen(run: Run, kind: str) -> None:
    """Set a run that ended early, or is queued, to "starting".

    Earlier stop requests are cleared, except for a job, which may have been stopped since it was queued.

    Raises RunError for a run of another kind, and for one that is running, queued or finished.
    """
    if run.kind != kind:
        raise RunError(f"{run.name} is a run of kind {run.kind!r}, not {kind!r}.")
    with run.claim():
        status = run.status()
        state, pid = status["state"], status.get("pid")
        # The app that queued the run writes the id of the process before the process gets here.
        job = state in ("queued", *AT_WORK) and (pid == os.getpid() or (state != "running" and pid == os.getppid()))
        if state in AT_WORK and not job:
            raise RunError(f"{run.name} is running already; `python -m training stop {run.name}` stops it.")
        if state == "queued" and not job:
            raise RunError(f"{run.name} is queued already; it starts when there is room.")
        if state == "finished":
            hint = f"; start a new run from it: pretrain --start {run.folder}" if kind == "pretrain" else ""
            raise RunError(f"{run.name} is finished{hint}.")
        if not job:
            run.clear_stop()
        run.set_status("starting")


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event set by SIGTERM and the first Ctrl-C, to stop with a checkpoint; the second Ctrl-C ends at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signal handlers need the main thread
        yield stop
        return

    def request_stop(number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop.set()

    before = {number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
