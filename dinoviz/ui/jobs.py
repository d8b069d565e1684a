"""Work in threads: progress, estimate, stop, result."""

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
    """Work in a thread of its own: progress, estimate, stop, result.

    session: who waits for it, and whose place in the queue it takes.
    """

    def __init__(self, work: Callable[[Job], Made], request: Hashable, session: Hashable = None):
        self.request, self.session = request, session
        self.superseded = False  # the page asked for something else, nobody waits for this any more
        self.what: Callable[[], str] = lambda: "Waiting"
        self._share, self._began, self._began_at = 0.0, 0.0, 0.0
        self._stop = threading.Event()
        self._result: Future[Made] = Future()
        # In the context of the request that began it: what the work writes is that session's.
        threading.Thread(target=copy_context().run, args=(self._run, work), daemon=True).start()

    def _run(self, work: Callable[[Job], Made]) -> None:
        _working.set(self)
        try:
            self._result.set_result(work(self))
        except BaseException as error:
            self._result.set_exception(error)

    def stop(self) -> None:
        """Ask the job to end; it does the next time that it tells how far it is."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether it was asked to end."""
        return self._stop.is_set()

    def tell(self, what: str | Callable[[], str], share: float = 0.0) -> None:
        """Called by the work: what it does, and the share of all that is done. Raises Stopped if it should end."""
        if self.stopped:
            raise Stopped
        if share and not self._share:
            # Loading and waiting say nothing about the speed of the work, nor does what was done by then.
            self._began, self._began_at = time.monotonic(), share
        self.what = what if callable(what) else lambda: what
        self._share = share

    def watch(self, every: float = 0.15) -> Iterator[str]:
        """Sentences on how far it is, until it is done or stopped; leaving the loop early stops the job."""
        try:
            while not wait([self._result], timeout=every).done and not self.stopped:
                yield self._sentence()
        finally:
            if not self._result.done():
                self.stop()

    def result(self) -> Made:
        """What came out, after `watch`. Raises what the work raised, or Stopped."""
        if not self._result.done():
            raise Stopped  # a download that is under way ends by itself
        return self._result.result()

    def _sentence(self) -> str:
        if not self._share:
            return f"{self.what()} …"
        done = self._share - self._began_at
        left = (time.monotonic() - self._began) / done * (1 - self._share) if done > 0 else 0
        return f"{self.what()}, {self._share:.0%}" + (f", about {left:.0f} s left" if left >= 1 else "")


# The job that a thread works for: it has its own context.
_working: ContextVar[Job | None] = ContextVar("working", default=None)


def _asking() -> tuple[Hashable, Callable[[str], None]]:
    """Who asks for what is done now, and how they are told that they wait: a job, or a handler's own client."""
    job = _working.get()
    if job:
        return job.session, job.tell
    request = LocalContext.request.get(None)
    return getattr(request, "session_hash", None), lambda said: None
