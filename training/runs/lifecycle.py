"""How work in a run ends: finished, stopped by whoever asked for it, or failed; its status always says which."""

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

PARENT = "DINOVIZ_PARENT"  # the environment variable with the process that a run is not to outlive
LESS_MEMORY = {
    "pretrain": "lower batch, local_crops or global_size, or raise accumulate",
    "finetune": "lower batch or size",
    "probe": "lower batch or resolution",
}


@contextmanager
def working(run: Run, *, writes: bool = True) -> Iterator[Callable[[], bool]]:
    """Do a run's work in this context, with a function that tells whether it was asked to stop.

    The requests are the run's stop file, what `stop_signals` listens to, and the end of the process in $DINOVIZ_PARENT.
    Work that raises Stopped leaves the run "stopped" and the context quietly; any other exception leaves it "failed"
    with its message and goes on to the caller, a full memory as DinovizError. writes: False in all processes but the
    main one.
    """
    try:
        with stop_signals() as signalled, enough_memory(run.kind):
            yield lambda: signalled.is_set() or run.stop_requested() or _is_orphan()
    except Stopped:
        if writes:
            run.log("Stopped, for the app that started it is gone." if _is_orphan() else "Stopped, as was asked.")
            run.set_status("stopped", eta=None)
    except KeyboardInterrupt:  # the second Ctrl-C
        if writes:
            run.log("Ended at once, as was asked.")
            with suppress(RunError):
                run.set_status("stopped", eta=None)
        raise
    except BaseException as error:
        if writes:
            run.log(str(error) if isinstance(error, DinovizError) else traceback.format_exc())
            with suppress(RunError):  # on a full disk not even this can be written; the error itself says so
                run.set_status("failed", message=str(error) or type(error).__name__)
        raise


def early_stop(measure: str, patience: int, best: str, epoch: int) -> str:
    """Why there are fewer epochs than were asked for, as a sentence for the log and the summary.

    measure: what got no better for `patience` epochs. best: its best value, with a unit, which was that of `epoch`.
    """
    epochs = "1 epoch" if patience == 1 else f"{patience} epochs"
    return f"Stopped early: no better {measure} in {epochs}; best {best} at epoch {epoch}."


def _is_orphan() -> bool:
    parent = os.environ.get(PARENT)
    return parent is not None and parent != str(os.getppid())


@contextmanager
def enough_memory(kind: str) -> Iterator[None]:
    """A device whose memory is full becomes one sentence, a DinovizError, on what to lower in a run of this kind."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise DinovizError(f"The device's memory is full: {LESS_MEMORY[kind]}.") from None


def reopen(run: Run, kind: str) -> None:
    """Make a run that ended early, or is queued, ready to go on: it is at work from here.

    Requests to stop that were made before it ended are forgotten; a job is asked to stop after it was queued.

    Raises RunError for a run of another kind, one that is at work, queued or finished.
    """
    if run.kind != kind:
        raise RunError(f"{run.name} is a run of kind {run.kind!r}, not {kind!r}.")
    with run.claim():
        status = run.status()
        state, pid = status["state"], status.get("pid")
        # The app that queued the run writes down the process that it starts before that comes here.
        job = state in ("queued", *AT_WORK) and (pid == os.getpid() or (state != "running" and pid == os.getppid()))
        if state in AT_WORK and not job:
            raise RunError(f"{run.name} is at work already; `python -m training stop {run.name}` ends it.")
        if state == "queued" and not job:
            raise RunError(f"{run.name} is queued already; it begins when there is room.")
        if state == "finished":
            hint = f"; a new run can start from it: pretrain --start {run.folder}" if kind == "pretrain" else ""
            raise RunError(f"{run.name} is finished{hint}.")
        if not job:
            run.clear_stop()
        run.set_status("starting")


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and the first Ctrl-C set, so that work ends where it can go on; the next Ctrl-C ends it."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be taken
        yield stop
        return

    def ask(number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
