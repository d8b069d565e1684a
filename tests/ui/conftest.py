"""Fixtures of the page's tests: pictures, a tiny model, and work for jobs that the test controls."""

import threading
from queue import Queue

import pytest

from dinoviz.backbone import Backbone
from dinoviz.ui.jobs import Job

PATIENCE = 20  # seconds after which a thread that should have ended counts as hanging


class Stepwise:
    """The work of a job, which reports what the test says, when the test says so."""

    def __init__(self, result="done"):
        self.result = result
        self.begun, self.ended, self.reported = threading.Event(), threading.Event(), threading.Semaphore(0)
        self._steps: Queue = Queue()

    def __call__(self, job: Job):
        self.begun.set()
        try:
            while step := self._steps.get(timeout=PATIENCE):
                job.report(*step)
                self.reported.release()
            return self.result
        finally:
            self.ended.set()

    def report(self, *step) -> None:
        self._steps.put(step)
        assert self.reported.acquire(timeout=PATIENCE)

    def report_after_stop(self) -> None:
        """The next report of a stopped job, which ends the work."""
        self._steps.put(("More",))
        assert self.ended.wait(PATIENCE)
        assert not self.reported.acquire(blocking=False)

    def end(self) -> None:
        self._steps.put(None)


@pytest.fixture
def work():
    steps = Stepwise()
    yield steps
    steps.end()


@pytest.fixture
def other_work():
    steps = Stepwise("the other's")
    yield steps
    steps.end()


@pytest.fixture
def model(tiny_folders) -> str:
    return str(tiny_folders["dinov2_with_registers"])


@pytest.fixture
def cat(tmp_path, chelsea) -> str:
    chelsea.save(tmp_path / "cat.png")
    return str(tmp_path / "cat.png")


@pytest.fixture
def cup(tmp_path, coffee) -> str:
    coffee.save(tmp_path / "cup.png")
    return str(tmp_path / "cup.png")


@pytest.fixture
def inputs(tiny_folders, cat) -> list:
    """Picture, model and resolution: 8 x 12 patches."""
    return [cat, str(tiny_folders["dinov2"]), "112"]


@pytest.fixture
def look(handlers, inputs):
    """The inputs, encoded by the workbench of the tab under test, whose module defines `handlers`."""
    return handlers.bench.look(*inputs)


@pytest.fixture
def encodes(monkeypatch) -> list[int]:
    """The resolution of each forward pass."""
    passes: list[int] = []
    encode = Backbone.encode

    def counted(self, image, resolution=518, *args, **kwargs):
        passes.append(resolution)
        return encode(self, image, resolution, *args, **kwargs)

    monkeypatch.setattr(Backbone, "encode", counted)
    return passes
