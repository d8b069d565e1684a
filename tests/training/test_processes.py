"""Two processes on one run: the losses of one process with the joint batch, one writer, one end."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.conftest import ROOT
from tests.training.tiny_runs import begin, losses, settings, write_images
from training.config.cli import save
from training.config.pretrain import PretrainConfig
from training.pretrain import pretrain
from training.runs.run import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo, by which CPUs talk"
    ),
]
KINDS = {
    "dino": {},
    "everything": {
        "centring": "sinkhorn", "ibot_weight": 1.0, "ibot_head": True, "koleo_weight": 0.1, "registers": 2,
    },
    "ema ibot in parts": {"ibot_weight": 1.0, "accumulate": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 64, classes=True)


def two(*arguments: object, home: Path) -> subprocess.Popen:
    """Two processes, as `accelerate launch` starts them on a machine with two GPUs; on CPUs it would want mpirun."""
    environment = os.environ | {"DINOVIZ_RUNS": str(home), "OMP_NUM_THREADS": "1", "DINOVIZ_DEVICE": "cpu"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    return subprocess.Popen(
        [*launcher, "-m", "training", *map(str, arguments)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def file_of(config: PretrainConfig, folder: Path) -> Path:
    save(config, folder / "settings.json")
    return folder / "settings.json"


def log(run: Run) -> str:
    path = run.folder / "log.txt"
    return path.read_text() if path.is_file() else ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_are_those_of_one_process_with_the_joint_batch(kind, images, tmp_path):
    config = settings(images, validation=str(images), epochs=5.0, **KINDS[kind])
    process = two("pretrain", "--config", file_of(config, tmp_path), "--name", "two", home=tmp_path)
    output = process.communicate(timeout=180)[0]
    assert process.returncode == 0, output
    together, alone = Run(tmp_path / "two"), begin(config, tmp_path, "one")
    pretrain(config, alone)
    assert "float32 on 2 x cpu" in log(together)
    assert len(losses(together)) == len(losses(alone)) == 20
    for a, b in zip(together.metrics(), alone.metrics(), strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if name.startswith(("loss", "teacher_", "embedding", "lr", "knn")):
                # The last digits of float32, which Adam makes more of where gradients are tiny.
                assert a[name] == pytest.approx(b[name], abs=1e-5), (a["step"], name)
    assert [log(run).count("finished") for run in (together, alone)] == [1, 1]  # one process writes
    assert output.count("training: the run is") == output.count("training: two is finished") == 1


def test_a_stop_file_ends_both_and_both_go_on(images, tmp_path):
    config = settings(images, epochs=500.0)
    process = two("pretrain", "--config", file_of(config, tmp_path), "--name", "two", home=tmp_path)
    run = Run(tmp_path / "two")
    end = time.monotonic() + 120
    while not (run.folder / "metrics.jsonl").is_file() or len(losses(run)) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    run.request_stop()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    step = run.checkpoint().step
    assert (run.status()["state"], run.status()["step"]) == ("stopped", step)
    assert [record["step"] for record in losses(run)] == list(range(1, step + 1))
    process = two("resume", "two", home=tmp_path)
    while f"resumed at step {step}" not in log(run) or len(losses(run)) < step + 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end + 120
        time.sleep(0.05)
    run.request_stop()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert [record["step"] for record in losses(run)] == list(range(1, run.checkpoint().step + 1))


def test_an_error_ends_both_processes(images, tmp_path):
    """The other process does not wait for ever, and no run is created."""
    config = settings(images, batch=15)
    process = two("pretrain", "--config", file_of(config, tmp_path), "--name", "two", home=tmp_path)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert re.search(r"^training: .*\(15\).*\(2\)", output, re.MULTILINE)
    assert not (tmp_path / "two").exists()


def test_without_a_name_both_work_on_one_run(images, tmp_path):
    process = two("pretrain", "--config", file_of(settings(images, epochs=0.5), tmp_path), home=tmp_path / "runs")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    (folder,) = (tmp_path / "runs").iterdir()
    assert Run(folder).status()["state"] == "finished"
    assert torch.isfinite(torch.tensor([record["loss"] for record in losses(Run(folder))])).all()
