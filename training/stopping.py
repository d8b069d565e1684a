"""How work in a run ends: finished, stopped by whoever asked for it, or failed; its status always says which."""

from __future__ import annotations

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
    except BaseException as error:
        if writes:
            run.log(str(error) if isinstance(error, DinovizError) else traceback.format_exc())
            with suppress(RunError):  # on a full disk not even this can be written; the error itself says so
                run.set_status("failed", message=str(error) or type(error).__name__)
        raise
