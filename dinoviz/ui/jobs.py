"""Work in background threads: progress, remaining time, stop, result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, wait
from contextvars import ContextVar, copy_context
from typing import Generic, TypeVar

from gradio.context import LocalContext

from dinoviz.errors import Stopped

Made = TypeVar("Made")


class Job(Generic[Made]):
    """Work in a thread of its own: progress, remaining time, stop, result.

    Args:
        work: called with the job; its value is the result.
        request: what is computed; equal requests of one owner are one job, see `Workbench.start`.
        session: of the page that waits for the result, whose turn in the queues the work takes.
    """

    def __init__(self, work: Callable[[Job], Made], request: Hashable, session: Hashable = None):
        self.request, self.session = request, session
        self.superseded = False  # replaced by a newer request, so that nobody waits for the result
        self.what: Callable[[], str] = lambda: "Waiting"
        self._share, self._began, self._began_at = 0.0, 0.0, 0.0
        self._stop = threading.Event()
        self._result: Future[Made] = Future()
        # In the context of the request that started it, so that files of the work belong to its session.
        threading.Thread(target=copy_context().run, args=(self._run, work), daemon=True).start()

    def _run(self, work: Callable[[Job], Made]) -> None:
        _working.set(self)
        try:
            self._result.set_result(work(self))
        except BaseException as error:
            self._result.set_exception(error)

    def stop(self) -> None:
        """Ask the job to end, which it does at its next report."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether it was asked to end."""
        return self._stop.is_set()

    def report(self, what: str | Callable[[], str], share: float = 0.0) -> None:
        """Called by the work: the current step, and the share that is done. Raises Stopped if the job should end."""
        if self.stopped:
            raise Stopped
        if share and not self._share:
            # The time of loading and waiting, and the share done by then, do not count for the remaining time.
            self._began, self._began_at = time.monotonic(), share
        self.what = what if callable(what) else lambda: what
        self._share = share

    def watch(self, every: float = 0.15) -> Iterator[str]:
        """Yield the progress in words until the job is done or stopped; leaving the loop early stops it."""
        try:
            while not wait([self._result], timeout=every).done and not self.stopped:
                yield self.progress()
        finally:
            if not self._result.done():
                self.stop()

    def result(self) -> Made:
        """The result, after `watch`. Raises what the work raised, or Stopped."""
        if not self._result.done():
            raise Stopped  # without waiting for a download that cannot be interrupted
        return self._result.result()

    def progress(self) -> str:
        """The progress in words: step, share, remaining time."""
        if not self._share:
            return f"{self.what()} …"
        done = self._share - self._began_at
        left = (time.monotonic() - self._began) / done * (1 - self._share) if done > 0 else 0
        return f"{self.what()}, {self._share:.0%}" + (f", about {left:.0f} s left" if left >= 1 else "")


# The job that the current thread works for: each thread has its own context.
_working: ContextVar[Job | None] = ContextVar("working", default=None)


def current_owner() -> tuple[Hashable, Callable[[str], None]]:
    """(session, report) of the job or the request that runs in this thread, as `Admission.turn` takes them."""
    job = _working.get()
    if job:
        return job.session, job.report
    request = LocalContext.request.get(None)
    return getattr(request, "session_hash", None), lambda progress: None
