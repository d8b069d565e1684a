"""The Train tab's timer and notice."""

import pytest

from dinoviz.ui.train.tab import Handlers
from training.runs.run import Run


@pytest.fixture
def handlers(tmp_path, monkeypatch) -> Handlers:
    """Handlers of a private page; these need no queue."""
    monkeypatch.setenv("DINOVIZ_RUNS", str(tmp_path / "runs"))
    return Handlers(public=False, jobs=None, reader=None, check_room=None)


def test_runs_are_updated_only_while_the_tab_is_open(handlers):
    for here in (True, False):
        timer, _ = handlers.wake(here, "")
        assert timer.active is here


def test_an_active_run_is_announced_and_shown_first(handlers):
    assert handlers.show_active("") == ""
    run = Run.create("one", "pretrain", {})
    run.set_status("running", step=1, steps=2)
    assert "<b>one</b> is" in handlers.show_active("")
    _, halves = handlers.wake(True, "")
    assert halves.selected == "watch"
