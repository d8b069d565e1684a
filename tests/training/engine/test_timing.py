"""When a run's next checkpoint and heart beat are due: to ask changes nothing, to have made one does."""

from types import SimpleNamespace

import pytest

from training.engine import timing as clock
from training.engine.timing import BEAT, Clock


@pytest.fixture
def now(monkeypatch) -> SimpleNamespace:
    """A time that stands still unless the test moves it."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    return now


def test_a_checkpoint_is_due_until_one_was_saved(now):
    clock = Clock(checkpoint_minutes=2)
    now.seconds += 119
    assert not clock.checkpoint_due()
    now.seconds += 1
    assert clock.checkpoint_due()
    assert clock.checkpoint_due()
    now.seconds += 30  # which it takes to write
    clock.checkpoint_saved()
    now.seconds += 119
    assert not clock.checkpoint_due()
    now.seconds += 1
    assert clock.checkpoint_due()


def test_a_beat_is_due_until_one_was_written(now):
    clock = Clock(checkpoint_minutes=2)
    assert not clock.beat_due()
    now.seconds += BEAT
    assert clock.beat_due()
    assert clock.beat_due()
    clock.beat_written()
    assert not clock.beat_due()
    now.seconds += BEAT
    assert clock.beat_due()


def test_with_0_minutes_a_checkpoint_is_due_after_each_step(now):
    clock = Clock(checkpoint_minutes=0)
    clock.checkpoint_saved()
    assert clock.checkpoint_due()
