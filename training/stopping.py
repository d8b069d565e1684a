"""How work in a run ends: finished, stopped by whoever asked for it, or failed; its status always says which."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from dinoviz.errors import DinovizError, Stopped
from training.clock import stop_signals
from training.runs import Run, RunError


@contextmanager
def working(run: Run, *, writes: bool = True) -> Iterator[Callable[[], bool]]:
    """Do a run's work in this context, with a function that tells whether it was asked to stop.

    The requests are the run's stop file and what `stop_signals` listens to. Work that raises Stopped leaves the run
    "stopped" and the context quietly; any other exception leaves it "failed" with its message and goes on to the
    caller. writes: False in all processes but the main one.
    """
    try:
        with stop_signals() as signalled:
            yield lambda: signalled.is_set() or run.stop_requested()
    except Stopped:
        if writes:
            run.log("Stopped, as was asked.")
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


def reopen(run: Run, kind: str) -> None:
    """Make a run that ended early ready to go on: it is at work from here, and nobody has asked it to stop.

    Raises RunError for a run of another kind, one that is at work, and one that is finished.
    """
    if run.kind != kind:
        raise RunError(f"{run.name} is a run of kind {run.kind!r}, not {kind!r}.")
    status = run.status()
    # The app writes down the process that it starts before that comes here.
    if status["state"] in ("starting", "running") and status.get("pid") != os.getpid():
        raise RunError(f"{run.name} is at work already; `python -m training stop {run.name}` ends it.")
    if status["state"] == "finished":
        hint = f"; a new run can start from it: pretrain --start {run.folder}" if kind == "pretrain" else ""
        raise RunError(f"{run.name} is finished{hint}.")
    run.clear_stop()
    run.set_status("starting")
