"""A run that was killed, stopped or out of disk goes on as if nothing had been: bit for bit, on a CPU."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.training.tiny_runs import assert_same, begin, fill, losses, settings, small_disk, write_images
from training.config.base import ConfigError
from training.config.pretrain import PretrainConfig
from training.data.dataset import DataError
from training.engine.schedules import scaled_lr
from training.pretrain import pretrain, resume
from training.runs import checkpoints
from training.runs.run import Run, RunError

EVERYTHING = {
    "ibot_weight": 1.0, "ibot_head": True, "koleo_weight": 0.1, "drop_path": 0.3, "accumulate": 2, "registers": 2,
    "knn_every": 1.0, "snapshot_every": 1.0,
}  # fmt: skip
SEED = 20260


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 64, classes=True)


class Crash(BaseException):
    """What no part of a run expects."""


def crash_at(step: int, when: str = "loss"):
    def progress(record):
        if record["step"] == step and when in record:
            raise Crash

    return progress


def whole(config: PretrainConfig, root: Path) -> Run:
    """The run that nothing interrupts."""
    run = begin(config, root, "whole")
    pretrain(config, run)
    return run


@pytest.mark.parametrize(("extra", "minutes", "log_every"), [({}, 0.0, 1), (EVERYTHING, 0.0, 3), ({}, 60.0, 2)])
def test_a_crash_between_any_two_steps_leaves_no_trace(extra, minutes, log_every, images, tmp_path):
    """Once after a checkpoint and before the next, twice in one run; the last case begins anew, without one."""
    config = settings(images, validation=str(images), checkpoint_minutes=minutes, log_every=log_every, **extra)
    run = begin(config, tmp_path)
    steps = [step for step in range(1, 8) if step % log_every == 0]
    for step, go in ((steps[len(steps) // 2 - 1], pretrain), (steps[-1], None)):
        with pytest.raises(Crash):
            pretrain(config, run, crash_at(step)) if go else resume(run, crash_at(step))
    resume(run)
    assert_same(run, whole(config, tmp_path))


def test_a_crash_between_metrics_and_checkpoint_leaves_no_record_twice(images, tmp_path):
    config = settings(images, validation=str(images), knn_every=0.5, checkpoint_minutes=0.0)
    run = begin(config, tmp_path)
    with pytest.raises(Crash):
        pretrain(config, run, crash_at(4, "knn"))
    assert [r["step"] for r in run.metrics()] == [0, 1, 2, 2, 3, 4, 4]
    assert run.checkpoint().step == 3
    resume(run)
    assert_same(run, whole(config, tmp_path))


def test_damaged_and_partial_checkpoints_are_skipped(images, tmp_path):
    config = settings(images, checkpoint_minutes=0.0)
    run = begin(config, tmp_path)
    with pytest.raises(Crash):
        pretrain(config, run, crash_at(7))
    newest = run.folder / "checkpoints" / "step-00000006"
    with (newest / "student.safetensors").open("rb+") as file:
        file.truncate(100)
    shutil.copytree(newest, newest.with_name("step-00000007.part"))
    output = []
    resume(run, lambda record: output.append(record["step"]))
    assert output[0] == 6
    assert any("step-00000006" in line and "100 bytes" in line for line in log(run).splitlines())
    assert_same(run, whole(config, tmp_path))
    assert sorted(p.name for p in newest.parent.iterdir()) == ["step-00000007", "step-00000008"]


def test_a_run_that_began_when_schedules_had_fixed_lengths_keeps_them(images, tmp_path):
    """10 epochs of warm-up and 30 of temperature in a run of 2, which no new run may have."""
    config = settings(
        images, warmup_epochs=10.0, teacher_temperature_epochs=30.0, freeze_last_layer=1.0, checkpoint_minutes=0.0
    )
    with pytest.raises(ConfigError):
        pretrain(config, begin(config, tmp_path, "new"))
    runs = [begin(config, tmp_path, name) for name in ("a", "whole")]
    with pytest.raises(Crash):
        resume(runs[0], crash_at(5))
    for run in runs:
        resume(run)
    assert_same(*runs)
    assert [record["lr"] for record in losses(runs[0])] == pytest.approx(
        [scaled_lr(config.lr, config.batch) * step / 7 for step in range(8)]  # it rises to the last of 8 steps
    )


def log(run: Run) -> str:
    return (run.folder / "log.txt").read_text()


def test_a_stopped_run_resumes_from_its_checkpoint(images, tmp_path):
    config = settings(images, checkpoint_minutes=60.0)
    run = begin(config, tmp_path)
    pretrain(config, run, lambda record: run.request_stop() if record["step"] == 3 else None)
    assert (run.status()["state"], run.status()["step"], run.checkpoint().step) == ("stopped", 3, 3)
    assert (run.export_folder / "model.safetensors").is_file()
    resume(run)
    assert not run.stop_requested()
    assert_same(run, whole(config, tmp_path))


def test_a_stop_before_the_first_step(images, tmp_path):
    config = settings(images)
    run = begin(config, tmp_path)
    run.request_stop()
    pretrain(config, run)
    assert (run.status()["state"], losses(run)[-1]["step"]) == ("stopped", 1)
    resume(run)
    assert_same(run, whole(config, tmp_path))


def test_a_stop_while_the_images_are_read(images, tmp_path, monkeypatch):
    """Which takes minutes where there are many: nobody waits for the end of it."""
    config = settings(images, data=(str(images),) * 2)  # 128 images
    run = begin(config, tmp_path)
    run.request_stop()
    monkeypatch.setattr("training.pretrain.BEAT", 0.0)
    pretrain(config, run)
    assert (run.status()["state"], run.metrics(), run.checkpoint()) == ("stopped", [], None)
    resume(run)
    assert_same(run, whole(config, tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_with_a_checkpoint(number, images, tmp_path):
    config = settings(images)
    run = begin(config, tmp_path)
    before = signal.getsignal(number)
    pretrain(config, run, lambda record: os.kill(os.getpid(), number) if record["step"] == 2 else None)
    assert (run.status()["state"], run.checkpoint().step) == ("stopped", 2)
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_at_once(images, tmp_path):
    config = settings(images, checkpoint_minutes=0.0)
    run = begin(config, tmp_path)

    def twice(record):
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # the second is taken between two lines of Python

    with pytest.raises(KeyboardInterrupt):
        pretrain(config, run, twice)
    assert (run.status()["state"], run.checkpoint().step) == ("stopped", 2)
    resume(run)
    assert_same(run, whole(config, tmp_path))


def test_a_full_disk_is_one_sentence_and_keeps_the_last_good_checkpoint(images, tmp_path, monkeypatch):
    config = settings(images, checkpoint_minutes=0.0)
    run = begin(config, tmp_path)
    sync = checkpoints._sync_file

    def full(file):
        if "step-00000004" in str(file):
            raise OSError(28, "No space left on device", str(file))
        sync(file)

    monkeypatch.setattr(checkpoints, "_sync_file", full)
    with pytest.raises(RunError) as raised:
        pretrain(config, run)
    assert str(raised.value) == run.status()["message"]
    for words in ("step 4 of run a", "No space left on device", "step 3."):
        assert words in str(raised.value)
    assert (run.status()["state"], run.checkpoint().step) == ("failed", 3)
    monkeypatch.undo()
    resume(run)
    assert_same(run, whole(config, tmp_path))


def test_infinite_losses_do_not_replace_a_good_checkpoint(images, tmp_path):
    """Between two records too, where nobody has looked yet."""
    config = settings(images, checkpoint_minutes=0.0, log_every=5, lr=1e6, clip=0.0, warmup_epochs=0.0, epochs=20.0)
    run = begin(config, tmp_path)
    with pytest.raises(ValueError, match="step"):
        pretrain(config, run)
    assert run.status()["state"] == "failed"
    assert "lower lr" in run.status()["message"]
    checkpoint = run.checkpoint()
    if checkpoint:
        assert checkpoint.step < run.status()["step"] or checkpoint.step % 5
        assert all(torch.isfinite(value).all() for value in checkpoint.tensors("teacher").values())


def stopped(images: Path, root: Path) -> Run:
    config = settings(images)
    run = begin(config, root)
    run.request_stop()
    pretrain(config, run)
    return run


def test_does_not_resume_with_other_settings(images, tmp_path):
    run = stopped(images, tmp_path)
    path = run.folder / "config.json"
    before = path.read_text()
    path.write_text(before.replace('"lr": 0.0005', '"lr": 0.001'))
    with pytest.raises(ConfigError, match="lr "):
        resume(run)
    path.write_text(before.replace('"lr"', '"rate"'))
    with pytest.raises(ConfigError, match="'rate'"):
        resume(run)
    assert run.status()["state"] == "failed"
    path.write_text(before)
    resume(run)
    assert run.status()["state"] == "finished"


def test_does_not_resume_with_other_images(images, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    run = stopped(folder, tmp_path)
    first = next(folder.rglob("*.png"))
    first.rename(first.with_name("renamed.png"))
    with pytest.raises(DataError, match="images of a "):
        resume(run)
    (first.with_name("renamed.png")).unlink()
    with pytest.raises(DataError, match=r"63 .* 64"):
        resume(run)


def test_a_run_that_is_at_work_or_done_does_not_go_on(images, tmp_path):
    run = stopped(images, tmp_path)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    for state in ("starting", "running"):
        run.set_status(state, pid=other.pid)
        with pytest.raises(RunError, match="training stop a"):
            resume(run)
        assert run.status()["state"] == state
    other.communicate(b"\n")
    assert run.status()["state"] == "died"
    resume(run)
    with pytest.raises(RunError, match="a is finished"):
        resume(run)
    with pytest.raises(RunError, match=r"'finetune'.*'pretrain'"):
        resume(Run.create("b", "finetune", {}, root=tmp_path))


def python(*arguments: object, home: Path, group: bool = False) -> subprocess.Popen:
    """`python -m training` with as many threads as this process has, for sums depend on that."""
    environment = os.environ | {"DINOVIZ_RUNS": str(home), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, "-m", "training", *map(str, arguments)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=group,
    )  # fmt: skip


def wait_for(condition, process: subprocess.Popen, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.001)


def kill_when(condition, process: subprocess.Popen) -> None:
    wait_for(condition, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def ends_well(process: subprocess.Popen) -> str:
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    return output


def config_file(config: PretrainConfig, folder: Path) -> Path:
    from training.config.cli import save

    path = folder / "settings.json"
    save(config, path)
    return path


def records(run: Run) -> int:
    path = run.folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@pytest.mark.slow
def test_the_command_line_resumes_after_a_kill(images, tmp_path):
    config = settings(images, checkpoint_minutes=0.0, epochs=5.0)
    kill_at = random.Random(SEED).randint(2, 18)
    home = tmp_path / "runs"
    process = python("pretrain", "--config", config_file(config, tmp_path), "--name", "a", home=home)
    run = Run(home / "a")
    kill_when(lambda: records(run) >= kill_at, process)
    assert run.status()["state"] == "died"
    output = ends_well(python("resume", "a", home=home))
    assert "training: a is finished at step 20 of 20" in output
    assert f"resumed at step {run_resumed_at(run)} of 20" in log(run)
    assert_same(run, whole(config, tmp_path))


def run_resumed_at(run: Run) -> int:
    line = next(line for line in log(run).splitlines() if "resumed at step" in line)
    return int(line.split("resumed at step ")[1].split()[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again_with_everything_on(seed, images, tmp_path):
    """Twice at random steps, once while a checkpoint is being written."""
    config = settings(
        images, validation=str(images), checkpoint_minutes=0.0, epochs=5.0, log_every=3, seed=seed, **EVERYTHING
    )
    numbers = random.Random(seed)
    home = tmp_path / "runs"
    run = Run(home / "a")
    process = python("pretrain", "--config", config_file(config, tmp_path), "--name", "a", home=home)
    enough = numbers.choice((3, 4))  # the first is of the k-NN before all steps, the second of a step not yet saved
    kill_when(lambda: records(run) >= enough, process)
    for _ in range(2):
        before = log(run).count("resumed at step")
        process = python("resume", "a", home=home)
        wait_for(lambda before=before: log(run).count("resumed at step") > before, process)
        time.sleep(numbers.uniform(0, 0.1))
        kill_when(lambda: list(run.folder.glob("checkpoints/*.part")), process)
    ends_well(python("resume", "a", home=home))
    assert_same(run, whole(config, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", signal.SIGTERM, signal.SIGINT])
def test_the_command_line_stops_and_resumes(how, images, tmp_path):
    config = settings(images, epochs=200.0)
    home = tmp_path / "runs"
    run = Run(home / "a")
    process = python("pretrain", "--config", config_file(config, tmp_path), "--name", "a", home=home)
    wait_for(lambda: records(run) >= 3, process)
    if how == "stop":
        ends_well(python("stop", "a", home=home))
    else:
        process.send_signal(how)
    assert "training: a is stopped at step" in ends_well(process)
    assert run.checkpoint().step == run.status()["step"]
    process = python("resume", "a", home=home)
    wait_for(lambda: "resumed at step" in log(run) and run.status()["step"] > run.checkpoint().step, process)
    process.send_signal(signal.SIGTERM)
    ends_well(process)
    assert run.status()["step"] > run_resumed_at(run)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_in_a_terminal_reaches_all_processes_and_ends_cleanly(workers, images, tmp_path):
    """Also those that decode, which must not die of it before the last step has its images."""
    config = settings(images, epochs=200.0, memory_gb=0.0, workers=workers)
    run = Run(tmp_path / "a")
    process = python("pretrain", "--config", config_file(config, tmp_path), "--name", "a", home=tmp_path, group=True)
    wait_for(lambda: records(run) >= 3, process)
    os.killpg(process.pid, signal.SIGINT)
    output = ends_well(process)
    assert "training: a is stopped at step" in output
    assert "Traceback" not in output
    assert run.checkpoint().step == run.status()["step"]


@pytest.mark.slow
def test_a_disk_that_is_really_full(images, tmp_path):
    """A file system of 8 MB, where only root can make one: the run ends in a sentence, and goes on with more room."""
    with small_disk(tmp_path / "runs", 8) as home:
        config = settings(images, checkpoint_minutes=0.0, prototypes=2048, head_hidden=96)
        run = Run(home / "a")
        process = python("pretrain", "--config", config_file(config, tmp_path), "--name", "a", home=home)
        wait_for(lambda: run.checkpoint() is not None and run.status()["step"] >= 2, process)
        filler = fill(home)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 2
        assert "Traceback" not in output
        assert output.splitlines()[-1].startswith("training: ")
        assert output.splitlines()[-1].count("No space left on device") == 1
        assert "os error" not in output
        filler.unlink()
        step = run.checkpoint().step
        assert step >= 1
        ends_well(python("resume", "a", home=home))
        assert run_resumed_at(run) == step
        assert run.status()["state"] == "finished"
