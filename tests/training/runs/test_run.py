import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.tiny_runs import fill, refused, small_disk
from training.runs import checkpoints
from training.runs import run as runs
from training.runs.run import STATES, Run, RunError, check_name, is_run_network, list_runs


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """Where the runs of a test are."""
    monkeypatch.setenv("DINOVIZ_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def run(home) -> Run:
    return Run.create("first", "pretrain", {"preset": "micro", "rate": 0.1})


refusal = partial(refused, RunError)


def weights(seed: int, count: int = 1000) -> dict[str, dict[str, torch.Tensor]]:
    return {"student": {"weight": torch.randn(count, generator=torch.Generator().manual_seed(seed))}}


def saved(run: Run) -> list[str]:
    return sorted(each.name for each in (run.folder / "checkpoints").iterdir())


@pytest.mark.parametrize("name", ["a", "ViT-S_14.v2", "x" * 80, "-"])
def test_valid_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "../a", "x" * 81, "a b", "ü", "a\n", "a\0"])
def test_refuses_invalid_names(name):
    assert "1 to 80" in refusal(check_name, name)


def test_a_run_is_opened_by_name_and_by_folder(run, home, tmp_path):
    for opened in (Run.open("first"), Run.open(home / "first"), Run.open(str(home / "first"))):
        assert (opened.name, opened.kind, opened.config) == ("first", "pretrain", {"preset": "micro", "rate": 0.1})
    assert opened.export_folder == home / "first" / "export"
    assert json.loads((home / "first" / "config.json").read_text())["kind"] == "pretrain"
    assert (run.status()["state"], run.metrics(), run.checkpoint()) == ("starting", [], None)
    elsewhere = Run.create("second", "finetune", {}, root=tmp_path / "other")
    assert elsewhere.folder == tmp_path / "other" / "second"


def test_refuses_an_existing_name(run, home):
    assert "first" in refusal(Run.create, "first", "pretrain", {})
    assert run.config["preset"] == "micro"


def test_an_unknown_run_is_answered_with_the_known_ones(home):
    assert str(home) in refusal(Run.open, "x")
    for name in ("b", "a"):
        Run.create(name, "pretrain", {})
    os.utime(home / "b" / "config.json", (1, 1))
    assert "a, b" in refusal(Run.open, "x")


def test_a_damaged_config_is_an_error(run):
    path = run.folder / "config.json"
    for content in ('{"kind": "pre', "[]", "{}"):
        path.write_text(content)
        assert "first cannot be read: config.json" in refusal(lambda: Run.open("first").kind)
    path.unlink()
    assert "config.json is missing" in refusal(lambda: run.config)


def test_runs_are_listed_newest_first(home, tmp_path):
    assert list_runs() == []
    for age, name in enumerate(("old", "older", "oldest")):
        made = Run.create(name, "pretrain", {})
        os.utime(made.folder / "config.json", (1000 - age, 1000 - age))
    (home / "export").mkdir()
    (home / "export" / "config.json").write_text('{"model_type": "dinov2"}')
    (home / "notes.txt").write_text("x")
    assert [run.name for run in list_runs()] == ["old", "older", "oldest"]
    assert list_runs(tmp_path / "none") == []


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    assert refusal(Run.create, "a", "pretrain", {}, root=tmp_path / "file").endswith("Not a directory.")


def test_the_log_has_the_time_on_each_line(run):
    run.log("begins")
    run.log("two\nlines ü")
    lines = (run.folder / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["begins", "two", "lines ü"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 ", line) for line in lines)


def test_metrics_are_read_back_and_infinities_are_null(run):
    run.add_metrics({"step": 1, "loss": np.float32(0.5), "gradient": float("nan"), "dino": torch.tensor(2.0)})
    run.add_metrics({"step": np.int64(2), "loss": float("inf"), "alarm": "The teacher collapsed."})
    assert run.metrics() == [
        {"step": 1, "loss": 0.5, "gradient": None, "dino": 2.0},
        {"step": 2, "loss": None, "alarm": "The teacher collapsed."},
    ]


def test_half_a_line_spoils_no_other(run):
    run.add_metrics({"step": 1})
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')  # a kill
    assert run.metrics() == [{"step": 1}]
    run.add_metrics({"step": 2})
    assert run.metrics() == [{"step": 1}, {"step": 2}]


def test_metrics_after_a_step_can_be_dropped(run):
    for step in range(1, 6):
        run.add_metrics({"step": step, "loss": step / 3})
    run.add_metrics({"note": "no step"})
    before = (run.folder / "metrics.jsonl").read_bytes().splitlines()
    run.truncate_metrics(3)
    assert (run.folder / "metrics.jsonl").read_bytes().splitlines() == [*before[:3], before[5]]
    run.truncate_metrics(0)
    assert run.metrics() == [{"note": "no step"}]


def test_the_status_keeps_its_progress_and_its_heart_beats(run):
    run.set_status("running", step=5, steps=10, eta=3.5)
    status = run.status()
    assert (status["state"], status["step"], status["steps"], status["eta"]) == ("running", 5, 10, 3.5)
    assert status["pid"] == os.getpid()
    assert abs(status["time"] - time.time()) < 5
    run.set_status("failed", message="The disk is full.")
    status = run.status()
    assert (status["state"], status["step"], status["message"]) == ("failed", 5, "The disk is full.")
    assert "eta" not in status
    assert not list(run.folder.glob("*.part"))
    with pytest.raises(ValueError, match="not sleeping"):
        run.set_status("sleeping")


def test_a_damaged_status_is_unknown(run):
    (run.folder / "status.json").write_text('{"state": "run')
    status = run.status()
    assert status.keys() == {"state", "problem"}
    assert status["state"] == "unknown"
    assert "status.json" in status["problem"]


def test_a_process_that_is_gone_has_died():
    run = Run.create("a", "pretrain", {})
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        run.set_status("running", step=1, steps=2, pid=process.pid)
        assert run.status()["state"] == "running"
        process.kill()
        deadline = time.monotonic() + 10
        while run.status()["state"] == "running" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert run.status()["state"] == "died"  # a zombie: its exit status was not read yet
        process.wait()
    assert (run.status()["state"], run.status()["step"]) == ("died", 1)
    run.set_status("stopped", pid=process.pid)
    assert run.status()["state"] == "stopped"


def test_a_process_id_that_is_used_again_is_another_process(run):
    run.set_status("running")
    path = run.folder / "status.json"
    status = json.loads(path.read_text())
    path.write_text(json.dumps({**status, "born": status["born"] - 3600}))
    assert run.status()["state"] == "died"
    path.write_text(json.dumps({**status, "born": status["born"] - 3600, "host": "another machine"}))
    assert run.status()["state"] == "running"


def test_a_queued_run_whose_app_exited_is_stopped():
    run = Run.create("a", "pretrain", {}, state="queued")
    assert (run.status()["state"], run.at_work()) == ("queued", False)
    with subprocess.Popen([sys.executable, "-c", ""]) as app:
        pass
    run.set_status("queued", step=3, pid=app.pid)
    assert (run.status()["state"], run.status()["step"]) == ("stopped", 3)


def test_a_run_is_at_work_on_the_machine_of_its_process(run):
    for state in STATES:
        run.set_status(state)
        assert run.at_work() == (state in ("starting", "running"))
    run.set_status("running")
    path = run.folder / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "another machine"}))
    assert (run.status()["state"], run.at_work()) == ("running", False)


def test_settings_can_be_replaced(run):
    run.set_config({"data": ["here"]})
    assert (run.kind, run.config) == ("pretrain", {"data": ["here"]})


def test_only_one_process_claims_a_run(run, monkeypatch):
    monkeypatch.setattr(runs, "CLAIM", 0.01)
    with run.claim():
        assert "another process" in refusal(Run(run.folder).claim().__enter__)
    with Run(run.folder).claim():
        pass
    run.folder.rename(run.folder.with_name("gone"))
    assert str(run.folder) in refusal(run.claim().__enter__)


def test_a_stop_is_requested_and_cleared(run):
    assert not run.stop_requested()
    run.request_stop()
    assert Run.open("first").stop_requested()
    run.clear_stop()
    run.clear_stop()
    assert not run.stop_requested()


def test_tensors_of_all_kinds_are_restored_bit_for_bit(run):
    base = torch.randn(6, 4)
    tensors = {
        "transposed": base.T, "row": base[2], "same": base, "step": torch.tensor(7.0), "half": base.bfloat16(),
        "bytes": torch.get_rng_state(), "none": torch.empty(0, 3), "flags": torch.tensor([True, False]),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]), "large": torch.tensor(2**62),
        "parameter": torch.nn.Parameter(base[:1]),
    }  # fmt: skip
    state = {"best": float("nan"), "rate": 0.1 + 0.2, "order": [1, 2], "random": 2**63, "text": "ü"}
    run.save_checkpoint(3, {"student": tensors, "optimizer": {"exp_avg.0": base}}, state)
    found = run.checkpoint()
    assert (found.step, found.keys) == (3, ("optimizer", "student"))
    back = found.tensors("student")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        raw = [each.detach().contiguous().view(-1).view(torch.uint8).tolist() for each in (back[name], tensor)]
        assert raw[0] == raw[1], name
    assert str(found.state) == str(state)  # NaN is not equal to itself
    with pytest.raises(ValueError, match=r"optimizer, student.* teacher"):
        found.tensors("teacher")


def test_the_newest_two_checkpoints_are_kept(run):
    for step in (10, 20, 30):
        run.save_checkpoint(step, weights(step), {})
    assert saved(run) == ["step-00000020", "step-00000030"]
    assert torch.equal(run.checkpoint().tensors("student")["weight"], weights(30)["student"]["weight"])


@pytest.mark.parametrize("harm", ["cut", "flip", "no state", "half state", "gone"])
def test_a_damaged_checkpoint_is_skipped_and_logged(run, harm):
    run.save_checkpoint(1, weights(1), {"a": 1})
    run.save_checkpoint(2, weights(2), {"a": 2})
    folder = run.folder / "checkpoints" / "step-00000002"
    file, state = folder / "student.safetensors", folder / "state.json"
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    {
        "cut": lambda: file.write_bytes(content[:300]),
        "flip": lambda: file.write_bytes(content),
        "no state": state.unlink,
        "half state": lambda: state.write_bytes(state.read_bytes()[:50]),
        "gone": file.unlink,
    }[harm]()
    assert (run.checkpoint().step, run.checkpoint().state) == (1, {"a": 1})
    assert "step-00000002" in (run.folder / "log.txt").read_text()
    # The one before a damaged one is the one to keep; "flip" is found only by reading every byte, at the next resume.
    run.save_checkpoint(3, weights(3), {})
    assert saved(run)[0] == ("step-00000002" if harm == "flip" else "step-00000001")
    assert run.checkpoint().step == 3


def test_going_back_deletes_the_checkpoints_of_the_course_that_was_left(run):
    for step in (10, 20, 15):
        run.save_checkpoint(step, weights(step), {})
    assert saved(run) == ["step-00000010", "step-00000015"]


def test_a_step_can_be_saved_again(run):
    run.save_checkpoint(5, weights(1), {"a": 1})
    run.save_checkpoint(5, weights(2), {"a": 2})
    assert (saved(run), run.checkpoint().state) == (["step-00000005"], {"a": 2})


def test_saving_a_step_again_leaves_a_good_one_at_every_moment(run, monkeypatch):
    run.save_checkpoint(5, weights(1), {"a": 1})
    rename, names = Path.replace, []

    def replace(path: Path, target: Path):
        if names:
            raise OSError(5, "Input/output error")
        names.append(target.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    text = refusal(run.save_checkpoint, 5, weights(2), {"a": 2})
    assert "Input/output error" in text
    assert "step 5." in text
    assert (names, run.checkpoint().state) == (["step-00000005.old"], {"a": 1})
    monkeypatch.undo()
    run.save_checkpoint(6, weights(3), {})
    run.save_checkpoint(7, weights(3), {})
    assert saved(run) == ["step-00000006", "step-00000007"]


KILLED = """
import os, signal, sys, torch
from training.runs import checkpoints
from training.runs import run as runs
from training.runs import Run
checkpoints._put = lambda part, final: os.kill(os.getpid(), signal.SIGKILL)
Run.open(sys.argv[1]).save_checkpoint(2, {"student": {"weight": torch.ones(1000)}}, {})
"""


def test_a_kill_in_the_middle_leaves_the_checkpoint_before(run):
    run.save_checkpoint(1, weights(1), {})
    ended = subprocess.run([sys.executable, "-c", KILLED, run.folder], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert saved(run) == ["step-00000001", "step-00000002.part"]
    assert run.checkpoint().step == 1
    run.save_checkpoint(2, weights(2), {})
    assert saved(run) == ["step-00000001", "step-00000002"]


def test_an_interrupt_leaves_no_partial_checkpoint(run, monkeypatch):
    def interrupt(part, final):
        raise KeyboardInterrupt

    run.save_checkpoint(1, weights(1), {})
    monkeypatch.setattr(checkpoints, "_put", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint(2, weights(2), {})
    assert saved(run) == ["step-00000001"]


def test_a_file_size_limit_is_an_error(run):
    run.save_checkpoint(1, weights(1), {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        second = refusal(run.save_checkpoint, 2, weights(2, 100_000), {})
        first = refusal(Run.create("b", "pretrain", {}).save_checkpoint, 2, weights(2, 100_000), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "step 2 of run first" in second
    assert "File too large" in second
    assert second.endswith("step 1.")
    assert "step 2 of run b" in first
    assert "step 1" not in first
    assert (saved(run), run.checkpoint().step) == (["step-00000001"], 1)


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    with small_disk(tmp_path / "disk", 1) as disk:
        run = Run.create("a", "pretrain", {}, root=disk)
        run.save_checkpoint(1, weights(1, 100_000), {})
        run.add_metrics({"step": 1})
        text = refusal(run.save_checkpoint, 2, weights(2, 200_000), {})
        assert "step 2 of run a" in text
        assert "No space left on device" in text
        assert text.endswith("step 1.")
        assert (saved(run), run.checkpoint().step) == (["step-00000001"], 1)
        run.set_status("failed", message="full")  # there is space again
        fill(disk)
        for write in (
            lambda: [run.add_metrics({"step": i, "loss": "x" * 100}) for i in range(100)],
            lambda: run.set_status("running", message="x" * 5000),
            lambda: run.truncate_metrics(1),
        ):
            assert "No space left on device" in refusal(write)
        run.log("errors of the log are ignored")
        assert (run.status()["message"], run.metrics()[0]) == ("full", {"step": 1})
        assert not list(run.folder.glob("*.part"))


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("mine", True), ("mine/snapshots/step-00000004", True), ("", False), ("..", False), ("mine/..", False),
        ("other", False), ("mine/checkpoints", False), ("mine/snapshots/step-1/export", False), ("../mine", False),
        ("mine/../mine", False), ("mine/snapshots/step-x", False), ("x" * 5000, False), ("mine\0", False),
    ],
)  # fmt: skip
def test_a_public_page_opens_runs_and_nothing_else(path, is_one, tmp_path, monkeypatch):
    monkeypatch.setenv("DINOVIZ_RUNS", str(tmp_path / "runs"))
    Run.create("mine", "pretrain", {})
    assert is_run_network(f"{tmp_path}/runs/{path}") is is_one
    assert not is_run_network("/etc")
