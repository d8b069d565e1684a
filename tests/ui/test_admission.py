"""Admission: memory, order, fairness, bounds, and leaving the queue."""

import threading
import weakref
from concurrent.futures import Future

import pytest

from dinoviz.errors import DinovizError, Stopped
from dinoviz.ui.admission import Admission

PATIENCE = 20  # seconds after which a thread that should have ended counts as hanging


class Work:
    """Work in a thread that takes a turn, until the test ends it. reports: while it waited."""

    def __init__(self, admission: Admission, estimate: int = 1, owner=None, began: list | None = None):
        self.reports: list[str] = []
        self.begun, self.go_on, self.waits = threading.Event(), threading.Event(), threading.Event()
        self.stop = False
        self.result: Future = Future()
        self._arguments = admission, estimate, owner
        self._began = began
        threading.Thread(target=self._run, daemon=True).start()

    def _report(self, progress: str) -> None:
        self.reports.append(progress)
        self.waits.set()
        if self.stop:
            raise Stopped

    def _run(self) -> None:
        admission, estimate, owner = self._arguments
        try:
            with admission.turn(estimate, owner, self._report):
                if self._began is not None:
                    self._began.append(self)
                self.begun.set()
                assert self.go_on.wait(PATIENCE)
            self.result.set_result("done")
        except BaseException as error:
            self.result.set_exception(error)

    def running(self) -> "Work":
        assert self.begun.wait(PATIENCE)
        return self

    def waiting(self) -> "Work":
        assert self.waits.wait(PATIENCE)
        assert not self.begun.is_set()
        return self

    def end(self) -> None:
        self.go_on.set()
        self.result.result(PATIENCE)


def until(condition) -> None:
    """Wait for a condition that other threads fulfil."""
    for _ in range(int(PATIENCE / 0.01)):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it was never fulfilled")


def test_work_that_fits_runs_together_and_other_work_waits():
    admission = Admission(10, at_once=3)
    first, second = Work(admission, 4).running(), Work(admission, 6).running()
    third = Work(admission, 1).waiting()
    first.end()
    third.running().end()
    second.end()


def test_at_once_bounds_the_running_work():
    admission = Admission(10, at_once=2)
    first, second = Work(admission).running(), Work(admission).running()
    third = Work(admission).waiting()
    second.end()
    third.running().end()
    first.end()


def test_work_beyond_the_budget_is_refused():
    admission = Admission(3 << 30)
    with pytest.raises(DinovizError, match=r"4\.5 GB"), admission.turn(9 << 29):
        pytest.fail("it began")
    with admission.turn(3 << 30):
        pass


def test_the_place_counts_down():
    admission = Admission(10)
    running = Work(admission).running()
    second = Work(admission).waiting()
    third = Work(admission).waiting()
    assert (second.reports[-1], third.reports[-1]) == ("Busy, place 1", "Busy, place 2")
    running.end()
    second.running()
    until(lambda: third.reports[-1] == "Busy, place 1")
    second.end()
    third.running().end()


def test_small_work_does_not_overtake_large_work():
    admission = Admission(10, at_once=9)
    running = Work(admission, 5).running()
    large = Work(admission, 10).waiting()
    small = Work(admission, 1).waiting()
    running.end()
    large.running()
    assert not small.begun.is_set()
    large.end()
    small.running().end()


def test_an_owner_with_much_work_does_not_delay_another():
    admission, began = Admission(10), []
    running = Work(admission, owner="many").running()
    many = [Work(admission, owner="many", began=began).waiting() for _ in range(3)]
    one = Work(admission, owner="one", began=began).waiting()
    assert one.reports[-1] == "Busy, place 1"
    running.end()
    for work in (one, *many):
        work.running().end()
    assert began == [one, *many]


def test_stopped_work_leaves_the_queue():
    admission = Admission(10)
    running = Work(admission).running()
    second, third = Work(admission).waiting(), Work(admission).waiting()
    second.stop = True
    with pytest.raises(Stopped):
        second.result.result(PATIENCE)
    until(lambda: third.reports[-1] == "Busy, place 1")
    running.end()
    third.running().end()


def test_an_error_ends_the_turn():
    admission = Admission(10)
    with pytest.raises(OSError, match="disk"), admission.turn(10):
        raise OSError("the disk is full")
    with admission.turn(10):
        pass


def test_waiting_work_is_bounded():
    admission = Admission(10, most_waiting=2)
    works = [Work(admission, owner=0).running(), *(Work(admission, owner=i).waiting() for i in (1, 2))]
    with pytest.raises(DinovizError, match="2"), admission.turn(1, 3):
        pytest.fail("it began")
    for work in works:
        work.end()
    with admission.turn(1, 3):
        pass


@pytest.mark.parametrize("owner", ["page", None])
def test_waiting_work_of_one_owner_is_bounded(owner):
    admission = Admission(10, most_of_one=2)
    works = [Work(admission, owner=owner).running(), *(Work(admission, owner=owner).waiting() for _ in range(2))]
    with pytest.raises(DinovizError, match="2"), admission.turn(1, owner):
        pytest.fail("it began")
    works.append(Work(admission, owner="another").waiting())
    for work in works:
        work.go_on.set()
    for work in works:
        work.end()


def test_an_error_does_not_keep_tensors_alive():
    class Tensors:
        pass

    def encode() -> None:
        tensors = Tensors()
        alive.append(weakref.ref(tensors))
        raise Stopped

    alive: list[weakref.ref] = []
    with pytest.raises(Stopped) as kept, Admission(10).turn(1):
        encode()
    assert kept.value is not None
    assert alive[0]() is None
