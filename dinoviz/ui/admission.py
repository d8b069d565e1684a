"""Who may use memory now: work waits for its turn until its estimate fits beside what is running."""

from __future__ import annotations

import ctypes
import sys
import threading
import traceback
from bisect import insort
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dinoviz.errors import DinovizError

POLL = 0.2  # seconds between two words while waiting: how soon one who was stopped leaves the queue
# Places that each further one of the same owner is put back: a page has fewer pictures under way at once.
LATER = 8
# After less, the C library's free memory is left for the next one, who needs as much.
WORTH_GIVING_BACK = 64 << 20


@dataclass(frozen=True, eq=False)
class _Turn:
    owner: Hashable
    estimate: int
    place: int  # in the line, counted over all that ever came


class Admission:
    """One queue for work that takes much memory; safe under threads.

    budget: bytes that all running work may take together, by its estimates. at_once: how many may run.
    most_waiting: how many may wait. most_of_one: how many of them may have one owner.

    First come, first served; but for each that its owner has in it already, work counts as come so many places later.
    """

    def __init__(self, budget: int, *, at_once: int = 1, most_waiting: int = 32, most_of_one: int = 8):
        self.budget, self.at_once = budget, at_once
        self.most_waiting, self.most_of_one = most_waiting, most_of_one
        self._running: list[_Turn] = []
        self._waiting: list[_Turn] = []  # the next one first
        self._came = 0
        self._changed = threading.Condition()

    @contextmanager
    def turn(
        self, estimate: int, owner: Hashable = None, tell: Callable[[str], None] = lambda said: None
    ) -> Iterator[None]:
        """Wait for a turn, and have it for the time of the block.

        estimate: bytes at the peak of the work. owner: whose work it is; all without a name are one.
        tell: called with "Busy, place 3" while this waits; what it raises ends the wait.
        Raises DinovizError if the estimate exceeds the budget, or too many wait already.
        """
        mine = self._enter(estimate, owner)
        try:
            with self._changed:
                while not self._begins(mine):
                    tell(f"Busy, place {self._waiting.index(mine) + 1}")
                    self._changed.wait(POLL)
            yield
        except BaseException as error:
            # The frames of a pass that was stopped hold all that it had kept, and whoever keeps the error, those.
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            if mine in self._running and estimate >= WORTH_GIVING_BACK:
                give_back()
            with self._changed:
                for group in (self._waiting, self._running):
                    if mine in group:
                        group.remove(mine)
                self._changed.notify_all()

    def _enter(self, estimate: int, owner: Hashable) -> _Turn:
        if estimate > self.budget:
            raise DinovizError(
                f"This takes about {estimate / 2**30:.1f} GB of memory, more than the {self.budget / 2**30:.1f} GB "
                "that one picture may take here: choose a lower resolution or a smaller model."
            )
        with self._changed:
            own = sum(turn.owner == owner for turn in self._waiting)
            if own >= self.most_of_one:
                raise DinovizError(f"Busy: {own} pictures of yours are waiting, try again when they are done.")
            if len(self._waiting) >= self.most_waiting:
                raise DinovizError(f"Busy: {len(self._waiting)} pictures are waiting, try again in a while.")
            own += sum(turn.owner == owner for turn in self._running)
            self._came += 1
            mine = _Turn(owner, estimate, self._came + LATER * own)
            insort(self._waiting, mine, key=lambda turn: turn.place)
            return mine

    def _begins(self, mine: _Turn) -> bool:
        if self._waiting[0] is not mine or not self._fits(mine.estimate):
            return False
        self._waiting.remove(mine)
        self._running.append(mine)
        self._changed.notify_all()  # the places of all others, and perhaps the next fits as well
        return True

    def _fits(self, estimate: int) -> bool:
        taken = sum(turn.estimate for turn in self._running)
        return not self._running or (len(self._running) < self.at_once and taken + estimate <= self.budget)


def give_back() -> None:
    """Return what was freed to the system; glibc keeps it by itself: 1.2 GB after a ViT-S at 1792 px."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim:
            trim(0)
