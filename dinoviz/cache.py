"""A cache that makes each thing once: bounded, least recently used, safe under threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

from dinoviz.errors import Stopped

Value = TypeVar("Value")


class OnceCache(Generic[Value]):
    """Values by key within a bound; two equal requests at once make the value once, the second waits for the first.

    bound: the largest sum of sizes. size: of a value, in the unit of the bound (bytes, or 1 each).
    newest_stays: even if it alone exceeds the bound, since somebody is looking at it; otherwise it is handed out only.
    """

    def __init__(self, bound: int, size: Callable[[Value], int] = lambda value: 1, *, newest_stays: bool = True):
        self.bound = bound
        self.newest_stays = newest_stays
        self.total = 0
        self._size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._under_way: dict[Hashable, Future] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def peek(self, key: Hashable) -> Value | None:
        """The value if it is there; never makes it."""
        with self._lock:
            return self._values.get(key)

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value, made by `make()` if it is not there. What that raises reaches everyone who waits, and is not kept.

        Only Stopped, which one person asked for, is not passed on: the next in line makes the value.
        """
        while True:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    return self._values[key]
                others = self._under_way.get(key)
                if others is None:
                    mine = self._under_way[key] = Future()
            if others is None:
                return self._make(key, mine, make)
            try:
                return others.result()
            except Stopped:
                continue

    def make_room(self, size: int) -> None:
        """Forget the least recently used until a value of this size fits: before it is made, so that both never are."""
        with self._lock:
            self._shrink(self.bound - size, 0)

    def _shrink(self, bound: int, least: int) -> None:
        while self.total > bound and len(self._values) > least:
            self.total -= self._size(self._values.popitem(last=False)[1])

    def _make(self, key: Hashable, mine: Future, make: Callable[[], Value]) -> Value:
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._under_way[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._under_way[key]
            self._values[key] = value
            self.total += self._size(value)
            self._shrink(self.bound, int(self.newest_stays))
        mine.set_result(value)
        return value
