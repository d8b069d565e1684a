"""Two processes against one with the joint batch: centre, Sinkhorn-Knopp, KoLeo and the losses, in float64."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.numpy import load_file, save_file

from training.dino.losses import Centring, DINOLoss, IBOTPatchLoss, KoLeoLoss, sinkhorn_knopp
from training.engine import distributed

ROOT = Path(__file__).resolve().parents[3]  # and not tests.conftest's, which takes seconds to import
IMAGES, PROTOTYPES, DIM, PATCHES = 6, 5, 4, 8
PROCESSES = 2
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def inputs() -> dict[str, torch.Tensor]:
    """Of the joint batch; the same in every process. The first process' images have few masks, the last many."""
    rng = np.random.default_rng(0)
    masks = rng.uniform(size=(2, IMAGES, PATCHES)) < np.linspace(0, 0.9, IMAGES)[:, None]
    return {
        "tokens": torch.from_numpy(rng.normal(size=(4, IMAGES, DIM))),
        "weight": torch.from_numpy(rng.normal(size=(PROTOTYPES, DIM))),
        "teacher": torch.from_numpy(rng.uniform(-1, 1, (2, IMAGES, PROTOTYPES))),
        "patches": torch.from_numpy(rng.normal(size=(2, IMAGES, PATCHES, DIM))),
        "targets": torch.from_numpy(rng.uniform(-1, 1, (2, IMAGES, PATCHES, PROTOTYPES))),
        "masks": torch.from_numpy(masks),
    }


def results(images: slice) -> dict[str, torch.Tensor]:
    """What a process with these images finds, its gradients averaged as DDP does, its losses as the run logs them."""
    batch = {k: v if k == "weight" else v[:, images] for k, v in inputs().items()}
    out = {}
    for kind in ("ema", "sinkhorn"):
        weight = batch["weight"].clone().requires_grad_()  # stands for the network
        cls, of_patches = Centring(PROTOTYPES, kind).double(), Centring(PROTOTYPES, kind).double()
        masks = batch["masks"].flatten(0, 1)
        for step in range(2):  # the second time with the centre of the first
            student = torch.tanh(batch["tokens"] @ weight.T)
            patches = torch.tanh(batch["patches"] @ weight.T).flatten(0, 1)[masks]
            losses = {
                "dino": DINOLoss(cls)(student, batch["teacher"], 0.05)[0],
                "ibot": IBOTPatchLoss(of_patches)(patches, batch["targets"].flatten(0, 1)[masks], masks, 0.05),
                "koleo": KoLeoLoss()(student[0]) + KoLeoLoss()(student[1]),
            }
            for name, loss in losses.items():
                (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
                out[f"{kind} {step} {name}"] = distributed.mean(loss.detach())
                out[f"{kind} {step} {name} gradient"] = distributed.mean(gradient)
            cls.update()
            of_patches.update()
        out[f"{kind} centre"], out[f"{kind} patch centre"] = cls.centre, of_patches.centre
    rows = batch["teacher"].flatten(0, 1)
    out["sinkhorn"] = distributed.gathered(sinkhorn_knopp(rows, 0.05).unflatten(0, (2, -1)).transpose(0, 1))
    # One process without any row, which happens where only the other has masked images.
    few = inputs()["teacher"][0, :3] if images.start in (None, 0) else rows[:0]
    out["sinkhorn of the first alone"] = distributed.largest(
        torch.cat([sinkhorn_knopp(few, 0.05), torch.zeros(3 - len(few), PROTOTYPES, dtype=torch.float64)])
    )
    out["total"] = distributed.total(rows.sum(0))
    out["largest"] = distributed.largest(rows.amax(0))
    return out


def process(rank: int, folder: Path) -> None:
    """What each of the processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    mine = IMAGES // PROCESSES
    found = results(slice(mine * rank, mine * (rank + 1)))
    before = torch.full((2,), float(rank))
    distributed.total(before)
    distributed.largest(before)
    found["not changed"] = before
    found["processes"] = torch.tensor(float(distributed.processes()))
    save_file({k: v.detach().contiguous().numpy() for k, v in found.items()}, folder / f"{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory) -> list[dict[str, np.ndarray]]:
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo, by which processes on a CPU talk")
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "tests.training.engine.test_distributed", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [*command, str(rank)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for rank in range(PROCESSES)
    ]
    for one in running:
        _, errors = one.communicate(timeout=120)
        assert one.returncode == 0, errors.decode()
    return [load_file(folder / f"{rank}.safetensors") for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def alone() -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in results(slice(None)).items()}


def compare(found: list[dict], wanted: dict, *parts: str) -> None:
    names = [name for name in wanted if any(part in name for part in parts)]
    assert names
    for name in names:
        for one in found:
            np.testing.assert_allclose(one[name], wanted[name], **EXACT, err_msg=name)


def test_there_are_two_processes_and_arguments_are_not_modified(of_processes):
    for rank, found in enumerate(of_processes):
        assert found["processes"] == PROCESSES
        assert (found["not changed"] == rank).all()


def test_sums_maxima_and_rows_are_those_of_all_processes(of_processes, alone):
    compare(of_processes, alone, "total", "largest")


def test_the_centres_are_those_of_the_joint_batch(of_processes, alone):
    """Also where the processes have different numbers of masked patches."""
    compare(of_processes, alone, "centre")


def test_sinkhorn_is_that_of_the_joint_batch(of_processes, alone):
    """Also where a process has no row."""
    for found in of_processes:
        np.testing.assert_allclose(found["sinkhorn"], alone["sinkhorn"], **EXACT)
    compare(of_processes, alone, "sinkhorn of the first alone")


@pytest.mark.parametrize("loss", ["dino", "ibot", "koleo"])
def test_losses_and_averaged_gradients_are_those_of_the_joint_batch(of_processes, alone, loss):
    compare(of_processes, alone, f" {loss}")


def test_one_process_gets_its_arguments_back():
    values = torch.arange(3.0)
    for function in (distributed.total, distributed.mean, distributed.largest, distributed.gathered):
        assert function(values) is values or torch.equal(function(values), values)
    assert distributed.processes() == 1


if __name__ == "__main__":
    process(int(sys.argv[2]), Path(sys.argv[1]))
