"""Runs as processes: queued, stopped, killed and resumed, also after the process that started them has ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from dinoviz.errors import DinovizError
from tests.conftest import ROOT
from tests.training.tiny_runs import losses, settings, write_images
from training import queue as module
from training.config.base import ConfigError
from training.config.pretrain import PretrainConfig
from training.config.tasks import FinetuneConfig, ProbeConfig
from training.probe import resume as resume_probe
from training.queue import JobError, Jobs
from training.runs.lifecycle import PARENT, reopen, working
from training.runs.run import Run, RunError, list_runs

ENDED = ("stopped", "finished", "failed", "died")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 64, classes=True)


@pytest.fixture
def idle(tmp_path):
    """Jobs that start none."""
    with closing(Jobs(tmp_path / "runs", limit=0)) as jobs:
        yield jobs


def endless(images: Path) -> PretrainConfig:
    return settings(images, epochs=1e5, checkpoint_minutes=60.0)


def wait(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def state(run: Run) -> str:
    return run.status()["state"]


def log(run: Run) -> str:
    return (run.folder / "log.txt").read_text()


def processes_in(root: Path) -> list[psutil.Process]:
    """The living and the zombies, below this process, and others that work in this folder."""
    below = psutil.Process().children(recursive=True)
    return [each for each in below if each.status() == psutil.STATUS_ZOMBIE or str(root) in " ".join(each.cmdline())]


def refusal(do, *args, **kwargs) -> str:
    with pytest.raises(DinovizError) as refused:
        do(*args, **kwargs)
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")
    return str(refused.value)


@pytest.fixture(scope="module")
def story(images, tmp_path_factory) -> SimpleNamespace:
    """Three runs, one at a time: the first is killed and goes on, the second stopped as it starts, the third queued."""
    root = tmp_path_factory.mktemp("runs")
    long = settings(images, epochs=10.0, checkpoint_minutes=0.0)  # 40 steps
    with closing(Jobs(root)) as jobs:
        a, b, c = (jobs.submit(name, "pretrain", long if name == "a" else settings(images)) for name in "abc")
        story = SimpleNamespace(root=root, jobs=jobs, a=a, b=b, c=c, refused={})
        jobs.stop(c)
        story.after_stop = state(c), c.status().get("step"), c.name in jobs.queue()
        wait(lambda: a.checkpoint() is not None and len(losses(a)) >= 5)
        story.at_once = [state(a), state(b)], jobs.queue()
        story.refused["queued"] = refusal(jobs.resume, b)
        killed = a.status()["pid"]
        os.kill(killed, signal.SIGKILL)
        began = time.monotonic()
        wait(lambda: state(a) == "failed")
        story.killed = a.status() | {"seconds": time.monotonic() - began}
        jobs.resume(a)
        wait(lambda: state(b) == "starting")
        story.refused["at work"] = refusal(jobs.resume, b)
        jobs.stop(b)
        wait(lambda: state(b) in ENDED)
        story.stopped_early = b.status()
        jobs.resume(b)
        story.at_the_end = jobs.queue()
        wait(lambda: state(b) in ENDED)
        wait(lambda: not processes_in(root), 10)  # nor a zombie, while the app is open
        story.refused |= {"finished": refusal(jobs.resume, a), "stop": refusal(jobs.stop, a)}
    return story


def test_one_runs_and_the_others_wait(story):
    assert story.at_once == (["running", "queued"], ["b"])
    assert story.at_the_end[-1] == "b"


def test_a_queued_run_stops_at_once(story):
    assert story.after_stop == ("stopped", None, False)
    assert not (story.c.folder / "output.txt").exists()


def test_a_killed_run_is_reported_and_resumes_from_its_checkpoint(story):
    assert story.killed["seconds"] < 10
    assert "memory" in story.killed["message"]
    assert story.killed["steps"] == 40
    resumed = int(log(story.a).split("resumed at step ")[1].split()[0])
    assert resumed >= 4
    assert (state(story.a), story.a.status()["step"]) == ("finished", 40)
    assert [record["step"] for record in losses(story.a)] == list(range(1, 41))


def test_a_stop_before_the_first_step_is_heeded_and_the_run_finishes_later(story):
    assert (story.stopped_early["state"], story.stopped_early["step"]) == ("stopped", 1)
    assert (state(story.b), story.b.status()["step"]) == ("finished", 8)


def test_refuses_to_resume_or_stop_runs_in_other_states(story):
    words = {"queued": "b is queued", "at work": "b is running", "finished": "a is finished", "stop": "a is finished"}
    assert story.refused.keys() == words.keys()
    assert all(story.refused[name].startswith(words[name]) for name in words)


def test_the_output_of_a_process_is_kept_without_progress_bars(story):
    assert (story.b.folder / "output.txt").read_text() == "training: b is finished at step 8 of 8\n"


APP = """
import json, sys, time
from pathlib import Path
from training.queue import Jobs
jobs = Jobs(Path(sys.argv[1]), limit=2)
for name in ("ends", "stays", "waits"):
    jobs.submit(name, "pretrain", json.loads(sys.argv[2]), keep=name == "stays")
time.sleep(600)
"""


@pytest.fixture
def app(images, tmp_path):
    """Jobs of another process: two run until they are stopped, the third waits."""
    arguments = [sys.executable, "-c", APP, tmp_path / "runs", json.dumps(endless(images).to_dict())]
    process = subprocess.Popen(arguments, cwd=ROOT)
    yield process
    process.kill()
    process.wait()
    for name in ("ends", "stays"):
        Run(tmp_path / "runs" / name).request_stop()


@pytest.mark.slow
def test_an_app_that_is_killed_takes_its_runs_along_but_those_to_keep(app, tmp_path):
    ends, stays, waits = (Run(tmp_path / "runs" / name) for name in ("ends", "stays", "waits"))
    wait(lambda: len(losses(ends)) >= 3 and len(losses(stays)) >= 3)
    assert state(waits) == "queued"
    app.kill()
    app.wait()
    wait(lambda: state(ends) in ENDED, 20)
    assert (state(ends), ends.status()["step"]) == ("stopped", ends.checkpoint().step)
    assert "app exited" in log(ends)
    assert state(waits) == "stopped"
    step = stays.status()["step"]
    with closing(Jobs(tmp_path / "runs")) as jobs:
        jobs.resume(ends)
        time.sleep(4 * module.POLL)
        assert (state(ends), jobs.queue()) == ("queued", ["ends"])  # the other run takes the only place
        wait(lambda: stays.status()["step"] > step)
        jobs.stop(stays)
        wait(lambda: state(stays) in ENDED, 20)
        assert (state(stays), stays.status()["step"]) == ("stopped", stays.checkpoint().step)
        wait(lambda: "resumed at step" in log(ends) and state(ends) == "running")
        wait(lambda: ends.status()["step"] > ends.checkpoint().step)
        jobs.close()
        assert (state(ends), ends.status()["step"]) == ("stopped", ends.checkpoint().step)
        assert processes_in(tmp_path) == []
        assert "closing" in refusal(jobs.submit, "late", "pretrain", {})
        assert not (tmp_path / "runs" / "late").exists()


def test_closing_kills_a_process_that_does_not_stop(images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GRACE", 0.5)
    jobs = Jobs(tmp_path)
    deaf, waits = (jobs.submit(name, "pretrain", endless(images)) for name in ("deaf", "waits"))
    wait(lambda: state(deaf) == "starting")
    os.kill(deaf.status()["pid"], signal.SIGSTOP)
    jobs.close(0.1)
    assert [state(run) for run in (deaf, waits)] == ["stopped", "stopped"]
    assert "app" in deaf.status()["message"]
    assert processes_in(tmp_path) == []
    jobs.close(0.1)


@pytest.mark.parametrize("bound", [{"minutes": 0.005}, {"megabytes": 0.0001}])
def test_a_run_that_reaches_a_limit_is_stopped_with_the_reason(bound, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OVERTIME", 0.3)  # it is still importing torch then
    with closing(Jobs(tmp_path, **bound)) as jobs:
        run = jobs.submit("long", "pretrain", endless(images))
        wait(lambda: state(run) == "stopped")
        assert f"{next(iter(bound.values())):g} " in run.status()["message"]
        if "minutes" in bound:
            assert "0.005 minutes" in refusal(jobs.resume, run)
    assert processes_in(tmp_path) == []


@pytest.mark.slow  # the process takes seconds to begin
def test_a_run_that_is_out_of_time_leaves_a_checkpoint(images, tmp_path):
    with closing(Jobs(tmp_path, minutes=60)) as jobs:
        run = jobs.submit("long", "pretrain", endless(images))
        wait(lambda: len(losses(run)) >= 2)
        jobs.minutes = 0.01
        wait(lambda: "0.01 minutes" in run.status().get("message", ""))
        status = run.status()
        assert (status["state"], status["step"]) == ("stopped", run.checkpoint().step)
        assert status["spent"] > 1


def test_a_process_that_ends_at_once_is_reported(images, idle, tmp_path, monkeypatch):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "__main__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    run = idle.submit("a", "pretrain", settings(images))
    (run.folder / "config.json").write_text('{"kind": "pre')
    gone = idle.submit("gone", "pretrain", settings(images))
    shutil.rmtree(gone.folder)
    idle.limit = 1
    wait(lambda: state(run) == "failed")
    assert "config.json is not valid JSON" in run.status()["message"]
    wait(lambda: not idle.queue())
    assert not gone.folder.exists()


def test_a_run_has_its_folder_before_it_is_queued(images, idle, tmp_path, monkeypatch):
    def put(run: Run) -> None:
        assert (state(run), idle.queue()) == ("queued", [])
        shutil.copytree(images, run.folder / "data")
        run.set_config({**run.config, "data": [str(run.folder / "data")]})

    monkeypatch.chdir(images.parent)
    run = idle.submit("a", "pretrain", settings(Path(images.name)), before=put)
    assert (state(run), idle.queue(), run.kind) == ("queued", ["a"], "pretrain")
    assert PretrainConfig.from_dict(run.config).data == (str(run.folder / "data"),)
    beside = idle.submit("b", "pretrain", settings(Path(images.name)))
    assert beside.config["data"] == [str(images)]  # right for a process that is started elsewhere


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConfigError("The pictures are gone."), "The pictures are gone."),
        (OSError(28, "No space left on device"), "No space left on device"),
        (KeyboardInterrupt("at the keyboard"), "at the keyboard"),
    ],
)
def test_an_error_before_queueing_leaves_no_folder(error, words, images, idle):
    def fail(run: Run) -> None:
        (run.folder / "data").mkdir()
        raise error

    with pytest.raises((DinovizError, KeyboardInterrupt), match=words):
        idle.submit("a", "pretrain", settings(images), before=fail)
    assert not (idle.root / "a").exists()
    assert idle.queue() == []


@pytest.mark.parametrize(
    ("changes", "words"), [({"freeze_layers": 6}, r"freeze_layers \(6\)"), ({"batch": 4096}, "fewer than the 4096")]
)
def test_data_that_a_run_would_refuse_is_not_queued(changes, words, images, idle):
    def put(run: Run) -> None:
        shutil.copytree(images, run.folder / "data")
        run.set_config({**run.config, "data": [str(run.folder / "data")]})

    for before in (None, put):
        with pytest.raises(DinovizError, match=words):
            idle.submit("a", "pretrain", settings(images, **changes), before=before)
    assert list_runs(idle.root) == []
    assert idle.queue() == []


def test_refuses_invalid_names_kinds_and_settings(images, idle, tmp_path):
    config = settings(images)
    idle.submit("a", "pretrain", config)
    assert refusal(idle.submit, "a", "pretrain", config).startswith("There is already a run a")
    assert refusal(idle.submit, "../a", "pretrain", config).startswith("'../a'")
    assert "pretrain, finetune, probe" in refusal(idle.submit, "b", "train", config)
    assert refusal(idle.submit, "b", "pretrain", {"lr": -1}).startswith("lr ")
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal(Jobs(tmp_path / "file").submit, "b", "pretrain", config)
    assert idle.queue() == ["a"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_an_error(images, tmp_path):
    (tmp_path / "runs").mkdir(mode=0o500)
    assert "Permission denied" in refusal(Jobs(tmp_path / "runs").submit, "a", "pretrain", settings(images))


def test_a_queued_run_can_be_stopped_from_elsewhere(images, idle):
    a, _ = (idle.submit(name, "pretrain", settings(images)) for name in "ab")
    a.request_stop()  # as `python -m training stop` does
    wait(lambda: state(a) == "stopped", 5)
    assert idle.queue() == ["b"]
    idle.resume(a)
    assert (state(a), a.stop_requested(), idle.queue()) == ("queued", False, ["b", "a"])


def test_one_of_many_processes_resumes_a_run(images, tmp_path):
    run = Run.create("a", "pretrain", settings(images).to_dict(), root=tmp_path)
    several = [Jobs(tmp_path, limit=0) for _ in range(8)]
    refusals = []
    for _ in range(5):
        run.set_status("stopped")
        ready = threading.Barrier(len(several))

        def go(jobs: Jobs, ready=ready) -> None:
            ready.wait()
            try:
                jobs.resume(run)
            except JobError as error:
                refusals.append(str(error))

        threads = [threading.Thread(target=go, args=(jobs,)) for jobs in several]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(len(jobs.queue()) for jobs in several) == 1
        next(jobs for jobs in several if jobs.queue()).stop(run)
    assert len(refusals) == 5 * 7
    assert all("a is queued" in each for each in refusals)
    for jobs in several:
        jobs.close()


@pytest.fixture
def run(images, tmp_path) -> Run:
    return Run.create("a", "pretrain", settings(images).to_dict(), root=tmp_path)


def test_a_job_keeps_stop_requests_since_it_was_queued(run):
    """Made while the process imports its libraries."""
    for state_, pid in (("queued", os.getppid()), ("starting", os.getppid()), ("starting", os.getpid())):
        run.set_status(state_, pid=pid)
        run.request_stop()
        reopen(run, "pretrain")
        assert (state(run), run.status()["pid"], run.stop_requested()) == ("starting", os.getpid(), True)
    run.set_status("stopped")
    reopen(run, "pretrain")
    assert not run.stop_requested()


def test_a_job_of_another_is_not_taken(run):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        for state_, words in (("queued", "a is queued"), ("starting", "a is running")):
            run.set_status(state_, pid=other.pid)
            with pytest.raises(RunError, match=words):
                reopen(run, "pretrain")
            assert state(run) == state_


def test_a_stop_is_requested_when_the_parent_exits(run, monkeypatch):
    with working(run) as stop_requested:
        assert not stop_requested()
        monkeypatch.setenv(PARENT, str(os.getppid()))
        assert not stop_requested()
        monkeypatch.setenv(PARENT, str(os.getppid() + 1))
        assert stop_requested()


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("pretrain", "local_crops"),
        ("finetune", "size"),
        ("probe", "resolution"),
    ],
)
def test_a_full_memory_names_the_settings_to_lower(kind, setting, tmp_path):
    run = Run.create("a", kind, {}, root=tmp_path)
    with pytest.raises(DinovizError) as raised, working(run):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    assert setting in str(raised.value)
    assert run.status()["message"] == str(raised.value)
    assert state(run) == "failed"


@pytest.fixture(scope="module")
def probing(tmp_path_factory, tiny_folders) -> ProbeConfig:
    """On four pictures whose brighter parts are farther away."""
    folder = tmp_path_factory.mktemp("rooms")
    for name in ("rgb", "depth"):
        (folder / name).mkdir()
    numbers = np.random.default_rng(0)
    for i in range(4):
        shade = np.kron(numbers.uniform(0, 1, (6, 8)), np.ones((16, 16)))
        Image.fromarray(np.repeat((255 * shade)[..., None], 3, 2).astype(np.uint8)).save(folder / f"rgb/{i}.png")
        Image.fromarray((2000 + 6000 * shade).astype(np.uint16)).save(folder / f"depth/{i}.png")
    return ProbeConfig(
        data=str(folder), model=str(tiny_folders["dinov2"]), device="cpu", resolution=224, epochs=3, batch=2, bins=16,
        upsample=1,
    )  # fmt: skip


def test_a_probe_resumes_as_a_job(probing, tmp_path):
    run = Run.create("a", "probe", probing.to_dict(), root=tmp_path)

    def stop_in_the_second_epoch(done: int, of: int, what: str) -> None:
        if what == "epoch 2":
            run.request_stop()

    assert resume_probe(run, stop_in_the_second_epoch) is None
    assert (state(run), [record["epoch"] for record in run.metrics()]) == ("stopped", [1])
    assert resume_probe(run) is not None
    assert (state(run), [record["epoch"] for record in run.metrics()]) == ("finished", [1, 2, 3])
    with pytest.raises(RunError, match="a is finished"):
        resume_probe(run)


@pytest.mark.slow
def test_classifiers_and_probes_are_jobs_too(images, probing, tiny_folders, tmp_path):
    tuning = FinetuneConfig(
        data=(str(images),), model=str(tiny_folders["dinov2"]), device="cpu", size=42, epochs=2, batch=8
    )
    with closing(Jobs(tmp_path, limit=2)) as jobs:
        both = [jobs.submit("a", "finetune", tuning), jobs.submit("b", "probe", probing)]
        for run in both:
            wait(lambda run=run: state(run) in ENDED)
            assert state(run) == "finished", run.status()
            assert run.export_folder.is_dir()
