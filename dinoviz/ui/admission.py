"""Admission by memory: work waits in a queue until its estimate fits beside the work that is running."""

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

POLL = 0.2  # seconds between two reports while waiting, after which a stopped job leaves the queue
# Places by which work is put back for each other one of its owner: a page has fewer pictures under way at once.
LATER = 8
# Less free memory stays with the C library, for the next work of that size.
WORTH_GIVING_BACK = 64 << 20


@dataclass(frozen=True, eq=False)
class _Turn:
    owner: Hashable
    estimate: int
    place: int  # in the queue, counted from the first work ever


class Admission:
    """A queue for work that takes much memory; thread-safe.

    First come, first served, except that work is put back LATER places for each other one of its owner.

    Args:
        budget: bytes that all running work may take together, by its estimates.
        at_once: how many may run.
        most_waiting: how many may wait.
        most_of_one: how many of one owner may wait.
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
        self, estimate: int, owner: Hashable = None, report: Callable[[str], None] = lambda progress: None
    ) -> Iterator[None]:
        """Wait for a turn, and hold it during the block.

        Args:
            estimate: bytes at the peak of the work.
            owner: None counts as one owner too.
            report: called with "Busy, place 3" while this waits; an exception of it ends the wait.

        Raises:
            DinovizError: if the estimate exceeds the budget, or too many wait already.
        """
        mine = self._enter(estimate, owner)
        try:
            with self._changed:
                while not self._begins(mine):
                    report(f"Busy, place {self._waiting.index(mine) + 1}")
                    self._changed.wait(POLL)
            yield
        except BaseException as error:
            # The frames of a stopped pass hold its tensors for as long as the error is kept.
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
                f"This takes about {estimate / 2**30:.1f} GB of memory; one picture may take at most "
                f"{self.budget / 2**30:.1f} GB: choose a lower resolution or a smaller model."
            )
        with self._changed:
            own = sum(turn.owner == owner for turn in self._waiting)
            if own >= self.most_of_one:
                raise DinovizError(f"Busy: {own} of your pictures are waiting: try again when they are done.")
            if len(self._waiting) >= self.most_waiting:
                raise DinovizError(f"Busy: {len(self._waiting)} pictures are waiting: try again in a minute.")
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
        self._changed.notify_all()  # the places of all others have changed, and the next may fit as well
        return True

    def _fits(self, estimate: int) -> bool:
        taken = sum(turn.estimate for turn in self._running)
        return not self._running or (len(self._running) < self.at_once and taken + estimate <= self.budget)


def give_back() -> None:
    """Return freed memory to the system, which glibc does not by itself: 1.2 GB after a ViT-S at 1792 px."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim:
            trim(0)
