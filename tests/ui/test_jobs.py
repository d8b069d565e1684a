"""Jobs: progress, remaining time, stop, result."""

from types import SimpleNamespace

import pytest

from dinoviz.errors import DinovizError, Stopped
from dinoviz.ui import jobs
from dinoviz.ui.jobs import Job


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def run(job: Job) -> list[str]:
    """The reports of a job until it ends."""
    return list(job.watch(every=0.01))


def test_a_job_reports_its_step(work):
    job = Job(work, "request")
    work.report("Loading the model")
    assert next(job.watch(every=0.01)) == "Loading the model …"


def test_the_remaining_time_follows_from_the_share(work, clock):
    job = Job(work, "request")
    work.report("Loading")
    clock.seconds += 60  # which does not count for the speed
    work.report("Encoding", 0.1)
    assert job.progress() == "Encoding, 10%"
    clock.seconds += 10
    work.report("Encoding", 0.3)
    # A fifth in 10 s: the seven tenths that are left take 35 s.
    assert job.progress() == "Encoding, 30%, about 35 s left"


def test_less_than_a_second_is_not_reported(work, clock):
    job = Job(work, "request")
    work.report("Encoding", 0.1)
    clock.seconds += 0.5
    work.report("Encoding", 0.9)
    assert job.progress() == "Encoding, 90%"


def test_a_step_may_change_between_two_reports(work):
    job = Job(work, "request")
    megabytes = iter((12, 40))
    work.report(lambda: f"Loading: {next(megabytes)} of 88 MB")
    watch = job.watch(every=0.01)
    assert [next(watch), next(watch)] == ["Loading: 12 of 88 MB …", "Loading: 40 of 88 MB …"]
    watch.close()


def test_watch_ends_with_the_result(work):
    job = Job(work, "request")
    watch = job.watch(every=0.01)
    next(watch)
    work.end()
    list(watch)
    assert job.result() == "done"
    assert not job.stopped


def test_stop_ends_the_watch_at_once_and_the_work_at_its_next_report(work):
    job = Job(work, "request")
    watch = job.watch(every=0.01)
    next(watch)
    job.stop()
    assert list(watch) == []
    with pytest.raises(Stopped):
        job.result()
    assert not work.ended.is_set()  # a download cannot be interrupted; nobody waits for it
    work.report_after_stop()
    with pytest.raises(Stopped):
        job.result()


def test_leaving_the_watch_early_stops_the_job(work):
    job = Job(work, "request")
    watch = job.watch(every=0.01)
    next(watch)
    watch.close()  # what Gradio does to a handler whose page was closed
    assert job.stopped
    work.report_after_stop()


@pytest.mark.parametrize("error", [DinovizError("no such model"), MemoryError("full")])
def test_result_raises_the_error_of_the_work(error):
    def fail(job):
        raise error

    job = Job(fail, "request")
    run(job)
    with pytest.raises(type(error), match=str(error)):
        job.result()
