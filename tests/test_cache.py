import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from dinoviz.cache import OnceCache
from dinoviz.errors import Stopped

PATIENCE = 20  # seconds after which a thread that should have been woken counts as hanging


class Maker:
    """Something slow: it tells when it has begun, ends when it is allowed to, and counts how often it was asked."""

    def __init__(self, value="made", error: BaseException | None = None):
        self.value, self.error = value, error
        self.calls = 0
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self):
        self.calls += 1
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        if self.error:
            raise self.error
        return self.value


def forbidden():
    raise AssertionError("made although it should be there")


def in_thread(work: Callable) -> Future:
    """The result of work in a thread of its own."""
    result: Future = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result


def waiting(cache: OnceCache, key, make: Callable, count: int = 1) -> list[Future]:
    """Threads that ask for a key which is under way, given the time to reach the wait."""
    futures = [in_thread(lambda: cache.get(key, make)) for _ in range(count)]
    for future in futures:
        with pytest.raises(TimeoutError):
            future.result(0.1)  # there is nothing to see from outside but that it does not end
    return futures


def test_what_was_made_is_not_made_again():
    cache = OnceCache(3)
    value = object()
    assert cache.get("a", lambda: value) is value
    assert cache.get("a", forbidden) is value


def test_the_least_recently_used_leaves_first():
    cache = OnceCache(2)
    cache.get("a", lambda: 1)
    cache.get("b", lambda: 2)
    cache.get("a", forbidden)
    cache.get("c", lambda: 3)
    assert (cache.peek("a"), cache.peek("b"), cache.peek("c")) == (1, None, 3)


def test_the_bound_is_on_the_sum_of_sizes():
    cache = OnceCache(10, size=len)
    for text in ("aaaa", "bbbb", "cc"):
        cache.get(text[0], lambda text=text: text)
    assert (len(cache), cache.total) == (3, 10)
    cache.get("d", lambda: "ddddd")  # needs the room of two
    assert (len(cache), cache.total) == (2, 7)
    assert cache.peek("c") == "cc"


def test_the_newest_stays_even_if_it_alone_exceeds_the_bound():
    cache = OnceCache(10, size=len)
    cache.get("small", lambda: "abc")
    cache.get("large", lambda: "x" * 50)
    assert (cache.peek("large"), cache.peek("small")) == ("x" * 50, None)
    cache.get("next", lambda: "abc")
    assert (cache.peek("large"), cache.total) == (None, 3)


def test_peek_never_makes_and_never_waits():
    cache, make = OnceCache(3), Maker()
    assert cache.peek("a") is None
    future = in_thread(lambda: cache.get("a", make))
    assert make.begun.wait(PATIENCE)
    assert cache.peek("a") is None
    make.go_on.set()
    assert future.result(PATIENCE) == "made"
    assert cache.peek("a") == "made"


def test_peek_does_not_count_as_use():
    cache = OnceCache(2)
    cache.get("a", lambda: 1)
    cache.get("b", lambda: 2)
    cache.peek("a")
    cache.get("c", lambda: 3)
    assert cache.peek("a") is None


def test_equal_requests_at_once_make_once():
    cache, calls = OnceCache(3), []
    threads = 8
    together = threading.Barrier(threads)

    def ask():
        together.wait(PATIENCE)
        return cache.get("a", lambda: calls.append(1) or threading.Event().wait(0.1) or object())

    with ThreadPoolExecutor(threads) as pool:
        values = [future.result(PATIENCE) for future in [pool.submit(ask) for _ in range(threads)]]
    assert len(calls) == 1
    assert len(set(map(id, values))) == 1


def test_different_keys_are_made_at_the_same_time():
    cache = OnceCache(3)
    both = threading.Barrier(2)  # breaks unless both makers are inside at once
    futures = [in_thread(lambda key=key: cache.get(key, lambda: both.wait(PATIENCE))) for key in "ab"]
    assert sorted(future.result(PATIENCE) for future in futures) == [0, 1]


def test_a_value_can_be_read_while_another_is_made():
    cache, make = OnceCache(3), Maker()
    cache.get("a", lambda: 1)
    future = in_thread(lambda: cache.get("b", make))
    assert make.begun.wait(PATIENCE)
    assert in_thread(lambda: cache.get("a", forbidden)).result(PATIENCE) == 1
    make.go_on.set()
    future.result(PATIENCE)


def test_an_error_reaches_all_who_wait():
    cache, make = OnceCache(3), Maker(error=OSError("no such weights"))
    futures = [in_thread(lambda: cache.get("a", make))]
    assert make.begun.wait(PATIENCE)
    futures += waiting(cache, "a", forbidden, count=2)
    make.go_on.set()
    for future in futures:
        with pytest.raises(OSError, match="no such weights"):
            future.result(PATIENCE)
    assert make.calls == 1


def test_an_error_is_not_kept():
    cache = OnceCache(3)

    def fail():
        raise OSError("the network is away")

    with pytest.raises(OSError, match="away"):
        cache.get("a", fail)
    assert (len(cache), cache.total) == (0, 0)
    assert cache.get("a", lambda: "now it works") == "now it works"


def test_who_stops_stops_only_for_themselves():
    cache, stopped, second = OnceCache(3), Maker(error=Stopped()), Maker("the second's")
    second.go_on.set()
    first = in_thread(lambda: cache.get("a", stopped))
    assert stopped.begun.wait(PATIENCE)
    (other,) = waiting(cache, "a", second)
    stopped.go_on.set()
    with pytest.raises(Stopped):
        first.result(PATIENCE)
    assert other.result(PATIENCE) == "the second's"


def test_of_many_who_wait_for_a_stopped_maker_one_makes_it():
    cache, stopped, second = OnceCache(3), Maker(error=Stopped()), Maker("the second's")
    second.go_on.set()
    first = in_thread(lambda: cache.get("a", stopped))
    assert stopped.begun.wait(PATIENCE)
    others = waiting(cache, "a", second, count=3)
    stopped.go_on.set()
    with pytest.raises(Stopped):
        first.result(PATIENCE)
    assert [other.result(PATIENCE) for other in others] == ["the second's"] * 3
    assert second.calls == 1


def test_where_the_newest_need_not_stay_what_exceeds_the_bound_is_only_handed_out():
    cache = OnceCache(10, size=len, newest_stays=False)
    assert cache.get("large", lambda: "x" * 50) == "x" * 50
    assert (cache.peek("large"), cache.total) == (None, 0)


def test_room_is_made_from_what_was_used_longest_ago():
    cache = OnceCache(10, size=len)
    for text in ("aaaa", "bbbb"):
        cache.get(text[0], lambda text=text: text)
    cache.make_room(6)
    assert (cache.peek("a"), cache.peek("b"), cache.total) == (None, "bbbb", 4)
    cache.make_room(50)
    assert (len(cache), cache.total) == (0, 0)
